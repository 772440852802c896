"""OpenNebula's events, as its drivers call the hooks, on real bridges: each ends in exactly the right state.

Everything is where it is on a real hypervisor, under /var/tmp/one, put there by ``tproxy install``; and the
hooks run as oneadmin, with sudo and the snippet as the only way to root.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.opennebula_vm import alias, line, nic, pci, vm, xml
from tproxy.errors import ProcessError
from tproxy.hypervisor import Guest, Hypervisor
from tproxy.model import SERVICE_ADDRESS, BridgeNames

ENDPOINT = "10.11.12.13"
CONF = f"""
:vxlan_ttl: 16
:tproxy:
- :service_port: 5030
  :remote_addr: {ENDPOINT}
  :remote_port: 8080
"""
REMOTES = "/var/tmp/one"
STOCK_DRIVERS = ("802.1Q", "bridge", "fw", "ovswitch", "vxlan")
ONEADMIN = 9869  # the number that OpenNebula's packages take
THEIR_COMMAND = "#!/usr/bin/env ruby\nputs 'OpenNebula'\n"
TPROXY = Path(sys.executable).with_name("tproxy")


class Node(NamedTuple):
    """A hypervisor as OpenNebula sets one up, and what its drivers do on it."""

    host: Hypervisor

    def install(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.host.run(
            str(TPROXY), "install", "opennebula", "--remotes", REMOTES, *options, check=check
        )

    def hook(
        self, phase: str, stdin: str, *arguments: str, driver: str = "bridge", shell: str = "exec"
    ) -> subprocess.CompletedProcess[str]:
        """The hook of a driver, as vnm_driver.rb runs it: by a shell, with the VM on stdin, as oneadmin."""
        command = f"{shell} {REMOTES}/vnm/{driver}/{phase}.d/tproxy {' '.join(arguments)}"
        user = ("setpriv", f"--reuid={ONEADMIN}", f"--regid={ONEADMIN}", "--clear-groups")
        return self.host.run(*user, "sh", "-c", command, input=stdin, check=False)

    def pre(self, stdin: str, bridge: str = "onebr0", uplink: str = "", driver: str = "bridge") -> None:
        """The driver makes the bridge and puts the uplink on it, then its hooks are run."""
        if f" {bridge}: " not in self.host.run("ip", "-o", "link", "show", "type", "bridge").stdout:
            self.host.add_bridge(bridge)
        if uplink:
            self.host.ip(f"link add name {uplink} type veth peer name wire", f"link set {uplink} up")
            self.host.ip(f"link set dev {uplink} master {bridge}")
        self.silent(self.hook("pre", stdin, driver=driver))

    def post(self, stdin: str, *, driver: str = "bridge", host: str = "node1") -> None:
        self.silent(self.hook("post", stdin, "one-7", host, driver=driver))

    def clean(self, stdin: str, bridge: str = "onebr0", uplink: str = "", driver: str = "bridge") -> None:
        """The driver removes uplink and bridge when no guest is left, then its hooks are run."""
        ours = BridgeNames(bridge).veth_bridge
        ports = self.host.run("ls", f"/sys/class/net/{bridge}/brif").stdout.split()
        if set(ports) <= {uplink, ours}:
            self.host.ip(*([f"link del {uplink}"] if uplink else []), f"link del {bridge}")
        self.silent(self.hook("clean", stdin, "node1", driver=driver))

    @staticmethod
    def silent(done: subprocess.CompletedProcess[str]) -> None:
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def state(self) -> list[str]:
        """All that hooks may have left on the host."""
        looks = (
            ("ip", "-br", "link"),
            ("nft", "list", "ruleset"),
            ("find", "/run/netns", "-mindepth", "1", "-name", "one_*"),
            ("pgrep", "-af", "^one_tproxy|^tproxy-"),
        )
        return [self.host.run(*look, check=False).stdout for look in looks]

    def served(self) -> list[str]:
        """The bridges that have services: a map, a namespace and a relay each."""
        maps = self.host.run("sh", "-c", "nft list maps ip | sed -n 's/.*map ep_\\(.*\\) {/\\1/p'").stdout
        spaces = self.host.run(
            "sh", "-c", "cd /run/netns 2>/dev/null && ls -d one_tproxy_*", check=False
        ).stdout
        status = self.host.tproxy("status").stdout.splitlines()
        names = sorted(maps.split())
        assert sorted(spaces.split()) == [f"one_tproxy_{name}" for name in names]
        relays = [each.partition(":")[0] for each in status[1:]]
        assert relays == [f"one_tproxy_{name}" for name in names]
        assert bool(status) == bool(names)
        return names

    def boot(self, name: str = "guest", bridge: str = "onebr0", address: str = "10.0.0.5/24") -> Guest:
        return self.host.add_guest(name, bridge, address)

    def shut_down(self, guest: Guest) -> None:
        self.host.ip(f"link del {guest.port}", f"netns del {guest.name}")


def furnish(host: Hypervisor, remotes: Path, conf: str = CONF) -> Node:
    """What OpenNebula's packages and onehost sync have put on a hypervisor."""
    for driver in STOCK_DRIVERS:
        (remotes / "vnm" / driver).mkdir(parents=True)
    (remotes / "vnm/tproxy").write_text(THEIR_COMMAND)
    (remotes / "etc/vnm").mkdir(parents=True)
    (remotes / "etc/vnm/OpenNebulaNetwork.conf").write_text(conf)
    remotes.chmod(0o755)
    # With * as password sudo needs no shadow file for the account.
    host.write("/run/passwd", f"root:x:0:0::/root:/bin/sh\noneadmin:*:{ONEADMIN}:{ONEADMIN}::/:/bin/sh\n")
    host.write("/run/hosts", "127.0.0.1 localhost\n")
    mounts = (
        "mount -t tmpfs -o mode=755 none /var/tmp",
        f"mkdir {REMOTES} /run/sudoers.d",
        f"mount --bind /proc/1/root{remotes} {REMOTES}",
        "mount --bind /run/sudoers.d /etc/sudoers.d",
        "mount --bind /run/passwd /etc/passwd",
    )
    host.run("sh", "-ec", "\n".join(mounts))
    host.add_endpoint(ENDPOINT, 8080, "hello")
    return Node(host)


