"""Bundles: from a list in a dmz to clients of a sealed site, whole, in parts, as deltas and interrupted."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.egress.asking import get
from tests.egress.debian import Apt, Repository
from tests.egress.galaxy import ANSIBLE_GALAXY, GalaxySite
from tests.egress.python_index import Index
from tests.egress.registry import Registry
from tests.egress.running import LOOPBACK, running
from tests.egress.upstream import Site, site
from tproxy.egress.bundle import importing, reading
from tproxy.egress.bundle.creating import create
from tproxy.egress.bundle.importing import import_bundle
from tproxy.egress.bundle.manifest import BundleError, Manifest, differences
from tproxy.egress.bundle.parts import of
from tproxy.egress.gather.gathering import gather
from tproxy.egress.gather.lists import Item, Targets
from tproxy.egress.mirror.settings import Settings
from tproxy.egress.mirror.site_key import SiteKey
from tproxy.egress.signing import KeyPair
from tproxy.egress.store.records import Record
from tproxy.egress.store.store import Store

UV = str(Path(sys.executable).with_name("uv"))

TARGETS = Targets(images=("linux/amd64",))


@pytest.fixture
def dmz(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "dmz")
    yield store
    store.close()


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "sealed")
    yield store
    store.close()


@pytest.fixture
def key(tmp_path: Path) -> KeyPair:
    found = KeyPair(tmp_path / "keys", "bundle")
    found.create()
    return found


def record(store: Store, name: str, content: bytes) -> Record:
    filename = f"{name}-1.0-py3-none-any.whl"
    found = Record("pypi", name, filename, store.blobs.put(content), len(content), "1.0")
    store.add(found)
    return found


def some(store: Store, *names: str, size: int = 1000) -> list[Record]:
    return [record(store, name, hashlib.shake_256(name.encode()).digest(size)) for name in names]


def test_every_kind_from_a_list_to_clients_of_a_sealed_site(
    tmp_path: Path, dmz: Store, sealed: Store, key: KeyPair
) -> None:
    with site() as python, site() as debian, site() as images, site() as ansible, site() as plain:
        index, repository = Index(python), Repository(debian, tmp_path / "upstream")
        registry, galaxy = Registry(images), GalaxySite(ansible)
        index.add("base", "1.0")
        index.add("demo", "2.0", "base")
        repository.add("bookworm", "base", "1.0")
        repository.add("bookworm", "tool", "1:2.0", depends="base")
        repository.publish("bookworm")
        registry.add("library/alpine", "3", platforms=("amd64", "arm64"))
        galaxy.add(tmp_path / "b", "acme.base", "1.0.0")
        galaxy.add(tmp_path / "b", "acme.tools", "2.0.0", acme__base=">=1.0.0")
        galaxy.add_role("acme", "web", "1.0.0")
        address = plain.put("/tool.bin", b"tool")
        items = [
            Item("pypi", "demo"),
            Item("deb", "tool"),
            Item("oci", "docker.io/library/alpine:3"),
            Item("galaxy", "acme.tools"),
            Item("role", "acme.web"),
            Item("file", f"{address} {hashlib.sha256(b'tool').hexdigest()}"),
        ]
        settings = Settings(
            dmz.root,
            pypi=index.url,
            deb=(repository.url,),
            oci={"docker.io": images.url},
            galaxy=ansible.url,
            inner=LOOPBACK,
        )
        found = gather(settings, dmz, items, TARGETS, str(repository.key))
        repository.close()
    assert found.missing == []
    manifest, files = create(dmz, found.records.values(), tmp_path / "b1.tar", key)
    assert manifest.serial == 1
    import_bundle(sealed, files[0], key.fingerprint)
    sealed_settings = Settings(
        sealed.root,
        sealed=True,
        pypi=settings.pypi,
        deb=settings.deb,
        oci=settings.oci,
        galaxy=settings.galaxy,
    )
    with running(sealed_settings) as mirror:
        target = tmp_path / "installed"
        home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        to_uv = [UV, "pip", "install", "--no-cache", "--no-config", "--python", sys.executable, "demo"]
        to_uv += ["--target", str(target), "--index-url", f"{mirror.url}pypi/simple/"]
        to_skopeo = ["skopeo", "copy", "--src-tls-verify=false", "--override-arch=amd64"]
        to_skopeo += [f"docker://127.0.0.1:{mirror.port}/docker.io/library/alpine:3", f"oci:{target}/i:x"]
        to_ansible = [ANSIBLE_GALAXY, "{}", "install", "-s", f"{mirror.url}galaxy/", "-p", str(target), "{}"]
        collection, role = (
            [each.format(kind) for each in to_ansible[:-1]] for kind in ("collection", "role")
        )
        commands = [to_uv, to_skopeo, [*collection, "acme.tools"], [*role, "acme.web"]]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=home)
            assert done.returncode == 0, done.stdout + done.stderr
        assert (target / "base.py").exists()
        _, page, _ = get(f"{mirror.url}pypi/simple/demo/", "application/vnd.pypi.simple.v1+json")
        assert b"core-metadata" in page
        metadata = get(f"{mirror.url}pypi/files/demo/demo-2.0-py3-none-any.whl.metadata")[1]
        assert b"Requires-Dist: base" in metadata
        assert get(f"{mirror.url}files/{address.replace('://', '/')}")[1] == b"tool"
        name = repository.url.partition("://")[2]
        site_key = sealed.root / "site-key.asc"
        apt = Apt(tmp_path / "apt", f"deb [signed-by={site_key}] {mirror.url}deb/{name} bookworm main")
        apt.update()
        assert set(apt.download("tool").values()) == set(repository.debs.values())
        assert get(f"{mirror.url}pypi/simple/other/")[0] == 404


def test_sealed_suites_are_signed_by_both_keys_while_the_site_key_rotates(
    tmp_path: Path, dmz: Store, sealed: Store, key: KeyPair, upstream: Site
) -> None:
    repository = Repository(upstream, tmp_path / "upstream")
    repository.add("bookworm", "tool", "1.0")
    repository.publish("bookworm")
    settings = Settings(dmz.root, deb=(repository.url,), inner=LOOPBACK)
    found = gather(settings, dmz, [Item("deb", "tool")], TARGETS, str(repository.key))
    repository.close()
    assert found.missing == []
    site_key = SiteKey(sealed.root)
    site_key.create()
    old = tmp_path / "old.asc"
    old.write_bytes(site_key.public.read_bytes())
    site_key.rotate()
    _, files = create(dmz, found.records.values(), tmp_path / "b.tar", key)
    import_bundle(sealed, files[0], key.fingerprint)
    name = repository.url.partition("://")[2]
    with running(Settings(sealed.root, sealed=True, deb=settings.deb)) as mirror:
        for number, each in enumerate((old, site_key.public)):
            source = f"deb [signed-by={each}] {mirror.url}deb/{name} bookworm main"
            Apt(tmp_path / f"apt{number}", source).update()
    site_key.finish()
    assert len(site_key.keys()) == 1


def test_a_bundle_holds_what_its_targets_need_and_no_more(tmp_path: Path, dmz: Store) -> None:
    with site() as python, site() as images:
        index, registry = Index(python), Registry(images)
        tags = (
            "cp311-cp311-manylinux2014_x86_64",
            "cp312-cp312-manylinux2014_aarch64",
            "cp312-cp312-win_amd64",
        )
        for tag in tags:
            index.add("demo", "1.0", tag=tag)
        image = registry.add("library/alpine", "3", platforms=("amd64", "arm64", "s390x"))
        settings = Settings(dmz.root, pypi=index.url, oci={"docker.io": images.url}, inner=LOOPBACK)
        items = [Item("pypi", "demo"), Item("oci", "docker.io/library/alpine:3")]
        targets = Targets(
            pythons=("3.11", "3.12"),
            platforms=("manylinux2014_x86_64", "manylinux2014_aarch64"),
            images=("linux/arm64", "linux/s390x"),
        )
        found = gather(settings, dmz, items, targets)
        assert found.missing == []
        lacking = gather(settings, dmz, items, Targets(pythons=("3.13",), images=("linux/riscv64",))).missing
    wheels = {record.file for record in found.records.values() if record.file.endswith(".whl")}
    assert wheels == {f"demo-1.0-{tag}.whl" for tag in tags[:2]}
    hashes = {record.sha256 for record in found.records.values()}
    layers = [hashlib.sha256(layer).hexdigest() in hashes for layer in image.layers]
    assert layers == [False, True, True]
    assert len(lacking) == 2
    assert "demo for Python 3.13" in lacking[0]
    assert lacking[1] == "oci docker.io/library/alpine:3: there is none for linux/riscv64"


def test_dependencies_are_found_over_all_suites_and_repositories(
    tmp_path: Path, dmz: Store, sealed: Store, key: KeyPair
) -> None:
    """A security update is in a repository of its own, which has no other packages."""
    with site() as debian, site() as other:
        repository = Repository(debian, tmp_path / "debian")
        repository.add("bookworm", "tool", "1.0", depends="base (>= 1.1)")
        repository.add("bookworm", "base", "1.0")
        repository.publish("bookworm")
        security = Repository(other, tmp_path / "security", "/debian-security/")
        security.add("bookworm-security", "base", "1.1")
        security.publish("bookworm-security")
        (tmp_path / "keys.asc").write_bytes(repository.key.read_bytes() + security.key.read_bytes())
        settings = Settings(dmz.root, deb=(repository.url, security.url), inner=LOOPBACK)
        targets = TARGETS._replace(suites=("bookworm", "bookworm-security"))
        found = gather(settings, dmz, [Item("deb", "tool")], targets, str(tmp_path / "keys.asc"))
        repository.close()
        security.close()
    assert found.missing == []
    _, (path,) = create(dmz, found.records.values(), tmp_path / "b.tar", key)
    import_bundle(sealed, path, key.fingerprint)
    names = [url.partition("://")[2] for url in settings.deb]
    with running(Settings(sealed.root, sealed=True, deb=settings.deb)) as mirror:
        sources = [
            f"deb [signed-by={sealed.root / 'site-key.asc'}] {mirror.url}deb/{name} {suite} main"
            for name, suite in zip(names, targets.suites, strict=True)
        ]
        apt = Apt(tmp_path / "apt", "\n".join(sources))
        apt.update()
        assert sorted(apt.download("tool")) == ["base_1.1_all.deb", "tool_1.0_all.deb"]
        release = get(f"{mirror.url}deb/{names[1]}dists/bookworm-security/InRelease")[1]
        assert b"Acquire-By-Hash: yes" in release
        assert b"Valid-Until" not in release


def test_an_incomplete_list_says_all_that_is_missing(tmp_path: Path, dmz: Store) -> None:
    with site() as python, site() as debian, site() as images:
        index, repository = Index(python), Repository(debian, tmp_path / "upstream")
        index.add("demo", "2.0", "absent>=1")
        repository.add("bookworm", "tool", "1.0", depends="lost")
        repository.publish("bookworm")
        Registry(images).add("library/alpine", "3")
        settings = Settings(
            dmz.root, pypi=index.url, deb=(repository.url,), oci={"docker.io": images.url}, inner=LOOPBACK
        )
        items = [
            Item("pypi", "demo"),
            Item("deb", "tool"),
            Item("oci", "docker.io/library/alpine:4"),
            Item("file", f"{python.url}nothing {'0' * 64}"),
        ]
        missing = gather(settings, dmz, items, TARGETS, str(repository.key)).missing
        repository.close()
    assert len(missing) == 4
    assert "absent" in missing[0]
    assert "lost" in missing[1]
    assert missing[2].startswith("oci docker.io/library/alpine:4: 404")
    assert missing[3].startswith("file ")


def test_the_first_key_is_trusted_by_its_fingerprint_and_others_are_refused(
    tmp_path: Path, dmz: Store, sealed: Store, key: KeyPair
) -> None:
    _, (path,) = create(dmz, some(dmz, "a"), tmp_path / "b.tar", key)
    with pytest.raises(BundleError, match=f"give --trust {key.fingerprint}"):
        import_bundle(sealed, path)
    with pytest.raises(BundleError, match="and not by"):
        import_bundle(sealed, path, "0" * 64)
    import_bundle(sealed, path, key.fingerprint)
    other = KeyPair(tmp_path / "keys", "other")
    _, (forged,) = create(dmz, some(dmz, "b"), tmp_path / "forged.tar", other)
    with pytest.raises(BundleError, match="trusted is"):
        import_bundle(sealed, forged)
    _, (second,) = create(dmz, some(dmz, "b"), tmp_path / "second.tar", key)
    import_bundle(sealed, second)
    assert sealed.serial() == 3


def test_any_flipped_byte_is_found_before_anything_is_served(
    tmp_path: Path, dmz: Store, sealed: Store, key: KeyPair
) -> None:
    _, (path,) = create(dmz, some(dmz, "a", "b", size=5000), tmp_path / "b.tar", key)
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        places = [
            (member.offset_data, member.size) for member in archive.getmembers() if member.name != "key.pub"
        ]
    chosen = random.Random(7)
    for start, size in places:
        at = start + chosen.randrange(size)
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(BundleError):
            import_bundle(sealed, path, key.fingerprint)
        with pytest.raises(BundleError):
            reading.verify_all(path, key.public.read_text())
        assert sealed.serial() is None
    path.write_bytes(content)
    assert reading.verify_all(path, key.public.read_text()).serial == 1


def test_parts_are_no_larger_than_asked_and_are_one_bundle(
    tmp_path: Path, dmz: Store, sealed: Store, key: KeyPair
) -> None:
    records = some(dmz, "a", "b", size=200_000)
    _, parts = create(dmz, records, tmp_path / "b.tar", key, split=150_000)
    assert len(parts) == 3
    assert max(part.stat().st_size for part in parts) == 150_000
    assert of(tmp_path / "b.tar") == parts == of(parts[1])
    import_bundle(sealed, tmp_path / "b.tar", key.fingerprint)
    assert sealed.serial() == 1
    # Wherever a part ends: in a header, in the manifest, in a blob.
    for size in (700, 5_000, 149_999):
        create(dmz, records, tmp_path / "s.tar", key, split=size)
        assert reading.verify_all(tmp_path / "s.tar", key.public.read_text()).blobs
    _, (whole,) = create(dmz, records, tmp_path / "c.tar", key)
    joined = b"".join(part.read_bytes() for part in parts)
    assert len(joined) == whole.stat().st_size
    (tmp_path / "joined.tar").write_bytes(joined)
    with tarfile.open(tmp_path / "joined.tar") as archive:
        assert archive.getnames()[:3] == ["manifest.json.minisig", "key.pub", "manifest.json"]


def test_a_delta_brings_what_is_new_and_needs_its_base(
    tmp_path: Path, dmz: Store, sealed: Store, key: KeyPair
) -> None:
    old = some(dmz, "a", "b", size=100_000)
    _, (first,) = create(dmz, old, tmp_path / "first.tar", key)
    new = some(dmz, "c")
    manifest, (delta,) = create(dmz, [*old[1:], *new], tmp_path / "delta.tar", key, base=1)
    assert delta.stat().st_size < 30_000
    assert list(manifest.blobs) == [new[0].sha256]
    with pytest.raises(BundleError, match="a delta against 1, and 1 blobs of that are not here"):
        import_bundle(sealed, delta, key.fingerprint)
    import_bundle(sealed, first, key.fingerprint)
    import_bundle(sealed, delta)
    assert sealed.serial() == 2
    assert {each.name for each in sealed.all()} == {"b", "c"}
    assert differences(sealed.layer(1).all(), sealed.layer(2).all()) == [
        "- pkg:pypi/a@1.0?file_name=a-1.0-py3-none-any.whl",
        "+ pkg:pypi/c@1.0?file_name=c-1.0-py3-none-any.whl",
    ]
    with pytest.raises(BundleError, match="bundle 9 was not created here"):
        create(dmz, new, tmp_path / "x.tar", key, base=9)


def test_older_bundles_need_a_flag_and_rollback_is_one_step(
    tmp_path: Path, dmz: Store, sealed: Store, key: KeyPair
) -> None:
    paths = [create(dmz, some(dmz, name), tmp_path / f"{name}.tar", key)[1][0] for name in "ab"]
    import_bundle(sealed, paths[1], key.fingerprint)
    with pytest.raises(BundleError, match="older than the active one, 2: --downgrade"):
        import_bundle(sealed, paths[0])
    assert sealed.serial() == 2
    import_bundle(sealed, paths[0], downgrade=True)
    assert sealed.serial() == 1
    import_bundle(sealed, paths[1])
    assert importing.rollback(sealed) == 1
    assert {each.name for each in sealed.all()} == {"a"}
    with pytest.raises(BundleError, match="there is no earlier bundle"):
        importing.rollback(sealed)


def test_an_import_that_failed_is_nothing_to_go_back_to(
    tmp_path: Path, dmz: Store, sealed: Store, key: KeyPair
) -> None:
    """Another node, which has the same key, began to count at 1 too."""
    paths = [create(dmz, some(dmz, name), tmp_path / f"{name}.tar", key)[1][0] for name in "ab"]
    for path in paths:
        import_bundle(sealed, path, key.fingerprint)
    other = Store(tmp_path / "other")
    _, (path,) = create(other, some(other, "c", size=50_000), tmp_path / "c.tar", key)
    other.close()
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(BundleError, match="cut off"):
        import_bundle(sealed, path, downgrade=True)
    with pytest.raises(BundleError, match="there is no earlier bundle"):
        importing.rollback(sealed)
    assert {each.name for each in sealed.all()} == {"b"}


def test_a_scanner_that_fails_keeps_the_bundle_out(
    tmp_path: Path, dmz: Store, sealed: Store, key: KeyPair
) -> None:
    _, (path,) = create(dmz, some(dmz, "a"), tmp_path / "b.tar", key)
    with pytest.raises(BundleError, match="the scanner refused the bundle"):
        import_bundle(sealed, path, key.fingerprint, scan=["grep", "-q", "malware"])
    assert list(sealed.blobs.all()) == []
    import_bundle(sealed, path, key.fingerprint, scan=["tar", "--list", "--file"])
    assert sealed.serial() == 1


def test_names_in_the_tar_lead_nowhere_else(tmp_path: Path, dmz: Store, sealed: Store, key: KeyPair) -> None:
    _, (path,) = create(dmz, some(dmz, "a"), tmp_path / "b.tar", key)
    evil = tmp_path / "evil.tar"
    with tarfile.open(path) as source, tarfile.open(evil, "w") as target:
        for member in source.getmembers():
            content = source.extractfile(member)
            if member.name.startswith("blobs/"):
                member.name = "../../../../tmp/evil"
            target.addfile(member, content)
    with pytest.raises(BundleError, match="where blobs/sha256/"):
        import_bundle(sealed, evil, key.fingerprint)


def test_a_blob_that_went_missing_is_not_activated(
    tmp_path: Path, dmz: Store, sealed: Store, key: KeyPair
) -> None:
    (lost, kept) = some(dmz, "a", "b")
    manifest, (path,) = create(dmz, [lost, kept], tmp_path / "b.tar", key)
    assert isinstance(manifest, Manifest)
    import_bundle(sealed, path, key.fingerprint)
    _, (second,) = create(dmz, [kept], tmp_path / "c.tar", key)
    import_bundle(sealed, second)
    sealed.blobs.path(lost.sha256).write_bytes(b"damaged")
    with pytest.raises(BundleError, match="missing or damaged: import it again"):
        importing.rollback(sealed)
    assert sealed.serial() == 2
