"""The mirror of plain files, which the policy names by address and SHA-256."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from tests.egress.asking import arrives, get
from tests.egress.running import LOOPBACK, running
from tests.egress.upstream import Site
from tproxy.egress.mirror.settings import Settings


def test_a_file_is_fetched_once_and_served_sealed(tmp_path: Path, upstream: Site) -> None:
    url = upstream.put("/releases/tool.tar", b"tool" * 100)
    pins = {url: hashlib.sha256(b"tool" * 100).hexdigest()}
    settings = Settings(tmp_path / "store", files=pins, inner=LOOPBACK)
    path = "files/" + url.replace("://", "/")
    with running(settings) as dmz:
        assert get(dmz.url + path)[1] == b"tool" * 100
        assert get(dmz.url + path)[1] == b"tool" * 100
        assert get(f"{dmz.url}files/http/127.0.0.1/other")[0] == 404
    assert len(upstream.requests) == 1
    with running(replace(settings, sealed=True)) as sealed:
        assert get(sealed.url + path)[1] == b"tool" * 100
    assert len(upstream.requests) == 1


def test_other_content_at_the_address_is_not_served(tmp_path: Path, upstream: Site) -> None:
    url = upstream.put("/releases/tool.tar", b"replaced" * 9000)
    settings = Settings(tmp_path / "store", files={url: hashlib.sha256(b"tool").hexdigest()}, inner=LOOPBACK)
    with running(settings) as dmz:
        assert not arrives(dmz.url + "files/" + url.replace("://", "/"))
