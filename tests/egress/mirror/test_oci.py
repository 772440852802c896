"""The mirror of container registries, with skopeo and curl's requests as clients."""

from __future__ import annotations

import hashlib
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.egress.asking import expire, get, wanted
from tests.egress.registry import INDEX, Registry, digest_of
from tests.egress.running import LOOPBACK, Running, running
from tests.egress.upstream import Reply, Site, site
from tproxy.egress.mirror.settings import Credential, Settings
from tproxy.egress.model import Artifact, Caller


@pytest.fixture
def registry(upstream: Site) -> Registry:
    return Registry(upstream, token="secret")


@pytest.fixture
def settings(tmp_path: Path, upstream: Site) -> Settings:
    return Settings(
        tmp_path / "store",
        oci={"docker.io": upstream.url, "quay.io": "http://127.0.0.1:9/"},
        inner=LOOPBACK,
    )


@pytest.fixture
def mirror(settings: Settings) -> Iterator[Running]:
    with running(settings) as found:
        yield found


def skopeo(mirror: Running, image: str, target: Path, *options: str, fails: bool = False) -> str:
    """Copy an image from the mirror with the real skopeo."""
    source = f"docker://127.0.0.1:{mirror.port}/{image}"
    command = ["skopeo", "copy", "--all", "--src-tls-verify=false", *options, source, f"oci:{target}:x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr


def test_skopeo_copies_all_platforms_and_the_second_time_without_upstream(
    mirror: Running, registry: Registry, tmp_path: Path
) -> None:
    registry.add("library/alpine", "3", platforms=("amd64", "arm64"))
    skopeo(mirror, "docker.io/library/alpine:3", tmp_path / "one")
    asked = len(registry.site.requests)
    skopeo(mirror, "docker.io/alpine:3", tmp_path / "two")
    assert len(registry.site.requests) == asked
    assert len(list((tmp_path / "two" / "blobs" / "sha256").iterdir())) == 7
    assert registry.site.count("/token") >= 1
    names = {event.name for event in mirror.events}
    assert names == {"docker.io/library/alpine"}
    assert any(
        "tag=3" in event.purl and event.purl.startswith("pkg:oci/alpine@sha256") for event in mirror.events
    )


def test_containerd_names_the_registry_in_ns(mirror: Running, registry: Registry) -> None:
    digest = digest_of(registry.add("library/alpine", "3").index)
    url = f"{mirror.url}v2/library/alpine/manifests/3?ns=docker.io"
    status, body, headers = get(url, accept=INDEX)
    assert (status, headers["Docker-Content-Digest"], headers["Content-Type"]) == (200, digest, INDEX)
    assert digest.endswith(hashlib.sha256(body).hexdigest())
    request = urllib.request.Request(url, method="HEAD")
    with urllib.request.urlopen(request) as answer:
        assert answer.headers["Content-Length"] == str(len(body))
        assert answer.headers["Docker-Content-Digest"] == digest
    assert get(f"{mirror.url}v2/library/alpine/manifests/3?ns=nowhere.example")[0] == 404


def test_ranges_of_blobs_are_served(mirror: Running, registry: Registry) -> None:
    (content,) = registry.add("library/alpine", "3", size=50_000).layers
    path = f"v2/library/alpine/blobs/{digest_of(content)}"
    status, body, _ = get(f"{mirror.url}{path}?ns=docker.io", Range="bytes=100-199")
    assert (status, body) == (206, content[100:200])


def test_a_layer_that_breaks_off_goes_on_where_it_was(mirror: Running, registry: Registry) -> None:
    (layer,) = registry.add("library/alpine", "3", size=5_000_000).layers
    registry.site.cut = 3_000_000
    assert get(f"{mirror.url}v2/docker.io/library/alpine/blobs/{digest_of(layer)}")[1] == layer
    ranges = [headers.get("Range") for path, headers in registry.site.requests if digest_of(layer) in path]
    assert ranges[-1] == "bytes=3000000-"


def test_tags_are_listed(mirror: Running, registry: Registry) -> None:
    registry.add("library/alpine", "3")
    registry.add("library/alpine", "4")
    _, body, _ = get(f"{mirror.url}v2/docker.io/library/alpine/tags/list")
    assert json.loads(body)["tags"] == ["3", "4"]


def test_a_tag_follows_upstream_and_stays_when_upstream_is_dead(mirror: Running, registry: Registry) -> None:
    first = digest_of(registry.add("library/alpine", "3").index)
    url = f"{mirror.url}v2/docker.io/library/alpine/manifests/3"
    assert get(url)[2]["Docker-Content-Digest"] == first
    second = digest_of(registry.add("library/alpine", "3", size=2000).index)
    assert get(url)[2]["Docker-Content-Digest"] == first
    mirror.run(expire(mirror))
    assert get(url)[2]["Docker-Content-Digest"] == second
    registry.site.stop()
    mirror.run(expire(mirror))
    assert get(url)[2]["Docker-Content-Digest"] == second


def test_a_manifest_with_a_wrong_hash_is_refused(mirror: Running, registry: Registry) -> None:
    index = registry.add("library/alpine", "3").index
    digest = digest_of(index)
    registry.site.put(f"/v2/library/alpine/manifests/{digest}", index + b" ", Content_Type=INDEX)
    status, body, _ = get(f"{mirror.url}v2/docker.io/library/alpine/manifests/{digest}")
    assert (status, b"has SHA-256" in body) == (502, True)


def test_with_one_image_pinned_its_parts_are_served_and_nothing_else(
    mirror: Running, registry: Registry, tmp_path: Path
) -> None:
    first, other = registry.add("org/app", "1"), registry.add("org/app", "2", size=2000)
    pinned = digest_of(first.index)

    def deny(caller: Caller, artifact: Artifact) -> bool:
        if artifact.filename in ("tags", "referrers"):
            return True
        return artifact.filename == "manifests" and f"sha256:{artifact.sha256}" != pinned

    mirror.deny = deny
    skopeo(mirror, f"docker.io/org/app@{pinned}", tmp_path / "one")
    skopeo(mirror, "docker.io/org/app:1", tmp_path / "two")
    skopeo(mirror, "docker.io/org/app:2", tmp_path / "three", fails=True)
    image = f"{mirror.url}v2/docker.io/org/app"
    assert get(f"{image}/manifests/{digest_of(other.manifests[0])}")[0] == 403
    assert get(f"{image}/blobs/{digest_of(other.layers[0])}")[0] == 403


def test_sealed_serves_images_without_upstream(
    settings: Settings, registry: Registry, tmp_path: Path
) -> None:
    registry.add("library/alpine", "3")
    with running(settings) as dmz:
        skopeo(dmz, "docker.io/library/alpine:3", tmp_path / "one")
    asked = len(registry.site.requests)
    with running(replace(settings, sealed=True)) as sealed:
        skopeo(sealed, "docker.io/library/alpine:3", tmp_path / "two")
        skopeo(sealed, "docker.io/library/busybox:1", tmp_path / "three", fails=True)
        assert ("oci", "docker.io/library/busybox", "1") in sealed.run(wanted(sealed))
    assert len(registry.site.requests) == asked


def test_credentials_go_to_their_realm_only(tmp_path: Path, registry: Registry, upstream: Site) -> None:
    registry.add("library/alpine", "3")
    credentials = (Credential(f"{upstream.url}token", "user", "password"),)
    settings = Settings(
        tmp_path / "s", oci={"docker.io": upstream.url}, inner=LOOPBACK, credentials=credentials
    )
    with running(settings) as mirror:
        assert get(f"{mirror.url}v2/docker.io/library/alpine/manifests/3")[0] == 200
    sent = {path.partition("?")[0]: headers.get("Authorization", "") for path, headers in upstream.requests}
    assert sent["/token"].startswith("Basic ")
    assert sent["/v2/library/alpine/manifests/3"].startswith("Bearer ")


def test_a_redirect_to_a_signed_address_is_followed_without_credentials_and_not_kept(
    mirror: Running, registry: Registry, upstream: Site
) -> None:
    (layer,) = registry.add("library/alpine", "3", size=5000).layers
    path = f"/v2/library/alpine/blobs/{digest_of(layer)}"
    with site() as storage:
        storage.put("/signed", layer)
        upstream.pages[path] = Reply(status=307, headers={"Location": f"{storage.url}signed?expires=1"})
        assert get(f"{mirror.url}{path[1:]}?ns=docker.io")[1] == layer
        assert "Authorization" not in storage.requests[0][1]
    assert get(f"{mirror.url}{path[1:]}?ns=docker.io")[1] == layer
