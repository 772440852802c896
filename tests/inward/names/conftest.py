"""Fixtures of tests with real name servers. Each module has one host with its servers."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.netns.conftest import real_kernel as real_kernel

PROGRAMS = ("dig", "haproxy", "named", "pdns_server", "sqlite3", "unbound")


@pytest.fixture(scope="session")
def name_servers(real_kernel: None) -> None:
    """Skip the test without a program; in CI it fails, since nobody would notice the skip."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if missing := [each for each in PROGRAMS if shutil.which(each, path=path) is None]:
        reason = f"needs {', '.join(missing)}: .ci/setup inward"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
