"""``tproxy egress`` on a bare Debian: installed, started, upgraded and removed, as docs/egress.md says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from packages.requirements import Distribution
from tests.netns.waiting import eventually
from tests.packages.conftest import SOURCE
from tests.packages.kinds import Wheel, _build
from tests.packages.machine import CHECKOUT, Guest, Machine, booted, download
from tests.packages.test_packages import BOOKS
from tproxy.egress.service.systemd import PACKAGES, SERVICES
from tproxy.lab.egress import guest as lab
from tproxy.lab.egress import made

SITES = "93.184.215.14"  # the address of all sites, on the loopback link of the machine

# Through a link each service has the header, and the resolver answers over TCP only.
FAR_SERVICES = lab.SERVICES.replace("remote_port: 8480", "remote_port: 8480, proxy_protocol: v2").replace(
    "protocol: [tcp, udp]", "proxy_protocol: v2"
)

POLICY = f"""\
upstream_ca: /etc/tproxy/sites-ca.pem
inner: [{SITES}]
rules:
  - {{networks: [build], pypi: [demo]}}
"""


class Egress(Wheel):
    """The wheel with the extra `egress`."""

    def build(self, source: Path, distribution: Distribution, output: Path) -> None:
        _build("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", output, source)
        (wheel,) = output.iterdir()
        target = ["--only-binary=:all:", "--python-version", distribution.python]
        _build("-m", "pip", "download", "--quiet", "--dest", output, *target, f"{wheel}[egress]")

    def _pip(self, machine: Machine, files: str) -> None:
        pip = "/opt/tproxy/bin/pip --no-cache-dir --quiet install --upgrade --force-reinstall --no-index"
        machine.sh(f"{pip} --find-links {files} 'one-tproxy[egress]'")


@pytest.fixture(scope="module")
def wheels(distribution: Distribution, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("egress")
    Egress().build(SOURCE, distribution, output)
    download(distribution.codename, *Egress.needs, *PACKAGES, "haproxy")
    return output


@pytest.fixture(scope="module")
def older(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a wheel of this code as version 0.0.9; what it needs is the same."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("older")
    archived = subprocess.run(["git", "-C", SOURCE, "archive", "HEAD"], check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", source], input=archived.stdout, check=True)
    version = source / "tproxy/__init__.py"
    version.write_text(re.sub(r'__version__ = ".*"', '__version__ = "0.0.9"', version.read_text()))
    _build("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", output, source)
    for each in wheels.iterdir():
        if not each.name.startswith("one_tproxy-"):
            shutil.copy(each, output)
    return output


@pytest.fixture
def node(distribution: Distribution, older: Path) -> Iterator[Machine]:
    with booted(distribution.codename) as machine:
        machine.install(*Egress.needs)
        Egress().install(machine, machine.put(older))
        yield machine


@contextmanager
def sites(machine: Machine, folder: Path) -> Iterator[None]:
    """Run official sites at an address of the machine, which have one wheel."""
    certificate, authority = made.certificate(folder)
    made.project(folder / "sites", "demo", "1.0")
    shutil.copy(authority, machine.path("/etc/tproxy/sites-ca.pem"))
    machine.sh(f"ip link set lo up; ip address add {SITES}/32 dev lo")
    with machine.path("/etc/hosts").open("a") as hosts:
        hosts.writelines(f"{SITES} {name}\n" for name in ("pypi.org", "files.pythonhosted.org"))
    words = ("-m", "tproxy.lab.egress.sites", SITES, str(folder / "sites"), str(certificate))
    server = machine.popen(sys.executable, *words, stdout=subprocess.PIPE, cwd=CHECKOUT)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield
    finally:
        server.kill()
        server.wait()


def assert_fetches(machine: Machine, guest: Guest, folder: Path) -> None:
    """Fail the test unless a guest's pip gets the wheel through the node."""
    trusted = folder / "trusted.pem"
    trusted.write_text(machine.sh("tproxy egress ca --pem"))
    words = ("-m", "pip", "--isolated", "download", "--no-cache-dir", "--no-deps", "--retries", "0")
    more = ("--proxy", "http://169.254.16.9:3128", "-d", str(folder), "demo")
    child = guest.popen(
        *(sys.executable, *words, *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "REQUESTS_CA_BUNDLE": str(trusted)},
    )
    said, _ = child.communicate(timeout=300)
    assert child.returncode == 0, said


def await_order(machine: Machine) -> None:
    for _ in eventually():
        if machine.run("tproxy", "egress", "status", check=False).returncode == 0:
            return


