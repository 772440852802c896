"""What `tproxy tunnel --check` finds: what a node has, and what is missing for a tunnel.

Needs the extra ``inward`` (asyncssh).
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import asyncssh

from tproxy.errors import TproxyError
from tproxy.inward.tunnel.identity import OPERATORS, Identity, host_keys, remaining
from tproxy.inward.tunnel.names import SSH
from tproxy.inward.tunnel.node import TunnelNode, _reason
from tproxy.inward.tunnel.settings import Address, Settings
from tproxy.process import inward_socket

_PATIENCE = 5.0  # seconds for a connection


class Line(NamedTuple):
    """One finding."""

    good: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok' if self.good else 'missing'}: {self.text}"


def lines(settings: Settings, directory: Path) -> Iterator[Line]:
    """Look at everything that a tunnel needs, in the order in which it is needed."""
    yield _gateway(settings.gateway)
    try:
        yield _certificate(settings, directory)
    except TproxyError as error:
        yield Line(False, str(error))
    for name, address in settings.offers.items():
        yield _offer(name, address)
    if SSH in settings.offers:
        yield _trust(directory)
        keys = host_keys(settings.host_keys)
        yield Line(bool(keys), "host keys of sshd" if keys else f"no host key of sshd: {settings.host_keys}")


def _gateway(gateway: Address) -> Line:
    try:
        socket.create_connection((gateway.host, gateway.port), _PATIENCE).close()
    except OSError as error:
        return Line(False, f"gateway {gateway} cannot be reached: {error.strerror or error}")
    return Line(True, f"gateway {gateway} can be reached")


def _certificate(settings: Settings, directory: Path) -> Line:
    identity = Identity(directory)
    key = identity.prepare()
    left = remaining(identity.certificate())[0]
    if left <= 0:
        try:
            left = remaining(asyncio.run(TunnelNode(settings, directory).enrol(key)))[0]
        except (asyncssh.Error, OSError, asyncio.TimeoutError) as error:
            return Line(False, f"no certificate: the gateway: {_reason(error)}")
        except TproxyError as error:
            return Line(False, f"no certificate: {error}")
    return Line(True, f"certificate of node {settings.name}, for {left / 3600:.1f} more hours")


def _offer(name: str, address: Address) -> Line:
    path = address.path or ("" if address.host else inward_socket.path())
    shown = path or str(address)
    try:
        if path:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(_PATIENCE)
                sock.connect(path)
        else:
            socket.create_connection((address.host, address.port), _PATIENCE).close()
    except OSError as error:
        return Line(False, f"offer {name}: {shown}: {error.strerror or error}")
    return Line(True, f"offer {name}: {shown} accepts")


def _trust(directory: Path) -> Line:
    """Whether this host's sshd trusts the gateway's authority for operators."""
    wanted = directory / OPERATORS
    try:
        done = subprocess.run(
            ["sshd", "-T"],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin"},
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return Line(False, "sshd is not installed")
    found = re.search(r"(?m)^trustedusercakeys (.*)$", done.stdout)
    if found and Path(found[1]).exists() and wanted.exists():
        key = wanted.read_text().split()[1]
        if key in Path(found[1]).read_text():
            return Line(True, "sshd trusts the gateway's operators")
    return Line(False, f"sshd does not trust operators: TrustedUserCAKeys {wanted} in sshd_config")
