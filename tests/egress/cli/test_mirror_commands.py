"""The commands of mirror, bundle and audit, as an operator calls them, with a mirror that runs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.egress.asking import get
from tests.egress.python_index import Index
from tests.egress.running import GUEST, relay
from tests.egress.upstream import Site, site
from tests.netns.waiting import eventually
from tproxy.egress import sbom

TPROXY = str(Path(sys.executable).with_name("tproxy"))


class ControlConnection(HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("mirror")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


class Operator:
    """A node below a directory, with its commands."""

    def __init__(self, root: Path, index: Index, mode: str = "dmz") -> None:
        self.root, self.index = root, index
        self.write(mode)

    def write(self, mode: str, pypi: str = "[demo, base]") -> None:
        (self.root / "etc").mkdir(parents=True, exist_ok=True)
        # A policy names hosts by names, not by addresses.
        site = self.index.site.url.replace("127.0.0.1", "localhost")
        (self.root / "etc" / "egress.yaml").write_text(
            f"mode: {mode}\n"
            f"inner: [127.0.0.1]\n"
            f"upstreams:\n  pypi_index: {site}simple/\n  pypi_files: [{site}packages/]\n"
            f"rules:\n- networks: [vnet1]\n  pypi: {pypi}\n"
        )

    def __call__(self, *words: str, code: int = 0, text: str = "") -> str:
        done = self.run(*words, text=text)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def run(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "TPROXY_EGRESS_ROOT": str(self.root)}
        return subprocess.run(
            [TPROXY, "egress", *words],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            input=text,
        )

    @contextmanager
    def serving(self, *options: str) -> Iterator[str]:
        """Run the mirror, and yield the address at which everyone is the guest of vnet1."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        command = [TPROXY, "egress", "mirror", "run", f"--guests-port={port}", *options]
        environment = {**os.environ, "TPROXY_EGRESS_ROOT": str(self.root)}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            while line and "the mirror listens" not in line:
                line = process.stderr.readline()
            assert line, "the mirror did not start"
            with relay(port, GUEST) as at:
                yield f"http://127.0.0.1:{at}/"
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0
            process.stderr.close()

    def control(self, method: str, path: str) -> tuple[int, Any]:
        connection = ControlConnection(self.root / "run" / "mirror.sock")
        connection.request(method, path)
        with connection.getresponse() as answer:
            body = answer.read()
        connection.close()
        return answer.status, json.loads(body) if body[:1] in b"[{" else body


@pytest.fixture
def index(upstream: Site) -> Index:
    found = Index(upstream)
    found.add("base", "1.0")
    found.add("demo", "2.0", "base")
    return found


@pytest.fixture
def node(tmp_path: Path, index: Index) -> Operator:
    return Operator(tmp_path / "node", index)


def wheel(url: str, name: str = "demo-2.0") -> tuple[int, bytes]:
    status, body, _ = get(f"{url}pypi/files/{name.partition('-')[0]}/{name}-py3-none-any.whl")
    return status, body


def test_what_is_kept_in_advance_is_there_without_upstream(node: Operator) -> None:
    assert "is kept in advance\n" in node("mirror", "add", "pypi", "demo>=2")
    assert "already" in node("mirror", "add", "pypi", "demo>=2")
    assert node("mirror", "list") == "pypi demo>=2\n"
    node("mirror", "add", "pypi", "absent")
    assert "is not kept in advance" in node("mirror", "update", "pypi", "base", code=1)
    node("mirror", "update", "pypi", "demo>=2")
    node("mirror", "remove", "pypi", "absent")
    node.index.site.stop()
    with node.serving() as url:
        assert wheel(url)[0] == 200
        assert wheel(url, "base-1.0")[0] == 200
    node("mirror", "remove", "pypi", "demo>=2")
    node("mirror", "remove", "pypi", "demo>=2", code=1)
    node("mirror", "add", "pypi", "--", "-x", code=1)
    node("mirror", "verify")


def test_the_socket_does_the_same(node: Operator) -> None:
    with node.serving():
        assert node.control("POST", "/kept?kind=pypi&name=demo") == (201, {"added": True})
        assert node.control("GET", "/kept")[1] == [{"kind": "pypi", "name": "demo"}]
        assert node.control("POST", "/kept?kind=npm&name=demo")[0] == 400
        assert node.control("POST", "/update?kind=pypi&name=base")[0] == 400
        assert node.control("POST", "/update?kind=pypi&name=demo") == (200, {"missing": []})
        assert node.control("POST", "/update") == (200, {"missing": []})
        status = node.control("GET", "/status")[1]
        assert (status["mode"], status["kept"], status["bytes"] > 0) == ("dmz", 1, True)
        assert node.control("DELETE", "/kept?kind=pypi&name=demo")[0] == 200
        mode = (node.root / "run" / "mirror.sock").stat().st_mode & 0o777
        assert mode == 0o600


def test_what_is_kept_is_updated_by_a_timer(node: Operator) -> None:
    node("mirror", "add", "pypi", "base")
    with node.serving("--update-every", "1s"):
        for _ in eventually():
            if node.control("GET", "/status")[1]["bytes"]:
                break
    assert node.index.site.count("/packages/base") == 1


