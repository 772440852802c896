"""The events that the ledger holds, as values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tproxy.egress.model import Artifact, Caller
from tproxy.egress.purls import purl_of

# Characters of a text that a guest can choose. The longest right one is a URL.
LONGEST = 2000


@dataclass(frozen=True)
class Event:
    """One object that was served, or one request that was not.

    ``verdict`` is allowed, denied or missing. ``guest`` is the guest's address, ``port`` its bridge port.
    """

    verdict: str
    hypervisor: str = ""
    network: str = ""
    network_id: str = ""
    guest: str = ""
    mac: str = ""
    port: str = ""
    kind: str = ""
    name: str = ""
    version: str = ""
    file: str = ""
    purl: str = ""
    sha256: str = ""
    origin: str = ""
    rule: str = ""
    reason: str = ""
    bytes: int = 0

    @classmethod
    def of(
        cls,
        caller: Caller,
        artifact: Artifact,
        verdict: str,
        *,
        rule: str = "",
        reason: str = "",
        sha256: str = "",
        origin: str = "",
        size: int = 0,
    ) -> Event:
        """Return what happened when this caller asked for this artifact."""
        return cls(
            verdict=verdict,
            hypervisor=caller.hypervisor,
            network=caller.network,
            network_id=caller.network_id,
            guest=caller.address,
            mac=caller.mac,
            port=caller.port,
            kind=artifact.kind,
            name=artifact.name or artifact.url,
            version=artifact.version,
            file=artifact.filename,
            purl=purl_of(artifact),
            sha256=sha256 or artifact.sha256,
            origin=origin or artifact.url,
            rule=rule,
            reason=reason,
            bytes=size,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fields that are known. Texts are cut at LONGEST characters."""
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != "":
                found[field.name] = value[:LONGEST] if isinstance(value, str) else value
        return found
