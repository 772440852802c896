"""A host whose daemon has been killed, and does not come back by itself."""

from __future__ import annotations

from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor

DAEMON, SPAWNER = "^one_tproxy *$", "^tproxy-spawner *$"


def kill_daemon(host: Hypervisor) -> None:
    """Kill the daemon and its spawner, which would start another one; return when both have ended."""
    host.run("pkill", "-STOP", "-f", DAEMON)  # or it would start another spawner
    pids = host.run("pgrep", "-f", f"{DAEMON}|{SPAWNER}").stdout.split()
    host.run("pkill", "-KILL", "-f", SPAWNER)
    for _ in eventually():
        if not host.run("pgrep", "-f", SPAWNER, check=False).stdout:
            break
    host.run("pkill", "-KILL", "-f", DAEMON)
    for _ in eventually():
        shown = [line.split() for line in host.run("ps", "-eo", "pid=,stat=").stdout.splitlines()]
        if not set(pids) & {pid for pid, state in shown if state[0] != "Z"}:
            break
