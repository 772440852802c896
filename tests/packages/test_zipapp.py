"""What only the zipapp does: it unpacks itself, once for each version and user."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from packages.requirements import Distribution
from tests.packages.conftest import SOURCE, Build
from tests.packages.kinds import Zipapp
from tests.packages.machine import Machine, booted

FOLDER = "/var/lib/tproxy/zipapp"


@pytest.fixture(scope="module")
def synced(distribution: Distribution, build: Build, old_source: Path) -> Iterator[Machine]:
    """A machine to which an older version was synced, and then this one, with a hook of the older one."""
    with booted(distribution.codename) as machine:
        machine.install(*Zipapp.needs)
        Zipapp().install(machine, machine.put(build("zipapp", distribution.codename, old_source)))
        machine.sh("mkdir -p /etc/libvirt; tproxy install libvirt")
        Zipapp().upgrade(machine, machine.put(build("zipapp", distribution.codename, SOURCE)))
        yield machine


def test_an_installed_hook_runs_the_newest_version(synced: Machine) -> None:
    hook = synced.path("/etc/libvirt/hooks/qemu.d/tproxy").read_text()
    assert f"python={FOLDER}/current/bin/python3\n" in hook
    version = synced.sh(f"{FOLDER}/current/bin/python3 -I -m tproxy --version").split()[-1]
    assert version != "0.0.9"


def test_older_versions_leave_nothing(synced: Machine) -> None:
    assert len(synced.sh(f"ls {FOLDER}").split()) == 3  # the tree, the link and the lock


def test_a_call_that_finds_its_tree_unpacks_nothing(synced: Machine) -> None:
    look = f"stat -c '%i %z' {FOLDER}/current/made-from {FOLDER}"
    before = synced.sh(look)
    synced.sh("tproxy status")
    assert synced.sh(look) == before


def test_a_user_without_rights_has_a_tree_of_their_own(synced: Machine) -> None:
    synced.sh("install -d -o 1234 /tmp/home; echo 'tproxy: []' >/tmp/tproxy.yaml")
    user = "setpriv --reuid=1234 --regid=1234 --clear-groups env HOME=/tmp/home"
    assert "in order" in synced.sh(f"{user} /var/tmp/one/tproxy.pyz check /tmp/tproxy.yaml")
    assert synced.sh("ls /tmp/home/.cache/tproxy/zipapp/current/bin") == "python3\nremove-tproxy\ntproxy\n"


def test_a_tree_of_another_user_is_not_run(synced: Machine) -> None:
    synced.sh("install -d -o 1234 /tmp/other/.cache/tproxy/zipapp; chmod -R a+rX /tmp/other")
    user = "setpriv --reuid=1235 --regid=1235 --clear-groups env HOME=/tmp/other"
    done = synced.run("sh", "-c", f"{user} /var/tmp/one/tproxy.pyz --version", check=False)
    assert done.returncode == 1
    assert "/tmp/other/.cache/tproxy/zipapp belongs to another user" in done.stderr
