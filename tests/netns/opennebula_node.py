"""A stand-in hypervisor set up like a hypervisor of OpenNebula, and the work of its network drivers.

All files are at their usual paths below /var/tmp/one. Hooks run as oneadmin, and become root only with sudo
and the sudoers snippet.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tests.netns.ruleset import lasting
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Guest, Hypervisor
from tproxy.names import BridgeNames

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
    """A hypervisor of OpenNebula, and the work of its network drivers."""

    host: Hypervisor

    def install(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.host.run(
            str(TPROXY), "install", "opennebula", "--remotes", REMOTES, *options, check=check
        )

    def hook(
        self, phase: str, stdin: str, *arguments: str, driver: str = "bridge", shell: str = "exec"
    ) -> subprocess.CompletedProcess[str]:
        """Run the hook of a driver as vnm_driver.rb does: with a shell, with the VM on stdin, as oneadmin."""
        command = f"{shell} {REMOTES}/vnm/{driver}/{phase}.d/tproxy {' '.join(arguments)}"
        user = ("setpriv", f"--reuid={ONEADMIN}", f"--regid={ONEADMIN}", "--clear-groups")
        return self.host.run(*user, "sh", "-c", command, input=stdin, check=False)

    def pre(self, stdin: str, bridge: str = "onebr0", uplink: str = "", driver: str = "bridge") -> None:
        """Run pre: the driver makes the bridge and puts the uplink on it, and then runs its hooks."""
        if f" {bridge}: " not in self.host.run("ip", "-o", "link", "show", "type", "bridge").stdout:
            self.host.add_bridge(bridge)
        if uplink:
            self.host.ip(f"link add name {uplink} type veth peer name wire", f"link set {uplink} up")
            self.host.ip(f"link set dev {uplink} master {bridge}")
        self.silent(self.hook("pre", stdin, driver=driver))

    def post(self, stdin: str, *, driver: str = "bridge", host: str = "node1") -> None:
        self.silent(self.hook("post", stdin, "one-7", host, driver=driver))

    def clean(self, stdin: str, bridge: str = "onebr0", uplink: str = "", driver: str = "bridge") -> None:
        """Run clean: the driver removes uplink and bridge if no guest is left, and then runs its hooks."""
        ours = BridgeNames(bridge).veth_bridge
        ports = self.host.run("ls", f"/sys/class/net/{bridge}/brif").stdout.split()
        if set(ports) <= {uplink, ours}:
            self.host.ip(*([f"link del {uplink}"] if uplink else []), f"link del {bridge}")
        self.silent(self.hook("clean", stdin, "node1", driver=driver))

    @staticmethod
    def silent(done: subprocess.CompletedProcess[str]) -> None:
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def state(self) -> list[str]:
        """Return everything that hooks could leave on the host."""
        looks = (
            ("ls", "/sys/class/net"),
            ("nft", "list", "ruleset"),
            ("find", "/run/netns", "-mindepth", "1", "-name", "one_*"),
            ("pgrep", "-af", "^one_tproxy|^tproxy-"),
        )
        return [lasting(self.host.run(*look, check=False).stdout) for look in looks]

    def served(self) -> list[str]:
        """Return the bridges that have services. Each must have a map, a namespace and a relay."""
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

    def boot(
        self,
        name: str = "guest",
        bridge: str = "onebr0",
        address: str = "10.0.0.5/24",
        nic: int | None = None,
    ) -> Guest:
        """Start a guest; with the MAC and the port of this NIC of ``opennebula_vm``."""
        guest = self.host.add_guest(name, bridge, address)
        if nic is None:
            return guest
        self.host.ip(f"link set {guest.port} name one-7-{nic}")
        guest.ip(f"link set eth0 address 02:00:0a:00:00:{5 + nic:02x}")
        return replace(guest, port=f"one-7-{nic}")

    def shut_down(self, guest: Guest) -> None:
        self.host.ip(f"link del {guest.port}", f"netns del {guest.name}")


def furnish(host: Hypervisor, remotes: Path, conf: str = CONF) -> Node:
    """Set a stand-in up with the files of OpenNebula's packages and of onehost sync."""
    for driver in STOCK_DRIVERS:
        (remotes / "vnm" / driver).mkdir(parents=True)
    (remotes / "vnm/tproxy").write_text(THEIR_COMMAND)
    (remotes / "etc/vnm").mkdir(parents=True)
    (remotes / "etc/vnm/OpenNebulaNetwork.conf").write_text(conf)
    remotes.chmod(0o755)
    # With * as password sudo needs no shadow file for the account.
    host.write("/run/passwd", f"root:x:0:0::/root:/bin/sh\noneadmin:*:{ONEADMIN}:{ONEADMIN}::/:/bin/sh\n")
    host.write("/run/hosts", "127.0.0.1 localhost hypervisor\n")  # sudo looks itself up
    mounts = (
        "mount -t tmpfs -o mode=755 none /var/tmp",
        f"mkdir {REMOTES} /run/sudoers.d",
        f"mount --bind {remotes} {REMOTES}",
        "mount --bind /run/sudoers.d /etc/sudoers.d",
        "mount --bind /run/passwd /etc/passwd",
        "mount --bind /run/hosts /etc/hosts",
        # Hide the configuration of this machine.
        "[ ! -d /etc/tproxy ] || mount -t tmpfs none /etc/tproxy",
    )
    host.run("sh", "-ec", "\n".join(mounts))
    host.add_endpoint(ENDPOINT, 8080, "hello")
    return Node(host)


