"""The lab: a stand-in hypervisor with two networks, on which the real hook brings the bridges up.

The lab checks everything that it shows, here and in ``scenes``. One address that does not answer proves
little, so the hypervisor and each guest ask every address: each must answer where it should, and nowhere
else. The guests have routes to all of them through the service address, which is the only possible way out.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab import scenes, view
from tproxy.lab.hypervisor import PATIENCE, Guest, Hypervisor, kill
from tproxy.lab.view import Answer, Lane, Question, Run
from tproxy.names import TABLE, BridgeNames

# Describes a lab that was kept. The file is on the real host, and a reboot removes it, like the lab.
STATE = Path("/run/tproxy-lab.json")

# Both guests have the same address, as guests of two networks may. Their second addresses differ, so they
# could find each other.
LANES = (
    Lane("blue", "lab0", "10.0.0.5", "10.0.0.51", "10.11.12.13"),
    Lane("green", "lab1", "10.0.0.5", "10.0.0.52", "10.21.22.23"),
)
PORT = 5030
UNLISTED_PORT = 5031
CONFIG = "/run/tproxy.yaml"

# Seconds without an answer after which there will be none. On one machine an answer takes a millisecond.
SILENCE = 1.0

_PACKAGES = {
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}


def run_lab(keep: bool) -> int:
    """Build the lab, show it, and remove or ``keep`` it. Return 0 if all was as expected, else 1."""
    missing = [program for program in _PACKAGES if not shutil.which(program)]
    if missing:
        packages = sorted({_PACKAGES[program] for program in missing})
        raise ProcessError(f"the lab needs {', '.join(missing)}: install {', '.join(packages)}")
    if keep and (pid := _kept()):
        raise _already(pid)
    with _ended_by_signals(), Hypervisor() as host:
        well = _tour(host)
        if keep:
            _remember(host.pid)
            host.keep()
    view.verdict(well, removed=not keep)
    if keep:
        view.kept(host.pid, LANES[0], PORT, _own_command())
    return 0 if well else 1


def lab_down() -> int:
    """Remove the lab that was kept, if there is one; return 0."""
    pid = _kept()
    if pid:
        kill(pid)
    STATE.unlink(missing_ok=True)
    view.removed(pid)
    return 0


# The tour


def _tour(host: Hypervisor) -> bool:
    """Build, try and show everything; return whether all was as expected."""
    view.topology(LANES, PORT)
    guests = [_build(host, lane) for lane in LANES]
    scenes.prepare(host)
    host.write(CONFIG, "tproxy:\n" + "".join(map(_entry, LANES)) + scenes.ENTRIES)
    runs = [
        _run(
            host,
            "tproxy",
            "hook",
            "up",
            "--bridge",
            lane.bridge,
            "--network",
            lane.network,
            "--config",
            CONFIG,
        )
        for lane in LANES
    ]
    questions = _questions()
    with ThreadPoolExecutor(len(questions)) as pool:  # most questions get no answer, and wait for SILENCE
        answers = list(pool.map(partial(_ask, host), questions))
    view.answers(answers)
    runs += [
        _run(host, "tproxy", "status"),
        _run(host, "nft", "list", "map", "ip", TABLE, BridgeNames(LANES[0].bridge).map),
    ]
    well = scenes.play(host, guests)
    return well and all(run.code == 0 for run in runs) and all(answer.right for answer in answers)


def _build(host: Hypervisor, lane: Lane) -> Guest:
    host.add_bridge(lane.bridge)
    host.add_endpoint(lane.endpoint, PORT, _endpoint(lane))
    guest = host.add_guest(lane.network, lane.bridge, f"{lane.guest}/24")
    host.add_endpoint(lane.neighbour, PORT, _guest(lane), netns=guest.name)
    guest.ip(*(f"route add {each.endpoint} via {SERVICE_ADDRESS} dev eth0" for each in LANES))
    return guest


def _entry(lane: Lane) -> str:
    return (
        f"- service_port: {PORT}\n"
        f"  remote_addr: {lane.endpoint}\n"
        f"  remote_port: {PORT}\n"
        f"  networks: [{lane.network}]\n"
    )


def _run(host: Hypervisor, *argv: str) -> Run:
    begin = time.monotonic()
    program = [sys.executable, "-m", "tproxy"] if argv[0] == "tproxy" else [argv[0]]
    done = host.run(*program, *argv[1:], check=False)
    run = Run(" ".join(argv), done.stdout + done.stderr, done.returncode, time.monotonic() - begin)
    view.run(run)
    return run


def _questions() -> list[Question]:
    """Return the questions: the hypervisor and each guest ask each address."""
    targets = [
        (SERVICE_ADDRESS, PORT),
        (SERVICE_ADDRESS, UNLISTED_PORT),
        *((lane.endpoint, PORT) for lane in LANES),
        *((lane.neighbour, PORT) for lane in LANES),
    ]
    answer: dict[tuple[str | None, tuple[str, int]], str] = {}  # all other questions get no answer
    for lane in LANES:
        answer[lane.network, (SERVICE_ADDRESS, PORT)] = _endpoint(lane)
        answer[None, (lane.endpoint, PORT)] = _endpoint(lane)
        answer[lane.network, (lane.neighbour, PORT)] = _guest(lane)
    askers = (None, *(lane.network for lane in LANES))
    return [Question(who, *target, answer.get((who, target))) for target in targets for who in askers]


def _ask(host: Hypervisor, question: Question) -> Answer:
    patience = PATIENCE if question.wanted else SILENCE
    try:
        return Answer(question, host.get(question.address, question.port, patience, netns=question.who), "")
    except ProcessError as error:
        return Answer(question, None, str(error))


def _endpoint(lane: Lane) -> str:
    return f"{lane.network}'s endpoint"


def _guest(lane: Lane) -> str:
    return f"guest {lane.network}"


# A lab that is kept


def _remember(pid: int) -> None:
    try:
        with open(STATE, "x", encoding="ascii") as file:
            json.dump({"pid": pid, "started": _start_time(pid)}, file)
    except FileExistsError:  # another lab was kept while this one was being built
        raise _already(_kept() or 0) from None


def _kept() -> int | None:
    """Return the pid of process 1 of the lab that was kept; None without such a lab."""
    try:
        state = json.loads(STATE.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    # The kernel uses pids again, but not a pid together with a start time.
    if _start_time(state["pid"]) == state["started"]:
        return int(state["pid"])
    STATE.unlink(missing_ok=True)
    return None


def _start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Field 22, proc(5). Field 2, a name in parentheses, can hold blanks.
    return int(stat.rpartition(")")[2].split()[19])


def _already(pid: int) -> ProcessError:
    return ProcessError(f"a lab is kept already (process {pid}); `tproxy lab --down` removes it")


def _own_command() -> str:
    """Return the command tproxy as one can type it in the lab, where the working directory is another."""
    called = Path(sys.argv[0]).absolute()
    return str(called) if called.name == "tproxy" else f"{sys.executable} -m tproxy"


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Make SIGTERM and a closed terminal raise an exception, as Ctrl-C does, so that the lab is removed."""

    def unwind(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {each: signal.signal(each, unwind) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