def test_a_second_update_ends_with_its_own_code_and_names_the_first(node: Operator) -> None:
    node("mirror", "add", "pypi", "demo")
    node.index.site.delay = 0.5
    environment = {**os.environ, "TPROXY_EGRESS_ROOT": str(node.root)}
    first = subprocess.Popen([TPROXY, "egress", "mirror", "update"], env=environment)
    lock = node.root / "state/store/update.lock"
    for _ in eventually():
        if lock.exists() and "process" in lock.read_text():
            break
    assert f"an update is running: process {first.pid}, since" in node("mirror", "update", code=75)
    assert first.wait() == 0
    node.index.site.delay = 0
    node("mirror", "update")
    with node.serving(), lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert node.control("POST", "/update")[0] == 409


def test_a_change_of_the_policy_counts_at_once_and_drops_no_download(node: Operator) -> None:
    with node.serving() as url:
        assert wheel(url)[0] == 200
        node.write("dmz", pypi="[base]")
        for _ in eventually():
            if wheel(url)[0] == 403:
                break
        assert wheel(url, "base-1.0")[0] == 200


def test_the_mode_can_change_to_sealed_while_it_runs(node: Operator) -> None:
    with node.serving() as url:
        assert wheel(url)[0] == 200
        node.write("sealed")
        for _ in eventually():
            if node.control("GET", "/status")[1]["mode"] == "sealed":
                break
        asked = len(node.index.site.requests)
        assert wheel(url)[0] == 200
        assert get(f"{url}pypi/simple/base/")[0] == 404
        assert len(node.index.site.requests) == asked
    wants = json.loads(node("mirror", "wanted", "--json"))
    assert [(each["name"], each["network"]) for each in wants] == [("base", "vnet1")]


def test_log_sbom_and_report_show_what_was_fetched_and_denied(node: Operator, tmp_path: Path) -> None:
    with node.serving() as url:
        _, content = wheel(url)
        assert get(f"{url}pypi/simple/requests/")[0] == 403
        assert get(f"{url}pypi/simple/requests/")[0] == 403
    assert "the chain of 3 entries is whole; 1 signed heads agree" in node("log", "--verify")
    denied = node("log", "--denied", "--since", "1h")
    assert denied.startswith("     2 denied pypi requests: network vnet1, guests 10.0.0.1")
    assert node("log", "--network", "vnet2") == ""
    bills = {
        words: node.run("sbom", *words).stdout
        for words in (("--network", "vnet1"), ("--guest", "10.0.0.1"), ("--guest", "10.9.9.9"), ())
    }
    for text in bills.values():
        sbom.check(text)
        assert "Fetched does not mean installed" in text
    assert json.loads(bills["--guest", "10.0.0.1"])["components"]
    (component,) = json.loads(bills["--network", "vnet1"])["components"]
    assert component["purl"].startswith("pkg:pypi/demo@2.0")
    assert component["hashes"][0]["content"] == hashlib.sha256(content).hexdigest()
    assert "components" not in json.loads(bills["--guest", "10.9.9.9"])
    page = tmp_path / "report.html"
    node("report", "--output", str(page))
    assert "requests" in page.read_text()
    assert "pkg:pypi/demo@2.0" in node("log", "--csv")
    ledger = next((node.root / "state/ledger").glob("ledger-*.jsonl"))
    ledger.write_bytes(ledger.read_bytes().replace(b'"pypi"', b'"pypl"', 1))
    assert "one of them was changed" in node("log", "--verify", code=1)


def test_a_bundle_from_list_to_rollback(node: Operator, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("pypi absent\npypi demo\n")
    out = node("bundle", "create", str(listed), "--output", str(tmp_path / "b.tar"), code=1)
    assert "missing: pypi absent for Python 3.11" in out
    assert "no bundle was made: 1 missing" in out
    assert not (tmp_path / "b.tar").exists()
    listed.write_text("pypi demo\n")
    node("bundle", "create", str(listed), "--output", str(tmp_path / "b.tar"), "--part-size", "4K")
    fingerprint = node("bundle", "key").strip()
    with site() as nowhere:
        sealed = Operator(tmp_path / "sealed", Index(nowhere), "sealed")
        assert f"give --trust {fingerprint}" in sealed("bundle", "verify", str(tmp_path / "b.tar"), code=1)
        sealed("bundle", "import", str(tmp_path / "b.tar"), "--trust", fingerprint)
        sealed("bundle", "verify", str(tmp_path / "b.tar"))
        with sealed.serving() as url:
            assert wheel(url)[0] == 200
            assert wheel(url, "base-1.0")[0] == 200
        assert nowhere.requests == []
        assert sealed("bundle", "list").startswith("* 1 ")
        listed.write_text("pypi base\n")
        node("bundle", "create", str(listed), "--output", str(tmp_path / "c.tar"), "--base", "1")
        sealed("bundle", "import", str(tmp_path / "c.tar"), "--scan", "false", code=1)
        sealed("bundle", "import", str(tmp_path / "c.tar"))
        assert "- pkg:pypi/demo@2.0" in sealed("bundle", "diff", "1", "2")
        assert "bundle 1 is active" in sealed("bundle", "rollback")
        bill = sealed.run("sbom", "--bundle", "1").stdout
        sbom.check(bill)
        found = json.loads(bill)
        assert {each["name"] for each in found["components"]} == {"demo", "base"}
