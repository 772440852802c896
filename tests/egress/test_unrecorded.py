"""What cannot be recorded is not served: a full ledger, and nobody who writes it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.egress.node import Node
from tests.egress.official import publish
from tests.egress.up import TPROXY, up

POLICY = """\
rules:
  - networks: [build]
    pypi: [good]
    get: ["https://host.example/releases/*"]
tunnel: [{host: pinned.example, networks: [build]}]
"""
A = "https://host.example/releases/a"
GONE = "https://host.example/releases/gone"


class Kept(Node):
    """A node whose ledger is on a disk of its own, which has 512 kB."""

    def start_all(self) -> None:
        ledger = self.layout.ledger
        ledger.mkdir(parents=True)
        child = up(self, f"mount -t tmpfs -o size=512k ledger {ledger}")
        self.disk = Path(f"/proc/{child.pid}/root{ledger}")
        self.mirror = next(
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if (words := command(pid)) and "mirror" in words and str(self.root) in words
        )

    def ledger(self) -> list[dict[str, Any]]:
        paths = sorted(self.disk.glob("ledger-*.jsonl"))
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    def verify(self) -> str:
        # In the mount namespace of the node, where the ledger is.
        inside = ("nsenter", f"--mount=/proc/{self.mirror}/ns/mnt")
        return self.run(*inside, *TPROXY, "log", "--verify", "--root", str(self.root)).stdout


def command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


@pytest.fixture(scope="module")
def node(engines: None) -> Iterator[Kept]:
    node = Kept(POLICY, mirror=True, squid=False)
    with node:
        publish(node, "good", "1.0")
        node.site("host.example", "/releases/a", "file a\n")
        node.site("pinned.example", "/x", "pinned\n")
        node.start_all()
        yield node


@pytest.fixture(scope="module")
def build(node: Kept) -> str:
    return node.caller(network="build", bridge="br0", bridge_port="vnet1")


def own(node: Kept) -> tuple[str, ...]:
    return ("--cacert", str(node.root / "sites-ca.pem"))


def test_each_decision_is_in_the_ledger_before_the_answer(node: Kept, build: str) -> None:
    """The client has its answer when the test looks, so there is nothing to wait for."""
    for url, verdict, options in (
        (A, "begun", ()),
        (GONE, "begun", ()),
        ("https://host.example/secret", "denied", ()),
        ("https://pypi.org/simple/evil/", "denied", ()),
        ("https://pinned.example/x", "begun", own(node)),
    ):
        before = len(node.ledger())
        node.curl(build, url, *options)
        what = url.rstrip("/").rpartition("/")[2] if "pypi" in url else url.partition("/x")[0][8:]
        found = [each for each in node.ledger()[before:] if each["verdict"] == verdict]
        assert [each["port"] for each in found if what in each["name"]] == ["vnet1"], url


def test_how_it_ended_follows_with_its_bytes(node: Kept, build: str) -> None:
    before = len(node.ledger())
    node.curl(build, A)
    node.curl(build, GONE)

    def ends() -> dict[str, dict[str, Any]]:
        return {
            each["name"]: each for each in node.ledger()[before:] if each["verdict"] in ("allowed", "ended")
        }

    node.wait_for(lambda: {A, GONE} <= ends().keys(), "both ends")
    assert (ends()[A]["verdict"], ends()[GONE]["verdict"]) == ("allowed", "ended")
    assert ends()[A]["bytes"] > 7
    assert ends()[GONE]["reason"] == "the answer was 404"


def test_with_a_full_ledger_nothing_is_served_and_denials_say_why_until_there_is_room(
    node: Kept, build: str
) -> None:
    assert node.pip_download(build, "good").returncode == 0
    filler = node.disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    try:
        urls = (A, "https://host.example/secret", "https://pypi.org/simple/evil/")
        # The last page of the ledger's file may have room for some entries, the short ones.

        def is_full() -> bool:
            tunnel = node.curl(build, "https://pinned.example/x", *own(node))
            return tunnel[1] != "pinned\n" and all(node.curl(build, url)[0] == 503 for url in urls)

        node.wait_for(is_full, "the ledger is full")
        asked = len(node.requests())
        for url in urls:
            status, page = node.curl(build, url)
            assert status == 503
            assert "cannot be recorded now, so it is not served" in page
        assert node.curl(build, "https://pinned.example/x", *own(node))[1] != "pinned\n"
        assert node.pip_download(build, "good").returncode != 0
        assert len(node.requests()) == asked
    finally:
        filler.unlink()
    assert node.curl(build, A) == (200, "file a\n")
    assert node.pip_download(build, "good").returncode == 0
    node.wait_for(
        lambda: any(each.get("reason") == "the ledger could not be written then" for each in node.ledger()),
        "what was refused is recorded when there is room",
    )
    assert "is whole" in node.verify()


def test_while_nobody_writes_the_ledger_nothing_is_served(node: Kept, build: str) -> None:
    os.kill(node.mirror, signal.SIGSTOP)
    try:
        status, page = node.curl(build, A)
        assert status == 503
        assert "cannot be recorded now" in page
    finally:
        os.kill(node.mirror, signal.SIGCONT)
    node.wait_for(lambda: node.curl(build, A) == (200, "file a\n"), "it is served again")
    assert "is whole" in node.verify()
