"""The tour of the way in: a client outside reaches what guests of two networks serve, by name over HTTPS.

Both guests have one address, and no route to the client. Then come a guest and an sshd of a site behind NAT
(``inward_site``), and a policy for both hosts (``inward_fleet``). All that the tour prints comes from real
commands, and is compared with what it should be.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec

from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab import inward_fleet, inward_site, view
from tproxy.lab.hypervisor import PATIENCE, Hypervisor
from tproxy.lab.view import Run, Shown

CONFIG = "/run/tproxy.yaml"
CERTIFICATES = "/run/certificates"
CLIENT, GATEWAY, GATEWAY_IPV6 = "198.51.100.2", "198.51.100.1", "2001:db8::1"

# By network: its bridge, and what clients call its guest.
GUESTS = {"blue": ("lab0", "blue.example.com"), "green": ("lab1", "green.example.com")}
GUEST = "10.0.0.5"

_ROUTE = (
    "- {{id: {0}, domain: {0}.example.com, network: {1}, guest_addr: {3}, port: 80, tls: terminate, "
    "owner: {2}}}\n"
)
ROUTES = "tproxy_routes:\n" + "".join(
    _ROUTE.format(name, name, owner, GUEST) for name, owner in (("blue", "alice"), ("green", "bob"))
)
SHOP = _ROUTE.format("shop", "green", "bob", GUEST)

_PACKAGES = {
    "curl": "curl",
    "haproxy": "haproxy",
    "nft": "nftables",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "ping": "iputils-ping",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
}


def run_tour() -> int:
    """Build the lab, show it, and remove it. Return 0 if all was as expected, else 1. Raises ProcessError."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [program for program in _PACKAGES if not shutil.which(program, path=path)]
    if missing:
        packages = sorted({_PACKAGES[program] for program in missing})
        raise ProcessError(f"the tour needs {', '.join(missing)}: install {', '.join(packages)}")
    if not all(map(find_spec, ("asyncssh", "cryptography"))):
        raise ProcessError("the tour needs more Python packages: pip install 'one-tproxy[inward,fleet]'")
    with Hypervisor() as host:
        well = _Tour(host).show()
    view.tour_verdict(well, "Clients reach guests by name, and no packet is routed.")
    return 0 if well else 1


