"""The frozen types that all parts of the egress use: who asks, for what, and what was decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from tproxy import proxy_protocol

Kind = Literal["pypi", "deb", "oci", "galaxy", "file", "uri"]
KINDS: tuple[Kind, ...] = ("pypi", "deb", "oci", "galaxy", "file", "uri")

# The fields of a Caller that a PROXY header carries, with the types of their values.
_CARRIED = {
    "hypervisor": proxy_protocol.OF_HYPERVISOR,
    "network": proxy_protocol.OF_NETWORK,
    "network_id": proxy_protocol.OF_NETWORK_ID,
    "bridge": proxy_protocol.OF_BRIDGE,
    "port": proxy_protocol.OF_PORT,
    "mac": proxy_protocol.OF_MAC,
}


@dataclass(frozen=True)
class Caller:
    """The machine that asks, as the daemon's PROXY header names it. What the header does not say is empty.

    ``port`` is the bridge port behind which a guest is, not a TCP port. A host that is no guest has an
    address and the network that ``clients:`` gives it, and nothing else.
    """

    hypervisor: str = ""
    network: str = ""
    network_id: str = ""
    bridge: str = ""
    port: str = ""
    mac: str = ""
    address: str = ""

    @classmethod
    def of_header(cls, header: proxy_protocol.Header) -> Caller:
        """Return who a PROXY header says is calling."""
        address = header.source[0] if header.source else ""
        return cls(**{name: header.values.get(kind, "") for name, kind in _CARRIED.items()}, address=address)

    @property
    def values(self) -> Mapping[int, str]:
        """The values of a PROXY header that names this caller (``proxy_protocol.encode``)."""
        return {kind: text for name, kind in _CARRIED.items() if (text := getattr(self, name))}

    @property
    def guest(self) -> str:
        """Tell this guest from all others, by what it cannot choose: its hypervisor, bridge and bridge port.

        Where the port is unknown, the network and the MAC or address tell guests apart.
        """
        if self.port:
            return "/".join((self.hypervisor, self.bridge, self.port))
        network = self.network or self.network_id
        return "/".join((self.hypervisor, network, self.mac or self.address))

    def as_record(self) -> dict[str, str]:
        """Return the fields that are known, by name, for logs and the ledger."""
        return {each.name: text for each in fields(self) if (text := getattr(self, each.name))}


@dataclass(frozen=True)
class Artifact:
    """A thing that a client fetches: a package's file, an index, an image's blob, or a plain URL.

    ``name`` and ``version`` are as the kind writes them: the normalized project for pypi (PEP 503), the
    binary package for deb, the repository with its registry for oci (``docker.io/library/alpine``), and
    ``namespace.name`` for galaxy. What is not known is empty: a project's index has no version and no file.
    ``sha256`` is in hexadecimal.
    """

    kind: Kind
    name: str = ""
    version: str = ""
    filename: str = ""
    url: str = ""
    sha256: str = ""
    purl: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the policy says of one request. ``reason`` is one line for whoever asked.

    ``rule`` names the rule that decided, as ``egress.yaml:LINE``; "" when none applied, which denies.
    """

    allowed: bool
    rule: str = ""
    reason: str = ""
    opaque: bool = False  # a tunnel: what goes through it is not seen
