"""Limits of the policy, by bridge port: connections and bytes per second of guests that use the proxy."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.egress.node import Node
from tests.egress.up import up

CONTENT = bytes(range(256)) * 8000
SIZE = len(CONTENT)
POLICY = f"""\
limits: {{connections: 50}}
rules:
  - networks: [few, slow]
    files:
      - {{url: "https://host.example/known", sha256: {hashlib.sha256(CONTENT).hexdigest()}}}
      - {{url: "https://host.example/changed", sha256: {"0" * 64}}}
    get: ["https://host.example/releases/*", "http://host.example/releases/*"]
  - {{networks: [few], limits: {{connections: 2}}}}
  - {{networks: [slow], limits: {{bytes_per_second: 500k}}}}
tunnel: [{{host: pinned.example, networks: [few, slow]}}]
"""
A = "https://host.example/releases/a"
LARGE = "https://host.example/releases/large"


@pytest.fixture(scope="module")
def node(engines: None) -> Iterator[Node]:
    with Node(POLICY, mirror=True, squid=False) as node:
        node.site("host.example", "/known", CONTENT)
        node.site("host.example", "/changed", CONTENT)
        node.site("host.example", "/releases/a", "file a\n")
        node.site("host.example", "/releases/large", os.urandom(200_000_000))
        node.site("host.example", "/releases/paced", CONTENT, {"Cache-Control": "max-age=3600"})
        node.site("pinned.example", "/paced", CONTENT)
        node.site("pinned.example", "/large", os.urandom(200_000_000))
        up(node)
        yield node


@contextmanager
def downloads(node: Node, *each: tuple[str, ...]) -> Iterator[None]:
    """Let downloads be under way."""
    children: list[subprocess.Popen[str]] = []
    try:
        for number, words in enumerate(each):
            to = node.root / f"download-{number}"
            to.unlink(missing_ok=True)
            children.append(node.popen("curl", "-sS", "--limit-rate", "1M", "-o", str(to), *words))
            node.wait_for(lambda to=to: to.exists() and to.stat().st_size, "a download")
        yield
    finally:
        for child in children:
            child.terminate()
            child.wait()


def sites_certificate(node: Node) -> tuple[str, ...]:
    return ("--cacert", str(node.root / "sites-ca.pem"))


def test_a_guest_has_as_many_downloads_as_it_may_and_its_neighbour_too(node: Node) -> None:
    guest = node.caller(network="few", bridge="br0", bridge_port="vnet1")
    again = node.caller(address="10.0.0.77", network="few", bridge="br0", bridge_port="vnet1")
    neighbours = [
        node.caller(network="few", bridge="br0", bridge_port="vnet2"),
        node.caller(network="few", bridge="br1", bridge_port="vnet1"),
        node.caller(network="few", bridge="br0", bridge_port="vnet1", hypervisor="hv2"),
    ]
    ours = ("--cacert", str(node.trusted))
    with downloads(
        node,
        ("--proxy", guest, *ours, LARGE),
        ("--proxy", guest, *sites_certificate(node), "https://pinned.example/large"),
    ):
        for proxy in (guest, again):  # another address, and the same guest
            status, page = node.curl(proxy, A)
            assert status == 429
            assert "this guest has 2 connections already" in page
        for proxy in neighbours:
            assert node.curl(proxy, A) == (200, "file a\n")
    node.wait_for(lambda: node.curl(guest, A)[0] == 200, "the ends of both are known")


def test_transparent_connections_are_counted_too(node: Node) -> None:
    listen = node.caller(port=443, network="few", bridge="br9").rpartition(":")[2]
    to = ("--connect-to", f"host.example:443:127.0.0.1:{listen}", "--cacert", str(node.trusted))
    with downloads(node, (*to, LARGE), (*to, LARGE)):
        done = node.run("curl", "-sS", "-m", "20", *to, A, check=False)
        assert done.returncode != 0
        assert "file a" not in done.stdout
    node.wait_for(lambda: node.run("curl", "-sS", *to, A, check=False).stdout == "file a\n", "their ends")


def speed(node: Node, proxy: str, url: str, *options: str) -> float:
    """Return bytes per second. A slow machine makes it less, never more."""
    done = node.popen_curl(proxy, url, "-w", "\n%{speed_download} %{size_download}", *options)
    output, _ = done.communicate()
    rate, size = map(float, output.split()[-2:])
    assert size == SIZE
    return rate


def test_a_rate_counts_for_what_squid_has_for_tunnels_and_for_what_the_mirror_has(node: Node) -> None:
    slow = node.caller(network="slow", bridge="br0", bridge_port="vnet1")
    few = node.caller(network="few", bridge="br0", bridge_port="vnet3")
    paced = "https://host.example/releases/paced"
    assert node.curl(few, paced, "-o", "/dev/null")[0] == 200  # into squid's cache
    assert speed(node, slow, paced) < 1_000_000
    assert speed(node, slow, "https://pinned.example/paced", *sites_certificate(node)) < 1_000_000
    known = "https://host.example/known"
    assert node.curl(few, known, "-o", "/dev/null")[0] == 200  # into the mirror's store
    asked = len(node.requests("host.example"))
    assert speed(node, slow, known) < 1_000_000
    assert len(node.requests("host.example")) == asked


def test_a_file_with_another_hash_than_the_policys_is_not_served(node: Node) -> None:
    few = node.caller(network="few", bridge="br0", bridge_port="vnet4")
    to = node.root / "changed"
    options = ("--proxy", few, "--cacert", str(node.trusted), "-o", str(to))
    assert node.run("curl", "-sS", *options, "https://host.example/changed", check=False).returncode != 0
    assert not to.exists() or to.stat().st_size < SIZE  # it ends before the last byte
