"""``tproxy lab --egress`` shows what it should, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path


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
