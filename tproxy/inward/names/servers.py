"""What each server of zones can do, and the errors of servers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from tproxy.errors import TproxyError
from tproxy.inward.names.model import POWERDNS, Record, Records, Server, Zone


class ServerError(TproxyError):
    """A server refused something: nothing has changed there, and the same would be refused again."""


class ServerDown(ServerError):
    """A server cannot be reached, or cannot do its work now."""


class Changed(ServerError):
    """Somebody else changed the zone meanwhile: read it again."""


class ZoneMissing(ServerError):
    """The server does not have the zone."""


class Client(Protocol):
    """Reads and changes zones. All methods raise ServerError."""

    def read(self, zone: Zone) -> Records:
        """Return the records of a zone. Raises ZoneMissing."""

    def create(self, zone: Zone, nameservers: tuple[str, ...]) -> None:
        """Make a zone that is missing."""

    def change(self, zone: Zone, before: Records, changes: Iterable[Record]) -> None:
        """Write records, all or none. Raises Changed where ``before`` is not what is there."""

    def ds(self, zone: Zone) -> list[str]:
        """Return the DS records for the parent, as in a zone file; none where the zone is not signed."""

    def sign(self, zone: Zone, *, signed: bool) -> bool:
        """Have the zone signed or not; return whether that changed."""


def client(server: Server) -> Client:
    """Return the client of a server. Raises ServerError where its key cannot be read."""
    if server.kind == POWERDNS:
        from tproxy.inward.names.powerdns import PowerDns

        return PowerDns(server.at, key(server))
    from tproxy.inward.names.updates import Updates

    return Updates(server, key(server))


def key(server: Server) -> str:
    """Return the text of a server's key file. Raises ServerError."""
    try:
        text = Path(server.key_file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text"
        raise ServerError(f"key_file {server.key_file}: {reason}") from None
    if not text:
        raise ServerError(f"key_file {server.key_file} is empty")
    return text
