"""Fixtures of the tests with real engines. Each module has one node, since its start takes some seconds."""

from __future__ import annotations

import os
import shutil

import pytest

PROGRAMS = ("curl", "ip", "nsenter", "openssl", "squid", "ss", "unshare")


@pytest.fixture(scope="session")
def engines() -> None:
    """Skip the test without root or without a program. In CI it fails: nobody would notice the skip."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    reason = "needs root" if os.geteuid() else f"needs {', '.join(missing)}" if missing else ""
    if reason and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
