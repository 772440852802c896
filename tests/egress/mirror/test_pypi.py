"""The mirror of a Python index, with pip, uv and curl as clients."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.egress.asking import arrives, expire, get, wanted
from tests.egress.python_index import Index
from tests.egress.running import GUEST, LOOPBACK, Running, relay, running
from tests.egress.upstream import Reply, Site
from tproxy.egress.mirror.settings import Settings
from tproxy.egress.model import Artifact, Caller
from tproxy.errors import TproxyError

UV = Path(sys.executable).with_name("uv")


@pytest.fixture
def index(upstream: Site) -> Index:
    return Index(upstream)


@pytest.fixture
def settings(tmp_path: Path, index: Index) -> Settings:
    return Settings(tmp_path / "store", pypi=index.url, inner=LOOPBACK)


@pytest.fixture
def mirror(settings: Settings) -> Iterator[Running]:
    with running(settings) as found:
        yield found


def pip(url: str, target: Path, *packages: str, fails: bool = False) -> str:
    """Install packages with the real pip, which knows this index only. Return what it printed."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "HOME": str(target)}
    command = [sys.executable, "-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--index-url", f"{url}pypi/simple/", "--retries=0", "--target", str(target), *packages]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def uv(url: str, target: Path, *packages: str, fails: bool = False) -> str:
    """Install packages with the real uv, which is quicker than pip."""
    command = [str(UV), "pip", "install", "--no-cache", "--no-config", "--target", str(target), *packages]
    command += ["--index-url", f"{url}pypi/simple/", "--python", sys.executable]
    environment = {**os.environ, "HOME": str(target), "UV_HTTP_RETRIES": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr


def test_pip_installs_through_the_mirror_and_the_second_time_without_upstream(
    mirror: Running, index: Index, tmp_path: Path
) -> None:
    index.add("base", "1.0")
    index.add("demo", "2.0", "base>=1")
    pip(mirror.url, tmp_path / "one", "demo")
    assert (tmp_path / "one" / "base.py").exists()
    before = len(index.site.requests)
    pip(mirror.url, tmp_path / "two", "demo")
    assert (tmp_path / "two" / "demo.py").read_text() == "VERSION = '2.0'\n"
    assert len(index.site.requests) == before
    assert {event.purl.partition("?")[0] for event in mirror.events} == {
        "pkg:pypi/base@1.0",
        "pkg:pypi/demo@2.0",
    }
    assert {event.sha256 for event in mirror.events if event.file.endswith(".whl")} == {
        hashlib.sha256(content).hexdigest() for files in index.projects.values() for _, _, content, _ in files
    }


def test_uv_installs_by_the_metadata_beside_wheels(mirror: Running, index: Index, tmp_path: Path) -> None:
    index.add("base", "1.0")
    index.add("demo", "2.0", "base")
    uv(mirror.url, tmp_path / "x", "demo")
    assert (tmp_path / "x" / "demo.py").exists()
    assert index.site.count(".metadata") == 2


def test_an_index_that_knows_only_html_is_offered_in_json_too(
    settings: Settings, index: Index, mirror: Running, tmp_path: Path
) -> None:
    index.json_too = False
    content = index.add("demo", "1.0")
    _, body, _ = get(f"{mirror.url}pypi/simple/demo/", "application/vnd.pypi.simple.v1+json")
    (file,) = json.loads(body)["files"]
    assert file["hashes"] == {"sha256": hashlib.sha256(content).hexdigest()}
    assert file["requires-python"] == ">=3.8"
    uv(mirror.url, tmp_path / "one", "demo")


def test_denied_versions_are_not_listed_and_not_served(mirror: Running, index: Index, tmp_path: Path) -> None:
    index.add("demo", "1.0")
    index.add("demo", "2.0")
    mirror.deny = lambda caller, artifact: artifact.version == "2.0"
    uv(mirror.url, tmp_path / "one", "demo")
    assert (tmp_path / "one" / "demo.py").read_text() == "VERSION = '1.0'\n"
    status, body, _ = get(f"{mirror.url}pypi/files/demo/demo-2.0-py3-none-any.whl")
    assert status == 403
    assert b"pypi demo 2.0 is denied" in body
    assert mirror.events[-1].verdict == "denied"
    assert index.site.count("demo-2.0") == 0


def test_a_denied_project_is_named_with_its_network(mirror: Running, index: Index) -> None:
    index.add("demo", "1.0")
    mirror.deny = lambda caller, artifact: caller.network == "hosts"
    status, body, _ = get(f"{mirror.url}pypi/simple/demo/")
    assert (status, b"no rule for hosts allows it" in body) == (403, True)
    assert index.site.requests == []


def test_two_networks_with_one_address_get_what_their_own_rules_allow(
    mirror: Running, index: Index, tmp_path: Path
) -> None:
    index.add("demo", "1.0")
    other = replace(GUEST, network="vnet2", port="vnet2-0")
    mirror.deny = lambda caller, artifact: caller.network != "vnet1"
    with relay(mirror.guests, GUEST) as allowed, relay(mirror.guests, other) as denied:
        uv(f"http://127.0.0.1:{allowed}/", tmp_path / "one", "demo")
        uv(f"http://127.0.0.1:{denied}/", tmp_path / "two", "demo", fails=True)
    assert {(event.network, event.port, event.verdict) for event in mirror.events} == {
        ("vnet1", "vnet1-0", "allowed"),
        ("vnet2", "vnet2-0", "denied"),
    }


def test_on_the_guests_port_no_header_means_no_answer(mirror: Running, index: Index) -> None:
    index.add("demo", "1.0")
    with pytest.raises((OSError, urllib.error.URLError)):
        get(f"http://127.0.0.1:{mirror.guests}/pypi/simple/demo/")
    assert index.site.requests == []


def test_headers_that_name_a_caller_count_only_on_squids_port(mirror: Running, index: Index) -> None:
    index.add("demo", "1.0")
    callers: list[Caller] = []

    def note(caller: Caller, artifact: Artifact) -> bool:
        callers.append(caller)
        return False

    mirror.deny = note
    get(f"{mirror.url}pypi/simple/demo/", **{"Tproxy-Network": "vnet1"})
    with relay(mirror.guests, GUEST) as port:
        get(f"http://127.0.0.1:{port}/pypi/simple/demo/", **{"Tproxy-Network": "vnet9"})
    assert {caller.network for caller in callers} == {"hosts", "vnet1"}


def test_many_clients_at_once_make_one_request_upstream(mirror: Running, index: Index) -> None:
    content = index.add("demo", "1.0", size=3_000_000)
    index.site.gate = threading.Event()
    url = f"{mirror.url}pypi/files/demo/demo-1.0-py3-none-any.whl"
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(get, url) for _ in range(10)]
        while mirror.mirror.counts["misses"] < 10:
            pass
        index.site.gate.set()
        assert all(each.result()[1] == content for each in answers)
    assert index.site.count("/packages/") == 1
    assert len(mirror.events) == 10


