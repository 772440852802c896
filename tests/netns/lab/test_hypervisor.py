"""The stand-in hypervisor: a host of its own, which leaves nothing on the real one."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import PATIENCE, Hypervisor, kill

SOURCE = Path(__file__).parents[3]


def fill(host: Hypervisor) -> None:
    """Make one of each thing that tproxy makes."""
    host.add_bridge("br0")
    host.add_guest("one_tproxy_br0", "br0")
    host.add_endpoint("10.11.12.13", 5030)
    host.run("nft", "add table ip one_tproxy; add table bridge one_tproxy")
    host.write("/run/tproxy/lock", "")
    host.write("/var/log/one_tproxy.log", "a line\n")


def traces() -> list[str]:
    """Return what the real host shows where tproxy or the stand-in could leave things."""
    said = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for command in (["ip", "netns", "list"], ["nft", "list", "tables"], ["hostname"])
    ]
    files = [str(path) for path in (Path("/run/tproxy"), Path("/var/log/one_tproxy.log")) if path.exists()]
    mounts = sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [*said, *sorted(os.listdir("/sys/class/net")), *files, *mounts]


def processes(host_pid: int) -> dict[int, int]:
    """Return the processes of a stand-in by their pids on the real host, each with a pidfd, pidfd_open(2)."""
    namespace = os.readlink(f"/proc/{host_pid}/ns/pid")
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/ns/pid") == namespace:
                found[int(pid)] = os.pidfd_open(int(pid))
        except OSError:  # it has ended, or not even root may see it
            continue
    return found


def all_end(held: dict[int, int]) -> bool:
    """Wait for the end of all of them; return whether all have ended, and close the pidfds."""
    deadline = time.monotonic() + PATIENCE
    ended = [select.select([fd], [], [], max(0, deadline - time.monotonic()))[0] for fd in held.values()]
    for fd in held.values():
        os.close(fd)
    return all(ended)


@pytest.fixture
def owner(real_kernel: None, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that has a stand-in, and the pid of the stand-in's process 1. A parameter is its argument."""
    command = program("lab_owner", *getattr(request, "param", ()))
    with subprocess.Popen(command, cwd=SOURCE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline().removeprefix("ready "))
        with os.fdopen(os.pidfd_open(pid)) as first:
            try:
                yield process, pid
            finally:
                process.kill()
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(first.fileno(), signal.SIGKILL)


def test_it_starts_as_an_empty_host(hypervisor: Hypervisor) -> None:
    assert hypervisor.run("ip", "-brief", "link").stdout.split()[:2] == ["lo", "UNKNOWN"]
    assert hypervisor.run("ls", "/sys/class/net").stdout.split() == ["lo"]
    assert hypervisor.run("ls", "-A", "/run", "/var/log").stdout.split() == ["/run:", "/var/log:"]
    assert hypervisor.run("nft", "list", "ruleset").stdout == ""
    assert hypervisor.run("ps", "-eo", "pid=,comm=").stdout.split()[::2][0] == "1"


def test_the_real_host_shows_nothing_of_it(real_kernel: None) -> None:
    before = traces()
    with Hypervisor() as host:
        fill(host)
        assert traces() == before
    assert traces() == before


def test_closing_ends_every_process_of_it(real_kernel: None) -> None:
    with Hypervisor() as host:
        fill(host)
        host.run("sh", "-c", "setsid sleep 1000 </dev/null >/dev/null 2>&1 &")
        held = processes(host.pid)
        assert len(held) >= 3, "process 1, an endpoint and a daemon"
    # Without waiting: close() returns when no process is left.
    assert all(select.select([fd], [], [], 0)[0] for fd in held.values())
    assert all_end(held)


def test_a_killed_owner_leaves_nothing(owner: tuple[subprocess.Popen[str], int]) -> None:
    process, pid = owner
    before = traces()
    held = processes(pid)
    assert len(held) >= 2
    os.kill(process.pid, signal.SIGKILL)
    assert all_end(held)
    assert traces() == before


@pytest.mark.parametrize("owner", [("--keep",)], indirect=True)
def test_a_stand_in_that_is_kept_outlives_its_owner_until_it_is_killed(
    owner: tuple[subprocess.Popen[str], int],
) -> None:
    process, pid = owner
    held = processes(pid)
    try:
        assert process.wait(PATIENCE) == 0
        assert not select.select(list(held.values()), [], [], 0.2)[0], "a process of it has ended"
    finally:
        kill(pid)
    assert all_end(held)


def test_two_stand_ins_can_have_the_same_names(real_kernel: None) -> None:
    with Hypervisor() as one, Hypervisor() as two:
        for host in (one, two):
            fill(host)
        one.ip("link del br0")
        one.run("nft", "flush ruleset")
        assert "br0" in two.run("ip", "-brief", "link").stdout
        assert "one_tproxy" in two.run("nft", "list", "tables").stdout
        one.close()
        assert two.get("10.11.12.13", 5030) == "hello\n"


def test_guests_on_one_bridge_reach_each_other_and_no_others(hypervisor: Hypervisor) -> None:
    for bridge in ("br0", "br1"):
        hypervisor.add_bridge(bridge)
    asker = hypervisor.add_guest("asker", "br0", "10.0.0.5/24")
    for name, bridge, address in (("near", "br0", "10.0.0.6"), ("far", "br1", "10.0.0.7")):
        hypervisor.add_guest(name, bridge, f"{address}/24")
        hypervisor.add_endpoint(address, 80, name, netns=name)
    assert asker.get("10.0.0.6", 80) == "near"
    with pytest.raises(ProcessError, match=r"ETIMEDOUT|EHOSTUNREACH"):
        asker.get("10.0.0.7", 80, timeout=0.5)
    with pytest.raises(ProcessError, match="ECONNREFUSED"):
        asker.get("10.0.0.6", 81)


def test_programs_get_input_and_environment_and_return_output_and_exit_code(hypervisor: Hypervisor) -> None:
    done = hypervisor.run(
        "sh", "-c", 'cat; echo "$WORD" >&2; exit 3', input="in", env={"WORD": "x"}, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("in", "x\n", 3)
    with pytest.raises(ProcessError, match="ended with 3: why"):
        hypervisor.run("sh", "-c", "echo why >&2; exit 3")


def test_a_program_dies_with_its_nsenter(hypervisor: Hypervisor) -> None:
    program = hypervisor.serve("sh", "-c", "echo ready; exec sleep 1000")
    held = processes(hypervisor.pid)
    os.close(held.pop(hypervisor.pid))
    assert len(held) == 1
    program.kill()
    assert all_end(held)


def test_orphans_are_reaped(hypervisor: Hypervisor) -> None:
    hypervisor.run("sh", "-c", "(sleep 0.1 &)")
    for _ in eventually():
        if "sleep" not in hypervisor.run("ps", "-eo", "args=").stdout:  # a zombie is shown as [sleep]
            break


def test_a_stand_in_that_cannot_be_built_is_an_error_of_one_line(
    real_kernel: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho unshare: not permitted >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ProcessError, match=r"\Acannot build a stand-in hypervisor: unshare: not permitted\Z"):
        Hypervisor().start()
