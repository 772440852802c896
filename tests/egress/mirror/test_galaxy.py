"""The mirror of Ansible Galaxy, with ansible-galaxy as client."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.egress.asking import wanted
from tests.egress.galaxy import ANSIBLE_GALAXY, GalaxySite
from tests.egress.running import LOOPBACK, Running, running
from tests.egress.upstream import Site
from tproxy.egress.mirror.settings import Settings


@pytest.fixture
def galaxy(upstream: Site) -> GalaxySite:
    return GalaxySite(upstream)


@pytest.fixture
def settings(tmp_path: Path, upstream: Site) -> Settings:
    return Settings(tmp_path / "store", galaxy=upstream.url, inner=LOOPBACK)


@pytest.fixture
def mirror(settings: Settings) -> Iterator[Running]:
    with running(settings) as found:
        yield found


def install(mirror: Running, kind: str, target: Path, *names: str, fails: bool = False) -> str:
    """Install a collection or role with the real ansible-galaxy, which has no cache."""
    command = [ANSIBLE_GALAXY, kind, "install", "-s", f"{mirror.url}galaxy/", "-p", str(target), *names]
    environment = {"ANSIBLE_HOME": str(target / "home"), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    out = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, out
    return out


def test_a_collection_with_what_it_depends_on_and_the_second_time_sealed(
    settings: Settings, galaxy: GalaxySite, tmp_path: Path
) -> None:
    galaxy.add(tmp_path / "b", "acme.base", "1.0.0")
    galaxy.add(tmp_path / "b", "acme.base", "1.1.0")
    galaxy.add(tmp_path / "b", "acme.tools", "2.0.0", acme__base=">=1.0.0")
    with running(settings) as dmz:
        install(dmz, "collection", tmp_path / "one", "acme.tools")
        assert {event.purl for event in dmz.events if event.verdict == "allowed"} == {
            "pkg:generic/acme.base@1.1.0?ansible=galaxy",
            "pkg:generic/acme.tools@2.0.0?ansible=galaxy",
        }
    assert (tmp_path / "one/ansible_collections/acme/base/MANIFEST.json").exists()
    asked = len(galaxy.site.requests)
    with running(replace(settings, sealed=True)) as sealed:
        install(sealed, "collection", tmp_path / "two", "acme.tools")
        install(sealed, "collection", tmp_path / "three", "acme.other", fails=True)
        assert ("galaxy", "acme.other", "") in sealed.run(wanted(sealed))
    assert (tmp_path / "two/ansible_collections/acme/base/MANIFEST.json").exists()
    assert len(galaxy.site.requests) == asked


def test_a_role_and_the_second_time_sealed(settings: Settings, galaxy: GalaxySite, tmp_path: Path) -> None:
    galaxy.add_role("acme", "web", "1.0.0")
    with running(settings) as dmz:
        install(dmz, "role", tmp_path / "one", "acme.web")
    assert (tmp_path / "one/acme.web/tasks/main.yml").exists()
    asked = len(galaxy.site.requests)
    with running(replace(settings, sealed=True)) as sealed:
        install(sealed, "role", tmp_path / "two", "acme.web,1.0.0")
        install(sealed, "role", tmp_path / "three", "acme.db", fails=True)
    assert (tmp_path / "two/acme.web/tasks/main.yml").exists()
    assert len(galaxy.site.requests) == asked


def test_a_denied_collection_is_not_served(mirror: Running, galaxy: GalaxySite, tmp_path: Path) -> None:
    galaxy.add(tmp_path / "b", "acme.base", "1.0.0")
    mirror.deny = lambda caller, artifact: artifact.name == "acme.base"
    install(mirror, "collection", tmp_path / "one", "acme.base", fails=True)
    assert [event.verdict for event in mirror.events if event.name == "acme.base"] == ["denied"]
    assert galaxy.site.count("acme") == 0
