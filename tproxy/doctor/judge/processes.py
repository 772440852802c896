"""Judges what runs on the host: daemon, workers, watcher, their descriptors and logs."""

from __future__ import annotations

from collections.abc import Iterable

from tproxy import __version__
from tproxy.doctor.finding import Finding, bad, good, warning
from tproxy.doctor.look.processes import Processes
from tproxy.kernel.limits import FLOOR

# Of a limit. A worker keeps some for itself, so it takes no more connections a little before the last one.
_NEARLY = 0.8


def first(found: Processes, *, needed: bool, watch_file: str) -> list[Finding]:
    """Daemon, workers, watcher. ``needed``: there are maps. ``watch_file``: the file that wants a watcher."""
    findings = [_daemon(found, needed=needed)]
    if found.status is not None or found.stopped.intersection(found.workers):
        findings.append(_workers(found))
    return [*findings, *_foreign(found), _watcher(found, watch_file)]


def last(found: Processes) -> list[Finding]:
    return [_descriptors(found), _logs(found)]


def _daemon(found: Processes, *, needed: bool) -> Finding:
    if not found.daemons:
        if needed or found.relays:
            text = "no daemon runs: nothing that ends is replaced, and changed maps have no effect"
            return bad("daemon", text, "tproxy start")
        if 0 <= found.own_limit < FLOOR:
            text = f"the limit of open descriptors is {found.own_limit}, and a daemon needs {FLOOR}"
            return bad("daemon", text, f"ulimit -n {FLOOR * 128}")
        return good("daemon", "none runs, and none is needed: there are no maps")
    if stopped := found.stopped.intersection(found.daemons):
        text = f"the daemon, process {min(stopped)}, is stopped by a signal or a debugger"
        return bad("daemon", text, f"kill -CONT {min(stopped)}")
    if found.stopped.intersection(found.workers):
        return good("daemon", f"process {found.daemons[0]} waits for a worker, and was not asked")
    if found.status is None:
        return bad("daemon", found.silent or "the daemon has ended meanwhile", "tproxy restart")
    version = found.status["version"]
    if version != __version__:
        text = f"the daemon runs version {version}, and {__version__} is installed"
        return warning("daemon", text, "tproxy restart")
    return good("daemon", f"process {found.daemons[0]} answers")


def _workers(found: Processes) -> Finding:
    status = found.status or {}
    if stopped := found.stopped.intersection(found.workers):
        text = f"worker {min(stopped)} is stopped by a signal or a debugger: its guests wait"
        return bad("workers", text, f"kill -CONT {min(stopped)}")
    if not found.workers:
        return bad("workers", "no worker runs: guests wait", "tproxy restart")
    most = status.get("max_connections") or 0
    if most and status["connections"] >= most:
        text = f"{status['connections']} connections are open, and no more are taken (max_connections)"
        return bad("workers", text, "tproxy status --verbose")
    return good("workers", f"{len(found.workers)} run, with {status['connections']} open connections")


def _foreign(found: Processes) -> list[Finding]:
    return [
        bad(
            "agents",
            f"process {each.pid}, {each.title}, is another tproxy on this host, such as OpenNebula's own",
            f"ps -fp {each.pid}",
        )
        for each in found.agents
        if not each.bridge
    ]


def _watcher(found: Processes, watch_file: str) -> Finding:
    if stopped := found.stopped.intersection(found.watchers):
        text = f"the watcher, process {min(stopped)}, is stopped by a signal or a debugger"
        return bad("watcher", text, f"kill -CONT {min(stopped)}")
    if watch_file and not found.watchers:
        text = f"{watch_file} says tproxy_watch: true, and no watcher runs"
        return bad("watcher", text, "tproxy reload" if found.daemons else "tproxy start")
    if not found.watchers:
        return good("watcher", "none runs, and none is configured: hooks repair")
    return good("watcher", f"process {found.watchers[0]} runs")


def _descriptors(found: Processes) -> Finding:
    repair = "systemctl edit tproxy  # LimitNOFILE=; without a unit: ulimit -Hn, then tproxy restart"
    for pid, (used, most) in found.descriptors.items():
        who = "the daemon" if pid in found.daemons else "a worker"
        if most < FLOOR:
            return bad("descriptors", f"{who}, process {pid}, may open {most}, and needs {FLOOR}", repair)
        if used > _NEARLY * most:
            text = f"{who}, process {pid}, has {used} of {most} open: soon guests wait"
            return warning("descriptors", text, repair)
    shown = min((most for _, most in found.descriptors.values()), default=None)
    return good("descriptors", f"the limit is {shown}" if shown else "nothing runs that needs any")


def _logs(found: Processes) -> Finding:
    for each in found.logs:
        if each.fault:
            return bad("logs", f"{each.path}: {each.fault}: lines are lost", _room(each.fault, each.path))
    for each in found.logs:
        if each.strays:
            text = (
                f"{_listed(each.strays)} still writes to the log file that was moved away, not to {each.path}"
            )
            return bad("logs", text, "tproxy reopen-logs")
    return good("logs", "all processes can write to their files")


def _room(fault: str, path: str) -> str:
    if "full" in fault:
        return "df -h /var/log"
    if "missing" in fault:
        return "mkdir -p /var/log && tproxy reopen-logs"
    if "read-only" in fault:
        return "mount -o remount,rw /var/log"
    return f"mv {path} {path}.old && tproxy reopen-logs"


def _listed(pids: Iterable[int]) -> str:
    return f"process {', '.join(map(str, pids))}"