def prepare(machine: Machine, services: str) -> None:
    """Make a bridge, and the services that lead its guests to the egress."""
    machine.sh("mkdir -p /etc/tproxy; ip link set lo up; ip link add br0 type bridge; ip link set br0 up")
    machine.path("/etc/tproxy/tproxy.yaml").write_text(services)


def starts(machine: Machine) -> list[str]:
    """Return when each service of the egress was started last."""
    command = "systemctl show --value --property=ExecMainStartTimestampMonotonic"
    return [machine.sh(f"{command} {name}").strip() for name in SERVICES]


def test_up_installs_what_is_missing_and_down_removes_what_is_ours(
    node: Machine, wheels: Path, tmp_path: Path
) -> None:
    """One test: each step needs the one before, and a machine takes a minute."""
    prepare(node, lab.SERVICES)
    before = node.files()
    node.path("/etc/tproxy/egress.yaml").write_text(POLICY)
    with sites(node, tmp_path):
        assert "running, by the policy /etc/tproxy/egress.yaml" in node.sh("tproxy egress up")
        await_order(node)
        node.sh("tproxy hook up --bridge br0 --network build")
        guest = Guest(node, "guest", "br0")
        assert_fetches(node, guest, tmp_path)
        node.sh("systemctl restart tproxy-egress.target")
        await_order(node)
        assert_fetches(node, guest, tmp_path)

        first = starts(node)
        node.sh("tproxy egress up")
        assert starts(node) == first  # nothing has changed
        Egress().upgrade(node, node.put(wheels))
        node.sh("tproxy egress up")
        await_order(node)
        now = starts(node)
        assert all(new != old for new, old in zip(now, first, strict=True))
        assert_fetches(node, guest, tmp_path)
        node.sh("ip netns del guest; ip link del br0; tproxy stop; rm -r /run/tproxy /var/log/one_tproxy.log")
    assert "kept: Debian's packages, /etc/tproxy/egress.yaml" in node.sh("tproxy egress down --purge")
    new = node.files().keys() - before.keys()
    ours = {path for path in new if not BOOKS.match(path) and ("egress" in path or "systemd/system/" in path)}
    wanted = {"/etc/tproxy/egress.yaml"}
    # What Debian's packages have enabled of their own.
    assert {path for path in ours if not re.search(r"\.wants/|/lib/systemd/", path)} == wanted
    assert node.sh("systemctl is-enabled squid || :") == "disabled\n"


def test_join_leads_guests_of_another_hypervisor_to_the_node(
    node: Machine, distribution: Distribution, wheels: Path, tmp_path: Path
) -> None:
    with booted(distribution.codename) as far, sites(node, tmp_path):
        far.install(*Egress.needs)
        Egress().install(far, far.put(wheels))
        connect(node, far)
        node.path("/etc/tproxy/egress.yaml").write_text("listen: {hosts: 8444}\n" + POLICY)
        node.sh("tproxy egress up")
        await_order(node)
        words = "host add hv2 --network build --node 10.77.0.1:8444"
        far.path("/root/hv2.pem").write_text(node.sh(f"tproxy egress {words}"))
        assert "linked" in far.sh("tproxy egress join /root/hv2.pem")
        prepare(far, FAR_SERVICES)
        far.sh("tproxy hook up --bridge br0 --network build")
        guest = Guest(far, "guest", "br0")
        assert_fetches(node, guest, tmp_path)

        far.sh("systemctl kill --kill-who=main --signal=KILL tproxy-egress-link")
        node.sh("systemctl kill --kill-who=main --signal=KILL tproxy-egress-hosts")
        for machine, name in ((far, "tproxy-egress-link"), (node, "tproxy-egress-hosts")):
            for _ in eventually():
                if "=1" in machine.sh(f"systemctl show --property=NRestarts {name}"):
                    break
        for _ in eventually():
            with suppress(AssertionError):
                assert_fetches(node, guest, tmp_path)
                break
        far.sh("tproxy egress down --purge")
        assert not far.sh("nft list tables | grep egress || :")
        assert not far.path("/etc/tproxy/egress-link.pem").exists()


def connect(one: Machine, other: Machine) -> None:
    """Put a cable between two machines."""
    name = f"eg{one.pid}"[:15]
    pair = ("ip", "link", "add", name, "netns", str(one.pid), "type", "veth", "peer", "name", name)
    subprocess.run([*pair, "netns", str(other.pid)], check=True)
    for machine, address in ((one, "10.77.0.1"), (other, "10.77.0.2")):
        machine.sh(
            f"ip link set {name} name cable; ip address add {address}/24 dev cable; ip link set cable up"
        )
