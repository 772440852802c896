"""Helpers of the configuration tests: files, the fields of an entry, and a name server of their own."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

from tproxy.config.resolver import services_for
from tproxy.config.services import Config, Problem
from tproxy.model import Network, Service, ServiceKey

SAMPLE = Path(__file__).parents[3] / "etc/tproxy.yaml"
VNET1 = Network("vnet1", "7")
ONE_LINE = re.compile(r"[ -~]+\Z")

Load = Callable[[str | bytes], Config]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def entry(**fields: str) -> str:
    """A file with one valid entry, in which these fields are replaced or added, as they are to be written."""
    fields = {"remote_addr": "10.0.0.1", "remote_port": "80"} | fields
    return f"tproxy: [{{{', '.join(f'{key}: {value}' for key, value in fields.items())}}}]"


def said(found: Config, more: list[Problem] | None = None) -> list[str]:
    """The warnings as lines."""
    return [each.at(found.path) for each in [*found.warnings, *(more or [])]]


def resolve(name: str) -> list[str]:
    """A name server that knows two names."""
    known = {"one.example": ["10.0.0.2", "10.0.0.10"], "loop.example": ["169.254.16.9", "0.0.0.0"]}
    if name not in known:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return known[name]


def services(configured: Config, network: Network = VNET1) -> tuple[dict[ServiceKey, Service], list[str]]:
    """The services of a network, and the warnings about them as lines."""
    chosen, problems = services_for(configured, network, resolve)
    return chosen, [each.at(configured.path) for each in problems]
