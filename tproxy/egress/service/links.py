"""Links between hypervisors and a node elsewhere: HAProxy on both sides, and the node's gate behind it."""

from __future__ import annotations

import asyncio
import os
import pwd
import subprocess
from contextlib import suppress
from pathlib import Path

from tproxy.egress.hosts import haproxy
from tproxy.egress.hosts.certificates import Hosts, read_link
from tproxy.egress.hosts.gate import Gate
from tproxy.egress.layout import Layout
from tproxy.egress.policy.reader import load
from tproxy.egress.policy.rules import Listen
from tproxy.egress.service import guard
from tproxy.egress.squid.compiler import Surroundings
from tproxy.egress.store.durable import replace
from tproxy.errors import ConfigError, ProcessError
from tproxy.typed import NoReturn

# Where a hypervisor's workers find the link, as the services of docs/egress.md say.
PORTS = (3128, 8443, 443, 8480, 5353)

# The ports that guests call, besides those of the proxy. Scripts and resolver take no header over TCP.
TRANSPARENT, SETUP, RESOLVER = 443, 8480, 53

_USER = "haproxy"


async def start_gate(node: Surroundings, listen: Listen) -> asyncio.Server:
    """Listen on the gate's socket, which HAProxy alone may open. Needs root."""
    gate = Gate(
        Hosts(node.layout.hosts).find,
        (listen.address, listen.proxy[0]),
        {
            TRANSPARENT: ((listen.address, listen.transparent), True),
            SETUP: ((listen.address, listen.setup), False),
            RESOLVER: ((listen.address, listen.resolver), False),
        },
    )
    path = node.layout.gate
    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(gate.handle, str(path), backlog=1024)
    finally:
        os.umask(before)
    os.chown(path, _account().pw_uid, -1)
    return server


def run_hosts(node: Surroundings) -> NoReturn:
    """Become the HAProxy that takes the connections of hypervisors. Raises TproxyError."""
    listen = load(node.layout.policy).listen
    if not listen.hosts:
        raise ConfigError(f"{node.layout.policy}: listen has no port for hosts")
    hosts = Hosts(node.layout.hosts)
    hosts.ensure()
    text = haproxy.of_node(listen.hosts_address, listen.hosts, hosts.node, hosts.authority, node.layout.gate)
    _become(node.layout.run / "hosts.cfg", text)


def run_link(layout: Layout) -> NoReturn:
    """Become the HAProxy by which this hypervisor's workers reach the node. Raises TproxyError."""
    node, own, authority = read_link(layout.link)
    layout.run.mkdir(parents=True, exist_ok=True)
    certificate, trusted = layout.run / "link-own.pem", layout.run / "link-ca.pem"
    replace(certificate, own, 0o600)
    replace(trusted, authority)
    guard.load_link(PORTS)
    _become(layout.run / "link.cfg", haproxy.of_hypervisor(node, PORTS, certificate, trusted))


def _become(configuration: Path, text: str) -> NoReturn:
    _account()
    configuration.write_text(text)
    done = subprocess.run(
        ["haproxy", "-c", "-f", str(configuration)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ALERT" in line] or ["no reason given"]
        raise ProcessError(f"haproxy refuses {configuration}: {lines[0].strip()}")
    with suppress(OSError):
        os.execvp("haproxy", ["haproxy", "-db", "-f", str(configuration)])
    raise ProcessError("haproxy cannot be started")


def _account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(_USER)
    except KeyError:
        raise ProcessError("haproxy is missing: apt install haproxy") from None
