"""Giving up rights: a process that has passed all stages has nothing left that is worth taking."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.child import in_child
from tproxy.kernel import privileges, seccomp
from tproxy.kernel.privileges import drop, uid_of

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")


@pytest.fixture
def empty(tmp_path: Path) -> str:
    # Below /tmp, whose directories another user may not enter: that does not matter after chroot(2).
    path = tmp_path / "empty"
    path.mkdir(0o555)
    return str(path)


def dropped(empty: str, look: str) -> Any:
    """Give up all rights in a child; return the failures and what ``look`` finds there afterwards."""

    def child() -> dict[str, Any]:
        proc = os.open("/proc/self/status", os.O_RDONLY)
        failed = drop(empty, seccomp.WORKER)
        return {"failed": failed, "pid": os.getpid(), look: LOOKS[look](proc)}

    return in_child(child)


def fields(proc: int) -> dict[str, str]:
    os.lseek(proc, 0, os.SEEK_SET)
    text = os.read(proc, 1 << 16).decode()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def errors_of(*attempts: Any) -> list[str]:
    """Return the kind of error that each attempt meets; "" for one that succeeds."""
    found = []
    for attempt in attempts:
        try:
            attempt()
        except OSError as error:
            found.append(type(error).__name__)
        else:
            found.append("")
    return found


LOOKS: dict[str, Callable[[int], Any]] = {
    "status": fields,
    "files": lambda proc: errors_of(
        os.getcwd,
        lambda: os.listdir("/"),
        lambda: os.open("/etc/passwd", os.O_RDONLY),
        lambda: os.open("/proc/self/status", os.O_RDONLY),
        lambda: os.open("../../../../etc/passwd", os.O_RDONLY),
        lambda: os.open("/new", os.O_WRONLY | os.O_CREAT),
        lambda: os.execv("/bin/sh", ["sh"]),
    ),
    "rights": lambda proc: errors_of(
        lambda: os.kill(os.getppid(), 0),
        lambda: os.setuid(0),
        lambda: os.setgid(0),
        lambda: os.chroot("/"),
        lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP),
        lambda: os.kill(1, 0),  # never SIGCONT: any process of the same session may send that (kill(2))
    ),
}


@needs_root
def test_the_process_has_a_user_of_its_own_no_group_and_no_capability(empty: str) -> None:
    found = dropped(empty, "status")
    assert found["failed"] == []
    own = str(uid_of(found["pid"]))
    lines = found["status"]
    assert lines["Uid"].split() == lines["Gid"].split() == [own] * 4
    assert lines["Groups"].split() == []
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(lines[name], 16) == 0, name
    assert lines["NoNewPrivs"] == "1"


@needs_root
def test_no_file_can_be_opened_made_or_executed(empty: str) -> None:
    found = dropped(empty, "files")
    assert found["files"] == ["PermissionError"] * 7


@needs_root
def test_no_other_process_can_be_reached_and_no_right_comes_back(empty: str) -> None:
    assert dropped(empty, "rights")["rights"] == ["PermissionError"] * 7


@needs_root
def test_two_processes_have_two_users(empty: str) -> None:
    """So neither can send the other a signal, and the kernel counts their descriptors in flight apart."""
    one, other = (dropped(empty, "status")["status"]["Uid"] for _ in range(2))
    assert one != other


@needs_root
def test_a_stage_that_fails_gives_a_line_and_the_others_are_passed(empty: str) -> None:
    def child() -> dict[str, Any]:
        proc = os.open("/proc/self/status", os.O_RDONLY)
        return {"failed": drop(f"{empty}/missing", seccomp.RELAY), "status": fields(proc)}

    found = in_child(child)
    assert found["failed"] == ["it keeps the host's files in sight: No such file or directory"]
    assert int(found["status"]["CapEff"], 16) == 0
    assert found["status"]["Uid"].split()[0] != "0"


def test_a_process_without_rights_gets_a_line_for_each_stage_that_needs_some(empty: str) -> None:
    def child() -> list[str]:
        if os.geteuid() == 0:
            os.chdir("/")
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        return drop("/", seccomp.RELAY)

    assert in_child(child) == [
        "it keeps the host's files in sight: Operation not permitted",
        "its capability bounding set stays: Operation not permitted",
        "it has no user id of its own: Operation not permitted",
    ]


@needs_root
def test_giving_up_rights_writes_to_little_memory(empty: str) -> None:
    """Each relay has these pages for itself. To open libc again and again would take twice as much."""

    def child() -> int:
        rollup = os.open("/proc/self/smaps_rollup", os.O_RDONLY)
        before = own_kilobytes(rollup)
        assert drop(empty, seccomp.WORKER) == []
        return own_kilobytes(rollup) - before

    assert in_child(child) < 600


def own_kilobytes(rollup: int) -> int:
    os.lseek(rollup, 0, os.SEEK_SET)
    text = os.read(rollup, 4096)
    return int(text.partition(b"Private_Dirty:")[2].split()[0])


def test_user_ids_are_those_that_nobody_else_gives_out() -> None:
    unused = range(1_879_048_192, 2_147_483_647)  # systemd, "Users, Groups, UIDs and GIDs"
    assert uid_of(1) in unused
    assert uid_of(4_194_304) in unused
    assert privileges.FIRST_UID == 1_900_000_000
