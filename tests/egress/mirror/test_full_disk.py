"""A full disk: what does not fit is not served, leaves nothing, and does not harm what fits."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.egress.asking import arrives, get
from tests.egress.python_index import Index
from tests.egress.running import LOOPBACK, running
from tests.egress.upstream import Site
from tproxy.egress.mirror.settings import Settings


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    if os.geteuid() and os.environ.get("CI") != "true":
        pytest.skip("needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_what_does_not_fit_is_not_served_and_leaves_nothing(small_disk: Path, upstream: Site) -> None:
    index = Index(upstream)
    index.add("large", "1.0", size=6_000_000)
    content = index.add("small", "1.0", size=100_000)
    with running(Settings(small_disk / "store", pypi=index.url, inner=LOOPBACK)) as mirror:
        assert not arrives(f"{mirror.url}pypi/files/large/large-1.0-py3-none-any.whl")
        assert list((small_disk / "store" / "partial").iterdir()) == []
        assert get(f"{mirror.url}pypi/files/small/small-1.0-py3-none-any.whl")[1] == content
        assert [event.name for event in mirror.events] == ["small"]


def test_the_quota_makes_room_by_removing_what_was_not_used(tmp_path: Path, upstream: Site) -> None:
    index = Index(upstream)
    for name in "abc":
        index.add(name, "1.0", size=400_000)
    with running(Settings(tmp_path, quota=1_000_000, pypi=index.url, inner=LOOPBACK)) as mirror:
        for name in "abc":
            assert arrives(f"{mirror.url}pypi/files/{name}/{name}-1.0-py3-none-any.whl")
        assert get(f"{mirror.url}pypi/files/c/c-1.0-py3-none-any.whl")[0] == 200
        assert upstream.count("/packages/c") == 1
        assert sum(path.stat().st_size for path in (tmp_path / "blobs").glob("??/*")) <= 1_000_000
        index.add("large", "1.0", size=1_100_000)
        status, body, _ = get(f"{mirror.url}pypi/files/large/large-1.0-py3-none-any.whl")
        assert (status, b"quota" in body) == (503, True)