class _Tour:
    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        self.servers: dict[str, subprocess.Popen[str]] = {}
        host.ip(
            *("netns add client", "link add out0 type veth peer name eth0 netns client"),
            *(f"address add {GATEWAY}/24 dev out0", f"address add {GATEWAY_IPV6}/64 dev out0 nodad"),
            "link set out0 up",
        )
        host.ip(
            *(
                "link set lo up",
                f"address add {CLIENT}/24 dev eth0",
                "address add 2001:db8::2/64 dev eth0 nodad",
            ),
            *("link set eth0 up", f"route add default via {GATEWAY}"),
            netns="client",
        )
        for network, (bridge, _) in GUESTS.items():
            host.add_bridge(bridge)
            host.add_guest(network, bridge, f"{GUEST}/24")
            page = (sys.executable, "-m", "tproxy.lab.inside", "answer", GUEST, "80", f"{network}'s page")
            self.servers[network] = host.serve(*page, netns=network)
        self._make_certificate()

    def show(self) -> bool:
        """Print all scenes; return whether all was as it should be."""
        self._write(ROUTES)
        for network, (bridge, _) in GUESTS.items():
            self._run("hook", "up", "--bridge", bridge, "--network", network)
        well = self._run("gateway", "up", "--certificates", CERTIFICATES)
        well &= self._run("route", "list")
        well &= view.scene(
            f"A client at {CLIENT}, outside; both guests are {GUEST}:",
            [
                *(
                    Shown(f"https://{name}/", f"{network}'s page", self._curl(name))
                    for network, (_, name) in GUESTS.items()
                ),
                Shown(
                    "http://blue.example.com/", "blue's page", self._curl("blue.example.com", scheme="http")
                ),
                Shown("the same by IPv6", "blue's page", self._curl("blue.example.com", GATEWAY_IPV6)),
                Shown("by HTTP/2", "blue's page", self._curl("blue.example.com", option="--http2")),
                Shown("https://other.example.com/", "refused", self._curl("other.example.com")),
                Shown(f"ping {GUEST}", "no answer", self._ping()),
                Shown("whom the guest sees", SERVICE_ADDRESS, self._peer()),
            ],
        )
        before = self._haproxy()
        self._write(ROUTES + SHOP)
        self._run("refresh")
        well &= self._run("gateway", "up", "--certificates", CERTIFICATES)
        well &= view.scene(
            "A route more, while HAProxy runs:",
            [
                Shown("https://shop.example.com/", "green's page", self._curl("shop.example.com")),
                Shown("process of HAProxy", before, self._haproxy()),
            ],
        )
        well &= self._run("route", "test", "green")
        self._end_server("green")
        well &= view.scene(
            "The server in guest green ends:",
            [Shown("https://green.example.com/", "502", self._curl("green.example.com"))],
        )
        well &= self._run("route", "test", "green", code=1)
        with inward_site.site(self.host) as site:
            well &= self._show_site(site)
            hosts = {"gateway": self.host, inward_site.NAME: site.host}
            guests = {"blue": (self.host, "blue"), "at the site": (site.host, "guest")}
            well &= inward_fleet.show(hosts, guests)
        well &= self._run("gateway", "usage")
        return well & self._run("gateway", "down", "--purge")

    def _show_site(self, site: inward_site.Site) -> bool:
        """Show a guest and an sshd behind NAT."""
        self._write(ROUTES + SHOP + inward_site.AT_GATEWAY)
        well = site.join()
        well &= self._run("gateway", "up", "--certificates", CERTIFICATES)
        name = inward_site.DOMAIN
        reached = [Shown(f"https://{name}/", "the page behind NAT", self._curl(name)), *site.log_in()]
        return well & view.scene("A site behind NAT has dialled the gateway:", reached)

    def _end_server(self, network: str) -> None:
        """End a guest's server, and return when nothing listens there."""
        self.servers[network].kill()
        deadline = time.monotonic() + PATIENCE
        while self.host.run("ss", "-Htln", netns=network).stdout and time.monotonic() < deadline:
            time.sleep(0.05)

    def _write(self, text: str) -> None:
        self.host.write(CONFIG, text)

    def _run(self, *words: str, code: int = 0) -> bool:
        begin = time.monotonic()
        done = self.host.tproxy(*words, check=False, env={"TPROXY_CONFIG": CONFIG})
        view.run(
            Run(
                f"tproxy {' '.join(words)}",
                done.stdout + done.stderr,
                done.returncode,
                time.monotonic() - begin,
            )
        )
        return done.returncode == code

    def _curl(
        self, name: str, address: str = GATEWAY, *, scheme: str = "https", option: str = "--http1.1"
    ) -> str:
        """Return what a client gets: a page, the status of an error, or that it is refused."""
        where = f"[{address}]" if ":" in address else address
        resolve = (part for port in (80, 443) for part in ("--resolve", f"{name}:{port}:{where}"))
        done = self.host.run(
            *("curl", "-sSf", "--cacert", f"{CERTIFICATES}/all.crt", "--max-time", f"{PATIENCE:.0f}"),
            *(*resolve, option, f"{scheme}://{name}/"),
            check=False,
            netns="client",
            timeout=2 * PATIENCE,
        )
        if done.returncode == 22:  # a status
            return done.stderr.split()[-1]
        return done.stdout if done.returncode == 0 else "refused"

    def _ping(self) -> str:
        done = self.host.run("ping", "-c1", "-W1", GUEST, check=False, netns="client")
        return "an answer" if done.returncode == 0 else "no answer"

    def _peer(self) -> str:
        """The address from which guest blue was connected to."""
        shown = self.host.run("ss", "-Htan", "sport = :80", netns="blue").stdout
        peers = (line.split()[4] for line in shown.splitlines() if not line.startswith("LISTEN"))
        return " ".join(sorted({each.rpartition(":")[0] for each in peers}))

    def _haproxy(self) -> str:
        return " ".join(sorted(self.host.run("pgrep", "-x", "haproxy").stdout.split()))

    def _make_certificate(self) -> None:
        names = [*(name for _, name in GUESTS.values()), "shop.example.com", inward_site.DOMAIN]
        file = f"{CERTIFICATES}/all"
        self.host.write(f"{CERTIFICATES}/README", "")
        self.host.run(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", f"{file}.key", "-out", f"{file}.crt", "-days", "2", "-subj", "/CN=lab"),
            *("-addext", f"subjectAltName={','.join(f'DNS:{name}' for name in names)}"),
        )
        texts = [self.host.path(f"{file}.{kind}").read_text() for kind in ("crt", "key")]
        self.host.write(f"{file}.pem", "".join(texts))
