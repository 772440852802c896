"""``tproxy egress up`` and ``down`` with a real systemd: units with the limits and sandbox of production."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.netns.daemon.test_systemd import SYSTEMD, Machine, needs
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor

BOOT = Path(__file__).with_name("programs") / "boot_writable.sh"
TPROXY = (sys.executable, "-m", "tproxy", "egress")
PARTS = ("squid", "mirror", "front")


@pytest.fixture(scope="module")
def machine(engines: None) -> Iterator[Machine]:
    needs(SYSTEMD)
    with Hypervisor() as host, closing(Machine(host, BOOT)) as booted:
        booted.wait()
        yield booted


def egress(machine: Machine, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return machine.run(*TPROXY, *words, check=check)


def status(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(egress(machine, "status", "--json", check=False).stdout)
    return found


def is_unit(name: str) -> bool:
    return name.startswith("tproxy-egress") and not name.endswith(".d")  # those are the test's


def await_order(machine: Machine) -> None:
    """Return when all parts run and nothing is wrong."""
    for _ in eventually():
        if not status(machine)["findings"]:
            return


def since(machine: Machine, part: str) -> str:
    return machine.systemctl("show", "--property=ActiveEnterTimestampMonotonic", f"tproxy-egress-{part}")


def test_up_starts_all_parts_which_come_back_and_down_leaves_nothing(machine: Machine) -> None:
    """One test: each step needs the one before, and a start takes some seconds."""
    before = egress(machine, "status", check=False)
    assert before.returncode == 1
    assert "squid: does not run" in before.stdout

    assert "running, by the policy /etc/tproxy/egress.yaml" in egress(machine, "up").stdout
    await_order(machine)
    assert status(machine)["parts"] == dict.fromkeys(PARTS, True)
    assert 'tproxy_egress_up{part="squid"} 1' in egress(machine, "metrics").stdout
    assert "valid until" in egress(machine, "ca").stdout
    assert "running" in egress(machine, "up").stdout  # again: changes nothing

    for part in PARTS:
        machine.systemctl("kill", "--kill-who=main", "--signal=KILL", f"tproxy-egress-{part}")
        for _ in eventually():
            shown = machine.systemctl("show", "--property=NRestarts", f"tproxy-egress-{part}").strip()
            if shown == "NRestarts=1":
                break
    await_order(machine)

    started = {part: since(machine, part) for part in PARTS}
    code = "from tproxy.egress.upgrade import services; print(services.restart())"
    assert "started again: tproxy-egress-squid" in machine.run(sys.executable, "-c", code).stdout
    await_order(machine)
    assert not {part for part in PARTS if since(machine, part) == started[part]}

    write = ("sh", "-c", 'printf "listen: {proxy: [3128, 8444]}\\nmode: sealed\\n" >/etc/tproxy/egress.yaml')
    machine.run(*write)
    for _ in eventually():  # the path unit has squid look again, and the mirror looks by itself
        if (
            machine.run("ss", "-Hltn", "sport = 8444").stdout
            and status(machine)["mirror"]["mode"] == "sealed"
        ):
            break
    await_order(machine)

    assert "/var/lib/tproxy-egress is kept" in egress(machine, "down").stdout
    assert not machine.run("ss", "-Hltn", "sport = 3128").stdout
    assert machine.run("ls", "/var/lib/tproxy-egress/ca/ca.key", check=False).returncode == 0
    assert "one_tproxy_egress" not in machine.run("nft", "list", "tables").stdout

    egress(machine, "up")
    await_order(machine)
    assert "removed /var/lib/tproxy-egress" in egress(machine, "down", "--purge").stdout
    for path in ("/var/lib/tproxy-egress", "/run/tproxy-egress", "/var/log/tproxy-egress"):
        assert machine.run("ls", "-d", path, check=False).returncode == 2, path
    assert not [each for each in machine.run("ls", "/etc/systemd/system").stdout.split() if is_unit(each)]
    assert machine.run("cat", "/etc/tproxy/egress.yaml").stdout.startswith("listen")
