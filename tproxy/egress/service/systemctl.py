"""Calls systemctl(1)."""

from __future__ import annotations

import subprocess

from tproxy.errors import ProcessError


def tried(*words: str) -> subprocess.CompletedProcess[str]:
    """Run systemctl, whatever comes of it."""
    return subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)


def systemctl(*words: str) -> None:
    """Run systemctl. Raises ProcessError with its first line about a failure."""
    done = tried(*words)
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("Created symlink")]
        lines = lines or ["no reason given"]
        raise ProcessError(f"systemctl {words[0]} failed: {lines[0]}")