def test_ranges_are_served(mirror: Running, index: Index) -> None:
    content = index.add("demo", "1.0", size=100_000)
    url = f"{mirror.url}pypi/files/demo/demo-1.0-py3-none-any.whl"
    for _ in ("a miss", "a hit"):
        status, body, headers = get(url, Range="bytes=1000-1999")
        assert (status, body) == (206, content[1000:2000])
        assert headers["Content-Range"] == f"bytes 1000-1999/{len(content)}"


def test_upstream_that_limits_us_is_asked_again_later(mirror: Running, index: Index, tmp_path: Path) -> None:
    index.add("demo", "1.0")
    index.site.limited = 2
    uv(mirror.url, tmp_path / "one", "demo")
    index.add("more", "1.0")
    index.site.limited, index.site.retry_after = 9, "600"
    status, _, headers = get(f"{mirror.url}pypi/simple/more/")
    assert (status, headers["Retry-After"]) == (429, "600")
    asked = len(index.site.requests)
    # For ten minutes it is left alone.
    assert get(f"{mirror.url}pypi/simple/more/")[0] == 429
    assert len(index.site.requests) == asked


def test_with_upstream_dead_everything_that_was_fetched_is_served(
    mirror: Running, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tproxy.egress.mirror.upstream.FRESH", 0)
    index.add("demo", "1.0")
    uv(mirror.url, tmp_path / "one", "demo")
    index.site.stop()
    uv(mirror.url, tmp_path / "two", "demo")
    assert (tmp_path / "two" / "demo.py").exists()
    status, body, _ = get(f"{mirror.url}pypi/simple/other/")
    assert (status, b"cannot be reached" in body) == (502, True)


def test_with_upstream_slow_a_kept_index_is_served_meanwhile(
    mirror: Running, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tproxy.egress.mirror.pypi.Recent.MOST", -1)
    index.add("demo", "1.0")
    url = f"{mirror.url}pypi/simple/demo/"
    _, first, _ = get(url)
    mirror.run(expire(mirror))
    monkeypatch.setattr("tproxy.egress.mirror.upstream.PATIENCE", 0.05)
    index.site.delay = 5
    assert get(url)[1] == first


def test_a_download_that_breaks_off_goes_on_where_it_was(mirror: Running, index: Index) -> None:
    content = index.add("demo", "1.0", size=2_000_000)
    index.site.cut = 1_500_000
    assert get(f"{mirror.url}pypi/files/demo/demo-1.0-py3-none-any.whl")[1] == content
    (first, second) = [headers for path, headers in index.site.requests if "/packages/" in path]
    assert "Range" not in first
    assert second["Range"].startswith("bytes=")


def test_nobody_gets_a_whole_file_with_a_wrong_hash(mirror: Running, index: Index) -> None:
    content = index.add("demo", "1.0", size=100_000)
    index.site.put("/packages/demo-1.0-py3-none-any.whl", content[:-1] + b"?")
    url = f"{mirror.url}pypi/files/demo/demo-1.0-py3-none-any.whl"
    assert not arrives(url)
    assert mirror.events == []
    index.site.put("/packages/demo-1.0-py3-none-any.whl", content)
    assert get(url)[1] == content


def test_a_damaged_blob_is_found_set_aside_and_fetched_again(mirror: Running, index: Index) -> None:
    content = index.add("demo", "1.0")
    url = f"{mirror.url}pypi/files/demo/demo-1.0-py3-none-any.whl"
    assert get(url)[1] == content
    path = mirror.settings.root / "blobs" / hashlib.sha256(content).hexdigest()[:2]
    (path / hashlib.sha256(content).hexdigest()).write_bytes(b"damaged")
    assert get(url)[1] == content
    assert index.site.count("/packages/") == 2
    assert len(list((mirror.settings.root / "quarantine").iterdir())) == 1


def test_what_cannot_be_recorded_is_not_served(mirror: Running, index: Index) -> None:
    index.add("demo", "1.0", size=100_000)
    url = f"{mirror.url}pypi/files/demo/demo-1.0-py3-none-any.whl"
    mirror.ledger_error = TproxyError("disk full")
    assert not arrives(url)
    status, body, _ = get(url)
    assert (status, b"cannot be recorded" in body) == (503, True)
    mirror.ledger_error = None
    assert get(url)[0] == 200


def test_sealed_without_upstream_serves_the_store_alone_and_notes_what_is_missing(
    settings: Settings, index: Index, tmp_path: Path
) -> None:
    index.add("base", "1.0")
    index.add("demo", "2.0", "base")
    with running(settings) as dmz:
        pip(dmz.url, tmp_path / "one", "demo")
    asked = len(index.site.requests)
    with running(replace(settings, sealed=True)) as sealed:
        pip(sealed.url, tmp_path / "two", "demo")
        out = pip(sealed.url, tmp_path / "three", "requests", fails=True)
        assert "No matching distribution found for requests" in out
        status, body, _ = get(f"{sealed.url}pypi/simple/requests/")
        assert status == 404
        assert b"pypi requests: it is not in the store of this sealed site" in body
        assert sealed.run(wanted(sealed)) == [("pypi", "requests", "")]
        assert sealed.mirror.upstreams is None
    assert len(index.site.requests) == asked


def test_at_the_official_name_links_lead_to_the_official_files(
    upstream: Site, index: Index, tmp_path: Path
) -> None:
    content = index.add("demo", "1.0")
    (filename, *_) = index.projects["demo"][0]
    named = Settings(tmp_path, pypi=index.url, pypi_files=(f"{upstream.url}packages/",), inner=LOOPBACK)
    host = upstream.url.split("/")[2]
    with running(named) as mirror:
        _, body, _ = get(f"{mirror.url}simple/demo/", "application/vnd.pypi.simple.v1+json", Host=host)
        (file,) = json.loads(body)["files"]
        assert file["url"] == f"{upstream.url}packages/{filename}"
        assert get(f"{mirror.url}packages/{filename}", Host=host)[1] == content


@pytest.mark.parametrize(
    "path",
    [
        "pypi/simple/..%2f..%2fetc/",
        "pypi/files/demo/..%2Fdemo-1.0-py3-none-any.whl",
        "pypi/files/demo/%2e%2e/x",
        "pypi//simple/demo/",
        "pypi/simple/demo%00/",
        "pypi/simple/demo%5c/",
        "pypi/simple/%252e%252e/",
    ],
)
def test_paths_with_two_meanings_are_refused(mirror: Running, path: str) -> None:
    assert get(mirror.url + path)[0] == 400


def test_other_methods_are_refused(mirror: Running) -> None:
    request = urllib.request.Request(f"{mirror.url}pypi/simple/demo/", method="POST", data=b"x")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    caught.value.close()
    assert caught.value.code == 400


def test_an_index_link_to_an_inner_address_is_not_followed(
    tmp_path: Path, index: Index, upstream: Site
) -> None:
    """127.0.0.1 is allowed here; the link leads to another inner address."""
    index.add("demo", "1.0")
    filename = "demo-1.0-py3-none-any.whl"
    page = {"files": [{"filename": filename, "url": "http://127.0.0.2:1/x.whl", "hashes": {}}]}
    upstream.answer = lambda path, headers: None
    upstream.put("/simple/demo/", json.dumps(page).encode())
    narrow = Settings(tmp_path / "narrow", pypi=index.url, inner=(ip_network("127.0.0.1/32"),))
    with running(narrow) as mirror:
        status, body, _ = get(f"{mirror.url}pypi/files/demo/{filename}")
        assert (status, b"127.0.0.2 is an inner address" in body) == (502, True)
    away = Reply(status=302, headers={"Location": "http://169.254.169.254/latest"})
    upstream.pages["/simple/demo/"] = away
    with running(replace(narrow, root=tmp_path / "other")) as mirror:
        status, body, _ = get(f"{mirror.url}pypi/simple/demo/")
        assert (status, b"169.254.169.254 is an inner address" in body) == (502, True)
