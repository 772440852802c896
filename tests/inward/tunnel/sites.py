"""A gateway for tunnels, sites behind NAT, and an operator's desk: all of them stand-in hosts.

    desk 198.51.100.2 ── gateway 198.51.100.1, 192.0.2.1 ── 192.0.2.2 NAT 10.1.N.1 ── site N 10.1.N.2

All files are below /run, which each stand-in has for itself. A site has a real sshd, and no address that the
gateway has a route to.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import PATIENCE, Hypervisor

SSHD = "/usr/sbin/sshd"
GATEWAY, NAT, DESK = "192.0.2.1", "192.0.2.2", "198.51.100.2"
PORT = 18000
ENV = {
    "TPROXY_CONFIG": "/run/etc/tproxy.yaml",
    "TPROXY_TUNNEL_STATE": "/run/state",
    "TPROXY_NODE_DIRECTORY": "/run/node",
    "TPROXY_HOST_KEYS": "/run/ssh/host_key.pub",
    "HOME": "/run/home",
}
OPERATOR = {"TPROXY_OPERATOR_DIRECTORY": "/run/operator"}
POLICY = """
tproxy_tunnels:
- {nodes: '*', offer: [ssh, 'api:6443', 'echo:7']}
"""

_SSHD_CONFIG = """
ListenAddress 127.0.0.1:22
HostKey /run/ssh/host_key
TrustedUserCAKeys /run/node/operators.pub
AuthorizedKeysFile none
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
"""


class Site:
    """A host that can become a node."""

    def __init__(self, host: Hypervisor, number: int) -> None:
        self.host = host
        self.number = number
        self.tunnel: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"10.1.{self.number}.2"

    def run_sshd(self) -> None:
        self.host.write("/run/ssh/sshd_config", _SSHD_CONFIG)
        self.host.run("mkdir", "-p", "/run/sshd", "/run/home", "/run/node")
        if not self.host.path("/run/ssh/host_key").exists():
            keygen = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", "/run/ssh/host_key")
            self.host.run(*keygen)
        self.host.popen(SSHD, "-D", "-e", "-f", "/run/ssh/sshd_config", stderr=subprocess.DEVNULL)

    def configure(self, text: str, **more: str) -> None:
        """Write the node's file: what `node token add` printed, and more."""
        lines = "".join(f"{key}: {value}\n" for key, value in more.items())
        self.host.write("/run/tunnel.yaml", f"{text}host_keys: /run/ssh/host_key.pub\n{lines}")

    def start(self) -> subprocess.Popen[str]:
        """Run `tproxy tunnel`."""
        with open(self.host.path("/run/tunnel.log"), "a") as log:
            self.tunnel = self.host.popen(
                *(sys.executable, "-m", "tproxy", "tunnel", "--config", "/run/tunnel.yaml"),
                env=ENV,
                stderr=log,
                stdout=log,
            )
        return self.tunnel

    def stop(self) -> None:
        assert self.tunnel is not None
        end(self.tunnel)

    def log(self) -> str:
        return self.host.path("/run/tunnel.log").read_text()

    def tproxy(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.host.tproxy(*arguments, check=check, env=ENV)


class World:
    """The gateway with what is before and behind it."""

    def __init__(self, stack: ExitStack, sites: int) -> None:
        self.gateway, self.nat, self.desk = (stack.enter_context(Hypervisor()) for _ in range(3))
        self.gateway.add_cable(self.nat, "net")
        self.gateway.ip(f"address add {GATEWAY}/24 dev net")
        self.nat.ip(f"address add {NAT}/24 dev net")
        self.gateway.add_cable(self.desk, "desk")
        self.gateway.ip("address add 198.51.100.1/24 dev desk")
        self.desk.ip(f"address add {DESK}/24 dev desk", f"route add {GATEWAY} via 198.51.100.1")
        self.nat.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.masquerade()
        self.sites = []
        for number in range(1, sites + 1):
            host = stack.enter_context(Hypervisor())
            host.add_cable(self.nat, f"site{number}")
            host.ip(
                f"address add 10.1.{number}.2/24 dev site{number}", f"route add default via 10.1.{number}.1"
            )
            self.nat.ip(f"address add 10.1.{number}.1/24 dev site{number}")
            site = Site(host, number)
            site.run_sshd()
            self.sites.append(site)
        self.desk.run("mkdir", "-p", "/run/home")
        self.write_policy(POLICY)
        self.process: subprocess.Popen[str] | None = None

    def rebind(self, address: str) -> None:
        """Give the NAT another address: packets of connections that are there lead nowhere from now on."""
        self.nat.ip(f"address del {NAT}/24 dev net", f"address add {address}/24 dev net")
        self.masquerade(address)
        self.gateway.ip("neigh flush dev net")

    def masquerade(self, address: str = NAT) -> None:
        """Translate the sites' addresses into this one, for new connections."""
        self.nat.run(
            *("nft", "-f", "-"),
            input="table ip nat\ndelete table ip nat\ntable ip nat {\n"
            " chain out { type nat hook postrouting priority srcnat;\n"
            f" oifname net snat to {address}\n }}\n}}\n",
        )

    def write_policy(self, text: str) -> None:
        path = self.gateway.path("/run/etc/tproxy.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name("new")
        new.write_text(text)
        new.rename(path)

    def serve(self, *options: str) -> None:
        """Run the gateway until it is ready."""
        log = open(self.gateway.path("/run/gateway.log"), "a")  # noqa: SIM115 - the process has it
        with log:
            self.process = self.gateway.popen(
                *(sys.executable, "-m", "tproxy", "tunnel", "serve"),
                *("--audit", "/run/audit/audit.log", *options),
                env=ENV,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.log()

    def stop(self) -> None:
        assert self.process is not None
        end(self.process)

    def log(self) -> str:
        return self.gateway.path("/run/gateway.log").read_text()

    def tproxy(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command at the gateway."""
        return self.gateway.tproxy(*arguments, check=check, env=ENV)

    def token(self, nodes: str = "*", *options: str) -> str:
        """Return the text of a node's file."""
        said = ("node", "token", "add", "--nodes", nodes, "--gateway", GATEWAY, *options)
        return self.tproxy(*said).stdout

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return what the gateway says of each node, by name."""
        found = json.loads(self.tproxy("node", "list", "--json").stdout)
        return {each["name"]: each for each in found["nodes"]}

    def await_state(self, node: str, state: str) -> dict[str, Any]:
        """Wait until a node's state begins like this; return what is known of it."""
        for _ in eventually():
            found = self.nodes().get(node)
            if found and found["state"].startswith(state):
                return found
        raise AssertionError

    def await_offer(self, node: str, offer: str) -> None:
        for _ in eventually():
            if offer in self.nodes().get(node, {"offers": ()})["offers"]:
                return

    def audit(self, event: str = "", **said: object) -> list[dict[str, Any]]:
        """Return the lines of the audit log that are of an event, and have these values."""
        path = self.gateway.path("/run/audit/audit.log")
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [each for each in lines if event in ("", each["event"]) and said.items() <= each.items()]

    def await_audit(self, event: str, text: str = "", **said: object) -> dict[str, Any]:
        for _ in eventually():
            for each in self.audit(event, **said):
                if text in each.get("reason", ""):
                    return each
        raise AssertionError

    # The operator

    def at_desk(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of tproxy at the operator's desk."""
        return self.desk.tproxy(*arguments, check=check, env=ENV | OPERATOR)

    def add_operator(self, name: str, nodes: str = "*", directory: str = "/run/operator") -> None:
        """Add an operator at the gateway, and log in at the desk."""
        said = self.tproxy("operator", "add", name, "--nodes", nodes, "--login", "root", "--gateway", GATEWAY)
        words = said.stdout.strip().removeprefix("tproxy ").split("'")
        login = [*words[0].split(), words[1], *words[2].split(), "--directory", directory]
        self.at_desk(*login)

    def ssh(
        self, *arguments: str, check: bool = True, directory: str = "/run/operator"
    ) -> subprocess.CompletedProcess[str]:
        """Run ssh at the desk with the configuration of the login."""
        return self.desk.run("ssh", "-F", f"{directory}/config", *arguments, check=check, env=ENV)


def signalled(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal to a program of a stand-in: it is the child of the process that entered there."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        for child in file.read().split():
            os.kill(int(child), number)


def end(process: subprocess.Popen[str]) -> None:
    """End a program of a stand-in, and wait until it has ended."""
    signalled(process, signal.SIGTERM)
    process.wait(PATIENCE)


@contextmanager
def world(sites: int) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack, sites)


__all__ = ["DESK", "ENV", "GATEWAY", "NAT", "PATIENCE", "PORT", "Site", "World", "world"]
