"""How the mirror treats upstreams of any kind: credentials, limits, and upstreams that do not answer."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.egress.asking import expire, get
from tests.egress.python_index import Index
from tests.egress.registry import INDEX, Registry, digest_of
from tests.egress.running import LOOPBACK, Running, running
from tests.egress.upstream import Reply, Site, site
from tproxy.egress.gather import lists
from tproxy.egress.mirror.settings import Credential, Settings

BASIC = "Basic " + b64encode(b"user:password").decode()


@pytest.fixture
def other() -> Iterator[Site]:
    with site() as found:
        yield found


def test_a_credential_goes_to_its_realm_and_not_after_a_redirect_to_another(
    tmp_path: Path, upstream: Site, other: Site
) -> None:
    index = Index(upstream)
    content = index.add("demo", "1.0")
    other.put("/elsewhere.whl", content)
    away = Reply(status=302, headers={"Location": f"{other.url}elsewhere.whl"})
    upstream.pages["/packages/demo-1.0-py3-none-any.whl"] = away
    credentials = (Credential(upstream.url, "user", "password"),)
    settings = Settings(tmp_path / "store", pypi=index.url, inner=LOOPBACK, credentials=credentials)
    with running(settings) as mirror:
        assert get(f"{mirror.url}pypi/files/demo/demo-1.0-py3-none-any.whl")[1] == content
    assert {headers.get("Authorization") for _, headers in upstream.requests} == {BASIC}
    assert [headers.get("Authorization") for _, headers in other.requests] == [None]


def test_a_token_realm_elsewhere_gets_no_credential_of_the_registry(
    tmp_path: Path, upstream: Site, other: Site
) -> None:
    """The registry's challenge names a realm that nobody has configured."""
    registry = Registry(upstream, token="secret")
    registry.add("library/alpine", "3")
    challenge = f'Bearer realm="{other.url}token",service="registry"'
    upstream.answer = lambda path, headers: Reply(status=401, headers={"WWW-Authenticate": challenge})
    credentials = (Credential(f"{upstream.url}token", "user", "password"),)
    settings = Settings(
        tmp_path / "store", oci={"docker.io": upstream.url}, inner=LOOPBACK, credentials=credentials
    )
    with running(settings) as mirror:
        assert get(f"{mirror.url}v2/docker.io/library/alpine/manifests/3")[0] == 502
    assert [headers.get("Authorization") for _, headers in other.requests] == [None]


def test_a_date_at_which_to_ask_again_is_passed_on_in_seconds(tmp_path: Path, upstream: Site) -> None:
    index = Index(upstream)
    upstream.limited, upstream.retry_after = 9, formatdate(4_000_000_000, usegmt=True)
    with running(Settings(tmp_path / "store", pypi=index.url, inner=LOOPBACK)) as mirror:
        status, _, headers = get(f"{mirror.url}pypi/simple/demo/")
        assert (status, int(headers["Retry-After"]) > 86_400) == (429, True)
        assert len(upstream.requests) == 1


def test_a_mirror_starts_while_upstream_is_dead_and_serves_what_it_has_however_old(
    tmp_path: Path, upstream: Site
) -> None:
    registry = Registry(upstream)
    image = registry.add("library/alpine", "3")
    parts = [f"manifests/{digest_of(each)}" for each in (image.index, *image.manifests)]
    parts += ["manifests/3", *(f"blobs/{digest_of(each)}" for each in image.layers)]
    settings = Settings(tmp_path / "store", oci={"docker.io": upstream.url}, inner=LOOPBACK)
    with running(settings) as mirror:
        for part in parts:
            assert get(f"{mirror.url}v2/docker.io/library/alpine/{part}", INDEX)[0] == 200
        mirror.run(expire(mirror))
    upstream.stop()
    with running(settings) as mirror:
        for part in parts:
            assert get(f"{mirror.url}v2/docker.io/library/alpine/{part}", INDEX)[0] == 200


