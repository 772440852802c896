"""Compiles HAProxy's configuration, for the node and for a hypervisor. Pure: text in, text out.

HAProxy tells the gate which certificate the host has shown: its SHA-256 is the unique id of the connection,
which goes into the PROXY header (HAProxy's configuration manual 2.6, unique-id-format and proxy-v2-options).
The header of the hypervisor's worker, which names the guest, is part of what HAProxy carries.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tproxy.egress.hosts.certificates import NODE_NAME

# Hours for which a connection may be silent: tproxy's own idle_timeout is shorter, and counts first.
_COMMON = """\
global
    user haproxy
    group haproxy
    maxconn 4000
    ssl-default-bind-options ssl-min-ver TLSv1.3
    ssl-default-server-options ssl-min-ver TLSv1.3
    log stderr format raw daemon notice
defaults
    mode tcp
    log global
    timeout connect 10s
    timeout client 2h
    timeout server 2h
"""


def of_node(address: str, port: int, certificate: Path, authority: Path, gate: Path) -> str:
    """Return the configuration of the node: who shows a certificate of the authority gets to the gate."""
    return f"""\
{_COMMON}frontend hosts
    bind {address}:{port} ssl crt {certificate} ca-file {authority} verify required
    unique-id-format %[ssl_c_der,sha2(256),hex]
    default_backend gate
backend gate
    server gate unix@{gate} send-proxy-v2 proxy-v2-options unique-id
"""


def of_hypervisor(node: str, ports: Iterable[int], certificate: Path, authority: Path) -> str:
    """Return the configuration of a hypervisor: its workers' connections go to the node, encrypted."""
    binds = "".join(f"    bind 127.0.0.1:{port}\n" for port in ports)
    return f"""\
{_COMMON}frontend workers
{binds}    default_backend node
backend node
    server node {node} ssl crt {certificate} ca-file {authority} verify required verifyhost {NODE_NAME}
"""
