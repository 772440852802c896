"""A host with guests, and a gateway before them, for tests by real clients."""

from __future__ import annotations

import subprocess
import sys

from tests.netns.conftest import ENDPOINTS
from tproxy.lab.hypervisor import Hypervisor

CONFIG = """
tproxy_routes:
- {id: plain, network: blue, guest_addr: 10.0.0.5, port: 80, port_tls: 443, domain: plain.example.com,
   owner: alice}
- {id: ended, network: blue, guest_addr: 10.0.0.6, port: 80, tls: terminate, domain: ended.example.com,
   owner: bob}
- {id: wild, network: blue, guest_addr: 10.0.0.5, port: 80, tls: terminate, domain: '*.wild.example.com'}
- {id: told, network: blue, guest_addr: 10.0.0.5, port: 7, gateway_port: 10007, proxy_protocol: v2}
- {id: mail, network: blue, guest_addr: 10.0.0.5, port: 25, gateway_port: 10025}
- {id: closed, network: blue, guest_addr: 10.0.0.5, port: 81, tls: terminate, domain: closed.example.com}
"""
FILE = "/run/tproxy.yaml"
CERTIFICATES = "/run/certificates"
STATE = "/run/gateway-state"


class Site:
    """A host with two guests that serve pages, the first one also by TLS, and a gateway before them."""

    def __init__(self, host: Hypervisor, config: str = CONFIG) -> None:
        self.host = host
        self.environment = {"TPROXY_CONFIG": FILE}
        host.add_bridge("br0")
        for name, address in (("one", "10.0.0.5"), ("two", "10.0.0.6")):
            host.add_guest(name, "br0", f"{address}/24")
            host.serve(*("python3", "-m", "tproxy.lab.inside", "answer", address, "80", name), netns=name)
        host.serve(sys.executable, str(ENDPOINTS), "echo", "10.0.0.5", "7", netns="one")
        self.make_certificate("plain.example.com", "/run/guest")
        self.make_certificate("ended.example.com", CERTIFICATES)
        self.make_certificate("closed.example.com", CERTIFICATES)
        self.make_certificate("*.wild.example.com", CERTIFICATES)
        server = ("openssl", "s_server", "-quiet", "-www", "-accept", "10.0.0.5:443")
        pem = "/run/guest/plain.example.com.pem"
        host.popen(*server, "-cert", pem, "-key", pem, netns="one")
        self.configure(config)
        self.tproxy("hook", "up", "--bridge", "br0", "--network", "blue")
        self.up()

    def make_certificate(self, name: str, folder: str) -> None:
        file = f"{folder}/{name.replace('*', '_')}.pem"
        self.host.run("mkdir", "-p", folder)
        self.host.run(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", file, "-out", f"{file}.crt", "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName=DNS:{name}"),
        )
        where = self.host.path(file)
        where.write_text(where.read_text() + self.host.path(f"{file}.crt").read_text())

    def configure(self, text: str) -> None:
        self.host.write(FILE, text)

    def tproxy(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.host.tproxy(*arguments, check=check, env=self.environment)

    def up(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        options = ("--certificates", CERTIFICATES, "--ports", "10000-10029")
        return self.tproxy("gateway", "up", *options, *arguments, check=check)

    def curl(self, url: str, *options: str) -> subprocess.CompletedProcess[str]:
        name = url.partition("://")[2].partition("/")[0]
        resolve = [part for port in (80, 443) for part in ("--resolve", f"{name}:{port}:127.0.0.1")]
        return self.host.run("curl", "-ksS", "--max-time", "60", *resolve, *options, url, check=False)

    @property
    def workers(self) -> list[str]:
        return sorted(self.host.run("pgrep", "-x", "haproxy").stdout.split())
