"""The second part of the tour of the way in: a site behind NAT, its guest and its sshd, over one tunnel.

Gateway and site are two stand-in hosts, with a third one between them that translates addresses. The gateway
has no route to the site.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tproxy.errors import ProcessError
from tproxy.lab import view
from tproxy.lab.hypervisor import PATIENCE, Hypervisor
from tproxy.lab.view import Run, Shown

GATEWAY, NAT = "192.0.2.1", "192.0.2.2"
INSIDE, SITE = "10.1.0.1", "10.1.0.2"
NAME, DOMAIN = "site-a", "site.example.com"
GUEST = "10.0.0.5"

_GUEST = f"id: site, network: lan, guest_addr: {GUEST}, port: 80, domain: {DOMAIN}, tls: terminate"
# What the gateway's file has for the site, and the site's own file.
AT_GATEWAY = f"""\
- {{{_GUEST}, node: {NAME}}}
tproxy_tunnels:
- {{nodes: 'site-*', offer: [ssh, in], routes: true}}
"""
AT_SITE = f"tproxy_routes:\n- {{{_GUEST}}}\n"

_NAT = f"""
table ip nat {{
    chain out {{
        type nat hook postrouting priority srcnat;
        oifname net snat to {NAT}
    }}
}}
"""

_SSHD = """
ListenAddress 127.0.0.1:22
HostKey /run/ssh/host_key
TrustedUserCAKeys /run/node/operators.pub
AuthorizedKeysFile none
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
"""

_ENVIRONMENT = {
    "TPROXY_CONFIG": "/run/tproxy.yaml",
    "TPROXY_TUNNEL_STATE": "/run/tunnels",
    "TPROXY_NODE_DIRECTORY": "/run/node",
    "TPROXY_HOST_KEYS": "/run/ssh/host_key.pub",
    "HOME": "/run/home",
}
_OPERATOR = {"TPROXY_OPERATOR_DIRECTORY": "/run/operator", "HOME": "/run/home"}


class Site:
    """The site. ``gateway`` is the host of the gateway, whose file has AT_GATEWAY."""

    def __init__(self, gateway: Hypervisor, nat: Hypervisor, site: Hypervisor) -> None:
        self._gateway = gateway
        self.host = site
        gateway.add_cable(nat, "net")
        gateway.ip(f"address add {GATEWAY}/24 dev net")
        nat.ip(f"address add {NAT}/24 dev net")
        nat.add_cable(site, "lan")
        nat.ip(f"address add {INSIDE}/24 dev lan")
        nat.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        nat.run("nft", "-f", "-", input=_NAT)
        site.ip(f"address add {SITE}/24 dev lan", f"route add default via {INSIDE}")
        site.run("hostname", NAME)
        self._start_sshd()
        site.add_bridge("br0")
        site.add_guest("guest", "br0", f"{GUEST}/24")
        page = (sys.executable, "-m", "tproxy.lab.inside", "answer", GUEST, "80", "the page behind NAT")
        site.serve(*page, netns="guest")

    def join(self) -> bool:
        """Have the site dial the gateway, and print how; return whether the gateway has it."""
        self._gateway.run("mkdir", "-p", "/run/home", "/run/audit")
        serve = (sys.executable, "-m", "tproxy", "tunnel", "serve", "--audit", "/run/audit/audit.log")
        with open(self._gateway.path("/run/tunnels.log"), "w") as log:
            serving = self._gateway.popen(*serve, env=_ENVIRONMENT, stdout=subprocess.PIPE, stderr=log)
        assert serving.stdout is not None
        if serving.stdout.readline() != "ready\n":
            raise ProcessError(f"no gateway: {self._gateway.path('/run/tunnels.log').read_text()}")
        self.host.write("/run/tproxy.yaml", AT_SITE)
        well = self._run(self.host, "hook", "up", "--bridge", "br0", "--network", "lan")
        token = ("node", "token", "add", "--nodes", "site-*", "--gateway", GATEWAY, "--approve")
        file = self._command(self._gateway, *token)
        view.run(Run(f"tproxy {' '.join(token)} > tunnel.yaml", "", file.returncode, 0.0))
        self.host.write("/run/tunnel.yaml", f"{file.stdout}host_keys: /run/ssh/host_key.pub\n")
        with open(self.host.path("/run/tunnel.log"), "w") as log:
            argv = (sys.executable, "-m", "tproxy", "tunnel", "--config", "/run/tunnel.yaml")
            self.host.popen(*argv, env=_ENVIRONMENT, stdout=log, stderr=log)
        view.run(Run(f"tproxy tunnel --config tunnel.yaml    # at the site, {SITE}", "", 0, 0.0))
        deadline = time.monotonic() + PATIENCE
        while '"up"' not in (listed := self._command(self._gateway, "node", "list", "--json")).stdout:
            if time.monotonic() > deadline:
                said = self.host.path("/run/tunnel.log").read_text()
                raise ProcessError(f"no tunnel: {said or listed.stderr}")
            time.sleep(0.2)
        return well & self._run(self._gateway, "node", "list")

    def log_in(self) -> list[Shown]:
        """Add an operator, and log in at the site by ssh, from the network of clients."""
        add = ("operator", "add", "alice", "--nodes", "site-*", "--login", "root", "--gateway", GATEWAY)
        said = self._command(self._gateway, *add).stdout.strip()
        view.run(Run(f"tproxy {' '.join(add)}", said, 0, 0.0))
        self._gateway.run(*_words(said), netns="client", env=_OPERATOR)
        ssh = ("ssh", "-F", "/run/operator/config", NAME, "hostname")
        done = self._gateway.run(*ssh, check=False, netns="client", env=_OPERATOR)
        dialled = self._gateway.run("ping", "-c1", "-W1", SITE, check=False)
        return [
            Shown(f"ssh {NAME} hostname", NAME, done.stdout.strip() or done.stderr.strip()),
            Shown(
                f"ping {SITE} from the gateway",
                "no answer",
                "an answer" if not dialled.returncode else "no answer",
            ),
        ]

    def _start_sshd(self) -> None:
        self.host.write("/run/ssh/sshd_config", _SSHD)
        self.host.run("mkdir", "-p", "/run/sshd", "/run/home", "/run/node")
        self.host.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", "/run/ssh/host_key")
        log = subprocess.DEVNULL
        self.host.popen("/usr/sbin/sshd", "-D", "-e", "-f", "/run/ssh/sshd_config", stderr=log)

    def _run(self, host: Hypervisor, *words: str) -> bool:
        begin = time.monotonic()
        done = self._command(host, *words)
        view.run(
            Run(
                f"tproxy {' '.join(words)}",
                done.stdout + done.stderr,
                done.returncode,
                time.monotonic() - begin,
            )
        )
        return done.returncode == 0

    def _command(self, host: Hypervisor, *words: str) -> subprocess.CompletedProcess[str]:
        return host.tproxy(*words, check=False, env=_ENVIRONMENT)


def _words(command: str) -> list[str]:
    """The command of `tproxy operator add`, for this source tree."""
    return [sys.executable, "-m", *shlex.split(command)]


@contextmanager
def site(gateway: Hypervisor) -> Iterator[Site]:
    """Build the site, and remove it."""
    with Hypervisor() as nat, Hypervisor() as host:
        yield Site(gateway, nat, host)
