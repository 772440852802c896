"""Each kind of package on each distribution: it runs, is upgraded under load, and leaves no trace."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.packages.kinds import Kind
from tests.packages.machine import Machine
from tests.packages.service import CONFIG, service

# What dpkg, apt, Python and systemd note for themselves when any package comes and goes.
BOOKS = re.compile(
    r"/var/(lib/(dpkg|apt|systemd|logrotate)|cache/(apt|debconf|ldconfig)|log/(apt|journal|dpkg|alternatives))"
    r"|/root/|/run/|/tmp/|/usr/lib/python3|/usr/share/python3|/var/log$|/var/lib$|/usr/local/bin$|/opt$|/var/tmp$"
)


def test_the_lab_runs(machine: Machine, kind: Kind, new: Path) -> None:
    machine.install(*kind.needs)
    kind.install(machine, machine.put(new))
    assert "Each guest reaches its own service and nothing else" in machine.sh("tproxy lab")


@pytest.mark.parametrize("by", ["systemd", "a hook"])
def test_an_upgrade_loses_no_connection(
    machine: Machine, kind: Kind, old: Path, new: Path, old_source: Path, by: str
) -> None:
    machine.install(*kind.needs)
    kind.install(machine, machine.put(old))
    if by == "systemd" and not kind.has_units:
        shutil.copy(old_source / "etc/systemd/tproxy.service", machine.path("/etc/systemd/system"))
        machine.sh("systemctl daemon-reload; systemctl enable --now tproxy")
    if by == "a hook" and kind.has_units:
        machine.sh("systemctl disable --now tproxy")
    with service(machine) as served:
        machine.sh("tproxy hook up --bridge br0")
        served.connect()
        starts = _starts(machine)
        assert machine.sh("tproxy --version").split()[-1] == "0.0.9"
        kind.upgrade(machine, machine.put(new))
        served.assert_unharmed()
        assert machine.sh("tproxy --version").split()[-1] != "0.0.9"
        assert _starts(machine) == starts + 1
        active = machine.sh("systemctl is-active tproxy || :")
        assert active == ("active\n" if by == "systemd" else "inactive\n")


def test_a_package_that_was_removed_leaves_no_trace(machine: Machine, kind: Kind, new: Path) -> None:
    """Not even where a guest is connected, and hooks of a platform were installed."""
    files = machine.put(new)
    machine.install(*(kind.needs or machine.depends(files)))
    machine.sh("mkdir -p /etc/libvirt /var/lib/one/remotes/vnm/bridge")
    with service(machine) as served:
        machine.sh("rm -r /etc/tproxy")
        before, state = machine.files(), _state(machine)
        kind.install(machine, files)
        machine.sh("mkdir -p /etc/tproxy")
        machine.path("/etc/tproxy/tproxy.yaml").write_text(CONFIG)
        machine.sh("tproxy install libvirt; tproxy install opennebula --remotes /var/lib/one/remotes")
        machine.sh("tproxy hook up --bridge br0")
        served.connect()
        kind.remove(machine)
        served.asking.end()
        served.talk.end()
        assert _state(machine) == state
        after = machine.files()
    assert {path: each for path, each in after.items() if path not in before and not BOOKS.match(path)} == {}
    assert {path for path in before if path not in after and not BOOKS.match(path)} == set()


def _starts(machine: Machine) -> int:
    """Return how often a daemon has started, by its log."""
    return len(re.findall(r"INFO daemon .* started", machine.path("/var/log/one_tproxy.log").read_text()))


def _state(machine: Machine) -> str:
    """Return what the kernel of the machine has: links, rules, namespaces, processes."""
    links = machine.sh("ip -o link | awk '{ print $2 }'; ls /run/netns; nft list ruleset")
    processes = "for each in /proc/[0-9]*; do tr '\\0' ' ' <$each/cmdline | grep tproxy || :; done"
    return links + machine.sh(f"{processes}; ls -d /run/tproxy || :")
