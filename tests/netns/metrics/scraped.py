"""A host whose metrics are served, with services of which each shows something else."""

from __future__ import annotations

import json
import re
import signal
import sys
from contextlib import suppress

from prometheus_client.parser import text_string_to_metric_families

from tests.netns.conftest import ENDPOINTS
from tests.netns.metrics import unix_http
from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest, Hypervisor

ENDPOINT = "10.11.12.13"
PATIENCE = 30.0  # seconds: an answer that comes late is no failure on a busy machine
SOCKET = "/run/tproxy-metrics.sock"
PORT = 9469

# Two services that work, one whose endpoint refuses, one of which the first endpoint refuses. Of UDP: one
# with sessions that stay, one with short ones, and one whose endpoint refuses.
CONFIG = f"""\
tproxy_workers: 1
tproxy_max_connections_per_guest: 3
tproxy:
- {{service_port: 5030, name: packages, remote_addr: {ENDPOINT}, remote_port: 8080}}
- {{remote_addr: {ENDPOINT}, remote_port: 7, name: echo}}
- {{service_port: 5031, remote_addr: {ENDPOINT}, remote_port: 1}}
- {{service_port: 5032, remote_addr: [10.11.12.14, {ENDPOINT}], remote_port: 8080}}
- {{remote_addr: {ENDPOINT}, remote_port: 5353, name: kept, protocol: udp, udp_idle_timeout: 3600}}
- {{service_port: 5354, remote_addr: {ENDPOINT}, remote_port: 5353, name: short, protocol: udp,
   udp_idle_timeout: 1}}
- {{service_port: 5355, remote_addr: {ENDPOINT}, remote_port: 1, protocol: udp}}
"""

Key = tuple[str, frozenset[tuple[str, str]]]
Samples = dict[Key, float]


def key(name: str, **labels: str) -> Key:
    return name, frozenset(labels.items())


def service(name: str, label: str, **labels: str) -> Key:
    """The series of a service of br0."""
    return key(name, bridge="br0", network="vnet1", service=label, **labels)


def parse(text: str) -> Samples:
    return {
        key(sample.name, **sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Scraped:
    """Bridge br0 of the network vnet1, with one guest."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        host.add_bridge("br0")
        self.guest: Guest = host.add_guest("guest", "br0")
        host.add_endpoint(ENDPOINT, 8080, "one")
        host.ip("address add 10.11.12.14/32 dev lo")
        host.add_endpoint(ENDPOINT, 7, program=(sys.executable, str(ENDPOINTS), "echo"))
        host.add_endpoint(ENDPOINT, 5353, program=program("datagram_endpoint", "who"))
        self.config = host.write("/run/tproxy.yaml", CONFIG)
        host.tproxy("hook", "up", "--bridge", "br0", "--network", "vnet1", "--config", self.config)

    def serve(self) -> int:
        """Serve metrics; return the process id, in the stand-in."""
        places = ("--listen", SOCKET, "--listen", f"127.0.0.1:{PORT}")
        self.host.popen(sys.executable, "-m", "tproxy", "metrics", *places)
        for _ in eventually():
            found = self.host.run("pgrep", "-xf", "tproxy metrics", check=False).stdout
            if found and self.host.path(SOCKET).exists():
                with suppress(OSError):
                    self.fetch()
                    return int(found)
        raise AssertionError

    def fetch(self, request: str = unix_http.GET) -> str:
        """Return what the server answers at the UNIX socket."""
        return unix_http.ask(self.host.path(SOCKET), request)

    def scrape(self) -> Samples:
        return parse(unix_http.get(self.host.path(SOCKET)))

    def ask(self, port: int = 5030) -> str:
        with suppress(ProcessError):
            return self.guest.get(SERVICE_ADDRESS, port)
        return ""

    def send(self, port: int, *datagrams: tuple[int, str], seconds: float = PATIENCE) -> list[str]:
        """Send from sockets, by their numbers; return what came back, or ``silent`` and the like."""
        lines = json.dumps([(*each, seconds) for each in datagrams])
        sent = self.guest.run(*program("datagram_caller", SERVICE_ADDRESS, str(port), lines), timeout=100)
        return sent.stdout.splitlines()

    def worker(self) -> int:
        return int(re.findall(r"\d+", self.host.run("pgrep", "-x", "tproxy-worker").stdout)[0])

    def kill(self, pid: int) -> None:
        self.host.run("kill", f"-{signal.SIGKILL.value}", str(pid))