@pytest.fixture
def bare_node(hypervisor: Hypervisor, tmp_path: Path) -> Node:
    return furnish(hypervisor, tmp_path)


@pytest.fixture
def node(bare_node: Node) -> Node:
    bare_node.install("--sudoers", "/etc/sudoers.d")
    return bare_node


@pytest.fixture
def other_node(real_kernel: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Hypervisor() as host:
        node = furnish(host, tmp_path_factory.mktemp("one"))
        node.install("--sudoers", "/etc/sudoers.d")
        yield node


@pytest.mark.parametrize(
    ("driver", "uplink"),
    [("bridge", ""), ("bridge", "eth1"), ("fw", "eth1"), ("802.1Q", "eth1.100"), ("vxlan", "eth1.100")],
)
def test_deploy_resume_and_shut_down(node: Node, driver: str, uplink: str) -> None:
    before = node.state()
    phydev = {"PHYDEV": "eth1"} if uplink else {}
    machine = vm(nic(VN_MAD=driver, VLAN_ID="100", **phydev))  # type: ignore[arg-type]
    for _ in ("deployed", "resumed after poweroff"):
        node.pre(machine, uplink=uplink, driver=driver)
        guest = node.boot()
        assert guest.get(SERVICE_ADDRESS, 5030) == "hello"  # at once: it may ask before `post`
        node.post(machine, driver=driver)
        assert node.served() == ["onebr0"]
        uplinks = node.host.run("nft", "list", "set", "bridge", "one_tproxy", "uplinks").stdout
        assert f'"{uplink}" comment' in uplinks or not uplink
        node.shut_down(guest)
        node.clean(machine, uplink=uplink, driver=driver)
        assert node.served() == []
        assert node.state() == before