class OwnDriver(NamedTuple):
    """OpenNebula's own driver (tproxy.rb): it makes links and maps, and calls the command ``tproxy``."""

    node: Node

    def enable(self, bridge: str, port: int = 5030, endpoint: str = ENDPOINT) -> None:
        host, inner = self.node.host, f"one_tproxy_{bridge}"
        if host.run("ip", "link", "show", f"{bridge}b", check=False).returncode:
            host.ip(f"link add {bridge}b type veth peer name {bridge}a")
        host.ip(f"link set dev {bridge}b master {bridge} up")
        if host.run("ip", "netns", "pids", inner, check=False).returncode:
            host.run("ip", "netns", "add", inner)
        if not host.run("ip", "link", "show", f"{bridge}a", check=False).returncode:
            host.ip(f"link set {bridge}a netns {inner}")
        for command in (
            f"address replace {SERVICE_ADDRESS}/32 dev {bridge}a",
            f"link set dev {bridge}a up",
            f"route replace default dev {bridge}a",
        ):
            host.run("ip", "netns", "exec", inner, "ip", *command.split())
        chain = f"chain bridge one_tproxy ch_{bridge}"
        host.run("nft", "add table bridge one_tproxy")
        host.run("nft", f"add {chain} {{ type filter hook forward priority filter; policy accept; }}")
        guard = f'meta ibrname "{bridge}" oifname != "{bridge}b" arp operation request arp daddr ip'
        rule = f"{chain.removeprefix('chain ')} {guard} {SERVICE_ADDRESS} drop"
        # A kernel without ibrname refuses this rule. OpenNebula's driver would fail; the test goes on
        # without.
        host.run("nft", f"flush {chain}; add rule {rule}", check=False)
        services = f"map ip one_tproxy ep_{bridge}"
        host.run("nft", "add table ip one_tproxy")
        host.run("nft", f"add {services} {{ type inet_service : ipv4_addr . inet_service; }}")
        element = services.removeprefix("map ")
        host.run("nft", f"flush {services}; add element {element} {{ {port} : {endpoint} . 8080 }}")
        self.call("start")
        self.call("reload")

    def disable(self, bridge: str) -> None:
        host = self.node.host
        host.run("nft", "-f", "-", input=f"delete map ip one_tproxy ep_{bridge};")
        host.run("nft", "-f", "-", input=f"delete chain bridge one_tproxy ch_{bridge};")
        host.ip(f"link delete {bridge}b")
        host.run("ip", "netns", "delete", f"one_tproxy_{bridge}")
        self.call("start")
        self.call("reload")

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call the command as the driver and operators do."""
        return self.node.host.run(
            *("setpriv", f"--reuid={ONEADMIN}", f"--regid={ONEADMIN}", "--clear-groups"),
            *("sudo", "-n", f"{REMOTES}/vnm/tproxy", *arguments),
        )
