"""``tproxy lab --egress`` shows what it should, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.netns.waiting import eventually


def test_the_tour_shows_installs_denials_ledger_and_bill(engines: None) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="tour-") as folder:
        Path(folder).chmod(0o755)  # squid's user reads the policy in it
        done = subprocess.run(
            [sys.executable, "-m", "tproxy", "lab", "--egress"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "TMPDIR": folder},
        )
        assert not os.listdir(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("✓ denied", "pkg:pypi/demo@1.0", "pkg:deb/debian/demo-of-lab", "the chain of"):
        assert words in done.stdout, done.stdout
    assert done.stdout.count("✓ installed") == 4, done.stdout


def test_the_files_of_the_lab_go_when_it_is_killed() -> None:
    program = "from tproxy.lab.egress.passing import folder\n"
    program += "with folder('lab-') as it: print(it, flush=True); input()"
    owner = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        made = Path(owner.stdout.readline().strip())
        (made / "file").touch()
        owner.kill()
    for _ in eventually():
        if not made.exists():
            break
