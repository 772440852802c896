"""Where a hostile site leads the mirror: to inner addresses, and to what listens on the node itself."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.egress.asking import get
from tests.egress.running import running
from tests.egress.upstream import Reply, Site
from tproxy.egress.mirror.settings import Settings
from tproxy.egress.own_addresses import own_addresses
from tproxy.egress.policy.addresses import refused

INNER = (
    *("127.0.0.2", "10.0.0.1", "169.254.169.254", "169.254.16.9", "[::1]", "[::ffff:10.0.0.1]", "[fe80::1]"),
    *("0.0.0.0", "100.64.0.1"),
)


@pytest.fixture
def settings(tmp_path: Path, upstream: Site) -> Settings:
    """127.0.0.1 alone is allowed, and named."""
    return Settings(
        tmp_path / "store",
        pypi=f"{upstream.url}simple/",
        oci={"docker.io": upstream.url},
        galaxy=upstream.url,
        deb=(f"{upstream.url}debian/",),
        files={f"{upstream.url}file": "0" * 64},
        inner=(ip_network("127.0.0.1/32"),),
    )


def test_a_token_realm_at_an_inner_address_is_not_asked(settings: Settings, upstream: Site) -> None:
    with running(settings) as mirror:
        for number, address in enumerate(INNER):
            challenge = f'Bearer realm="http://{address}:1/token",service="registry"'
            refusal = Reply(status=401, headers={"WWW-Authenticate": challenge})
            upstream.answer = lambda path, headers, refusal=refusal: refusal  # type: ignore[misc]  # each its own
            status, body, _ = get(f"{mirror.url}v2/docker.io/library/image{number}/manifests/1")
            assert (status, b"is an inner address, which the policy does not name" in body) == (502, True)


@pytest.mark.parametrize(
    "path",
    [
        "pypi/simple/demo/",
        "v2/docker.io/library/a/manifests/1",
        "galaxy/api/v3/collections/a/b/",
        "FILE",
        "DEB",
    ],
)
def test_a_redirect_to_an_inner_address_is_not_followed(
    settings: Settings, upstream: Site, path: str
) -> None:
    host = upstream.url.removeprefix("http://").rstrip("/")
    path = {"FILE": f"files/http/{host}/file", "DEB": f"deb/{host}/debian/dists/bookworm/InRelease"}.get(
        path, path
    )
    upstream.answer = lambda path, headers: Reply(
        status=302, headers={"Location": "http://169.254.169.254/latest/meta-data"}
    )
    with running(settings) as mirror:
        status, body, _ = get(f"{mirror.url}{path}")
        assert (status, b"169.254.169.254 is an inner address" in body) == (502, True)


def test_an_address_of_the_node_itself_is_refused_although_it_is_one_of_the_internet(tmp_path: Path) -> None:
    """In a network namespace of its own, which has such an address."""
    program = "from tproxy.egress.own_addresses import own_addresses; print(*own_addresses())"
    script = "ip link set lo up && ip address add 93.184.215.15/32 dev lo"
    script += f" && exec '{sys.executable}' -c '{program}'"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, check=True
    )
    own = frozenset(done.stdout.split())
    assert refused("93.184.215.15", (), own) == "is an address of this node"
    assert not refused("93.184.215.15", (ip_network("93.184.215.15/32"),), own)
    assert "127.0.0.1" in own_addresses()
