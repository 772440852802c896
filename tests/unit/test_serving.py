"""What becomes of the start of a daemon that does not come: a line, in time, and no process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tproxy import instance, serving
from tproxy.errors import ProcessError

STARTS = {
    "it says why": ("printf 'no room' >/proc/self/fd/$fd", "no room"),
    "it dies": ("exit 1", "it died"),
    "it hangs": ("exec sleep 60", "it hangs"),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_daemon_that_does_not_come(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, reason = STARTS[start]
    instead = tmp_path / "python"
    instead.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nfor fd; do :; done\n{script}\n")
    instead.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(instead))
    monkeypatch.setattr(instance, "prepare", lambda: str(tmp_path))
    if reason == "it hangs":
        monkeypatch.setattr(serving, "ANSWER_TIMEOUT", 5.0)
    with pytest.raises(ProcessError, match=f"^the daemon cannot start: {reason}$"):
        serving.launch(None, None, replace=False)
    pid = (tmp_path / "pid").read_text().strip()
    assert not Path("/proc", pid).exists()
