"""The mirror behind squid: a guest's client asks the official site, and the mirror answers by the policy."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.egress.node import Node
from tests.egress.official import publish
from tproxy.egress.policy import reader
from tproxy.egress.service import preparation

RULES = """\
rules:
  - networks: [build]
    pypi: [good, "old<2"]
"""


def start_mirror(node: Node) -> None:
    """Run the mirror in the node's namespace, where the official sites have the test's addresses."""
    mirror = f"exec {sys.executable} -m tproxy egress mirror run --root {node.root}"
    command = f"mount --bind {node.root}/hosts /etc/hosts && {mirror}"
    node.start("unshare", "--mount", "sh", "-c", command, ready="")
    node.wait_for(lambda: node.listens(3190), "the mirror listens")


@pytest.fixture(scope="module")
def node(engines: None) -> Iterator[Node]:
    with Node(RULES, mirror=True, squid=False) as node:
        publish(node, "good", "1.0")
        publish(node, "old", "1.5", "2.0")
        publish(node, "bad", "1.0")
        preparation.prepare(reader.load(node.policy), node.surroundings)
        start_mirror(node)
        node.start_squid()
        yield node


@pytest.fixture(scope="module")
def build(node: Node) -> str:
    return node.caller(network="build", mac="02:00:00:00:00:01", bridge="br0")


def ledger(node: Node) -> list[dict[str, object]]:
    found = []
    for path in sorted((node.layout.state / "ledger").glob("ledger-*.jsonl")):
        found += [json.loads(line) for line in path.read_text().splitlines()]
    return found


def test_pip_installs_by_the_official_names_and_the_second_time_without_the_site(
    node: Node, build: str
) -> None:
    done = node.pip_download(build, "good")
    assert done.returncode == 0, done.stdout + done.stderr
    asked = len(node.requests())
    done = node.pip_download(build, "good")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(node.requests()) == asked
    served = [entry for entry in ledger(node) if entry.get("verdict") == "allowed"]
    assert served
    assert {(entry["network"], entry["guest"], entry["mac"]) for entry in served} == {
        ("build", "10.0.0.5", "02:00:00:00:00:01")
    }
    assert str(served[0]["rule"]).startswith("egress.yaml:")


def test_a_version_that_is_denied_is_not_listed(node: Node, build: str) -> None:
    done = node.pip_download(build, "old")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "old-1.5" in done.stdout + done.stderr
    assert node.pip_download(build, "bad").returncode != 0


def test_other_networks_get_nothing(node: Node) -> None:
    office = node.caller(network="office")
    status, _ = node.curl(office, "https://pypi.org/simple/good/")
    assert status == 403


def test_a_guest_cannot_name_another_caller_in_headers(node: Node, build: str) -> None:
    before = len(ledger(node))
    status, _ = node.curl(build, "https://pypi.org/simple/bad/", "-H", "Tproxy-Network: office")
    assert status == 403
    status, _ = node.curl(build, "https://pypi.org/simple/good/", "-H", "Tproxy-Network: office")
    assert status == 200
    # What squid denied before, to other callers, may get into the ledger only now.
    found = [entry for entry in ledger(node)[before:] if entry.get("name") in ("bad", "good")]
    assert {entry.get("network") for entry in found if entry["verdict"] == "allowed"} <= {"build"}


def test_only_squid_may_speak_to_its_port_of_the_mirror(node: Node) -> None:
    done = node.run(
        "curl",
        "-sk",
        "-m",
        "10",
        "-H",
        "Tproxy-Network: build",
        "https://127.0.0.1:3190/simple/good/",
        check=False,
    )
    assert done.returncode != 0
    assert "good" not in done.stdout


def test_sealed_answers_from_the_store_and_names_what_is_missing(node: Node, build: str) -> None:
    node.pip_download(build, "good")
    text = node.policy.read_text()
    asked = len(node.requests())
    node.write_policy(f"mode: sealed\n{text}")
    try:
        socket = node.layout.run / "mirror.sock"
        status = ("curl", "-s", "--unix-socket", str(socket), "http://mirror/status")
        node.wait_for(lambda: '"sealed"' in node.run(*status).stdout, "sealed")
        assert node.pip_download(build, "good").returncode == 0
    finally:
        node.write_policy(text)
    assert len(node.requests()) == asked
