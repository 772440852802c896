"""The launcher, when the daemon does not start: an error says why, in time, and no process is left."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tproxy.daemon import launcher
from tproxy.errors import ProcessError
from tproxy.model import Settings
from tproxy.process import run_directory

STARTS = {
    "it says why": ("printf 'no room' >/proc/self/fd/$fd", "no room"),
    "it dies": ("exit 1", "it died"),
    "it hangs": ("exec sleep 60", "it hangs"),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_daemon_that_does_not_start_is_an_error_and_leaves_no_process(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, reason = STARTS[start]
    instead = tmp_path / "python"
    find_fd = 'while [ "$1" != --ready ]; do shift; done; fd=$2'
    instead.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\n{find_fd}\n{script}\n")
    instead.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(instead))
    monkeypatch.setattr(run_directory, "prepare", lambda: str(tmp_path))
    if reason == "it hangs":
        monkeypatch.setattr(launcher, "ANSWER_TIMEOUT", 5.0)
    lock = run_directory.Lock(os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT))
    with pytest.raises(ProcessError, match=f"^the daemon cannot start: {reason}$"):
        launcher.launch(Settings(), lock, replace=False)
    lock.release()
    pid = (tmp_path / "pid").read_text().strip()
    assert not Path("/proc", pid).exists()


@pytest.mark.parametrize(("workers", "told"), [(None, "0"), (0, "0"), (3, "3")])
def test_a_daemon_is_told_how_many_workers_to_have(workers: int | None, told: str) -> None:
    options = launcher.arguments(Settings(workers=workers))
    assert options[options.index("--workers") + 1] == told
