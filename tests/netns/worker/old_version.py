"""Old versions, out of this repository's history."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3]
WITHOUT_WORKERS = "c37f5088e0acc56445b59cb9761f8233d250790a"  # its daemon carries the connections
# Its relays and workers speak older versions of their protocols.
WITHOUT_ROUTES = "306bacee2d40f8fa34d6cfd6955cda269c0f3125"


def unpacked(path: Path, version: str = WITHOUT_WORKERS) -> str:
    """Unpack it there, and return its directory. Where the history is not there, the test is skipped."""
    done = subprocess.run(
        ["git", "-C", str(SOURCE), "archive", version, "tproxy"], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("needs the history of this repository")
    subprocess.run(["tar", "-x", "-C", str(path)], check=True, input=done.stdout)
    return str(path)