def test_while_a_registry_hangs_what_is_kept_is_served(
    tmp_path: Path, upstream: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(upstream)
    index = registry.add("library/alpine", "3").index
    settings = Settings(tmp_path / "store", oci={"docker.io": upstream.url}, inner=LOOPBACK)
    with running(settings) as mirror:
        url = f"{mirror.url}v2/docker.io/library/alpine"
        assert get(f"{url}/manifests/3")[1] == index
        mirror.run(expire(mirror))
        monkeypatch.setattr("tproxy.egress.mirror.upstream.PATIENCE", 0.05)
        upstream.delay = 5
        assert get(f"{url}/manifests/3")[1] == index
        assert get(f"{url}/manifests/{digest_of(index)}")[1] == index
    with running(replace(settings, sealed=True)) as sealed:
        assert get(f"{sealed.url}v2/docker.io/library/alpine/manifests/3")[1] == index


def test_what_is_missing_makes_a_list_for_the_next_bundle(tmp_path: Path) -> None:
    sha256 = "a" * 64
    url = "https://host.example/tool.tgz"
    registries = {"docker.io": "https://registry-1.docker.io/", "quay.io": "https://quay.io/"}
    settings = Settings(tmp_path / "store", sealed=True, files={url: sha256}, oci=registries)
    paths = {
        "pypi/simple/requests/": "pypi requests",
        "pypi/files/demo/demo-1.0-py3-none-any.whl": "pypi demo==1.0",
        # The name of a file lacks the epoch, so the version is not known.
        "deb/deb.debian.org/debian/pool/main/t/tool/tool_2.0_all.deb": "deb tool",
        "deb/deb.debian.org/debian/dists/trixie/InRelease": "",
        "v2/docker.io/library/alpine/manifests/3": "oci docker.io/library/alpine:3",
        f"v2/quay.io/org/app/manifests/sha256:{sha256}": f"oci quay.io/org/app@sha256:{sha256}",
        "galaxy/api/v3/collections/acme/tools/versions/": "galaxy acme.tools",
        "galaxy/api/v3/collections/acme/tools/versions/2.0.0/": "galaxy acme.tools:2.0.0",
        "galaxy/api/v1/roles/?owner__username=acme&name=web": "role acme.web",
        "galaxy/api/v1/roles/7/versions/": "",
        "files/https/host.example/tool.tgz": f"file {url} {sha256}",
        "files/https/host.example/of-no-known-hash": "",
    }
    with running(settings) as mirror:
        for path in paths:
            assert get(f"{mirror.url}{path}")[0] == 404, path
        found = mirror.run(want_list(mirror))
    assert {str(item) for item in lists.read(found)} == {*paths.values()} - {""}


async def want_list(mirror: Running) -> str:
    return json.dumps(mirror.store.wanted())


def test_one_endpoint_serves_several_registries_by_ns_prefix_and_host(
    tmp_path: Path, upstream: Site, other: Site
) -> None:
    first, second = Registry(upstream), Registry(other)
    expected = {
        "docker.io": first.add("org/app", "1").index,
        "quay.io": second.add("org/app", "1", size=2000).index,
    }
    assert len(set(expected.values())) == 2
    settings = Settings(
        tmp_path / "store", oci={"docker.io": upstream.url, "quay.io": other.url}, inner=LOOPBACK
    )
    with running(settings) as mirror:
        for registry, index in expected.items():
            assert get(f"{mirror.url}v2/org/app/manifests/1?ns={registry}")[1] == index
            assert get(f"{mirror.url}v2/{registry}/org/app/manifests/1")[1] == index
            assert get(f"{mirror.url}v2/org/app/manifests/1", Host=registry)[1] == index
            tags = json.loads(get(f"{mirror.url}v2/org/app/tags/list", Host=registry)[1])
            assert tags == {"name": "org/app", "tags": ["1"]}
        assert get(f"{mirror.url}v2/org/app/manifests/1")[0] == 404
