"""Where files of the egress are, which ports it uses, and the names that its parts share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Headers by which squid tells the mirror who is calling. Values are percent-encoded UTF-8. squid removes what
# a client sends under these names.
CALLER_HEADERS = {
    "Tproxy-Hypervisor": "hypervisor",
    "Tproxy-Network": "network",
    "Tproxy-Network-Id": "network_id",
    "Tproxy-Bridge": "bridge",
    "Tproxy-Port": "port",
    "Tproxy-Mac": "mac",
    "Tproxy-Address": "address",
}

# Debian's user for squid, and for the programs that squid starts.
SQUID_USER = "proxy"


@dataclass(frozen=True)
class Layout:
    """The directories of one egress node. Tests have one each, below a directory of theirs."""

    etc: Path = Path("/etc/tproxy")
    state: Path = Path("/var/lib/tproxy-egress")
    run: Path = Path("/run/tproxy-egress")
    log: Path = Path("/var/log/tproxy-egress")

    @classmethod
    def below(cls, root: Path) -> Layout:
        """Return a layout that is completely inside ``root``."""
        return cls(root / "etc", root / "state", root / "run", root / "log")

    @property
    def policy(self) -> Path:
        return self.etc / "egress.yaml"

    @property
    def authority(self) -> Path:
        """The directory of the certificate authority that opens HTTPS. Clients trust its certificate."""
        return self.state / "ca"

    @property
    def peer(self) -> Path:
        """The directory of certificates by which squid and the mirror know each other.

        No client trusts them.
        """
        return self.state / "peer"

    @property
    def store(self) -> Path:
        """The directory of the mirror's store."""
        return self.state / "store"

    @property
    def ledger(self) -> Path:
        return self.state / "ledger"

    @property
    def keys(self) -> Path:
        """The directory of the keys that sign bundles and the ledger."""
        return self.state / "keys"

    @property
    def mirror_socket(self) -> Path:
        """The mirror's control socket."""
        return self.run / "mirror.sock"

    @property
    def ledger_socket(self) -> Path:
        """The socket on which the mirror's process takes events for the ledger, from squid's helper."""
        return self.run / "ledger.sock"

    @property
    def squid_pid(self) -> Path:
        """A link to the process id file of the squid that takes new connections."""
        return self.run / "squid.pid"

    @property
    def squid_conf(self) -> Path:
        """A link to the configuration of that squid."""
        return self.run / "squid.conf"

    @property
    def hosts(self) -> Path:
        """The directory of certificates of hypervisors that use this node from elsewhere."""
        return self.state / "hosts"

    @property
    def gate(self) -> Path:
        """The socket on which the gate takes the connections of those hypervisors."""
        return self.run / "gate.sock"

    @property
    def link(self) -> Path:
        """On a hypervisor that uses a node elsewhere: what `tproxy egress host add` wrote there."""
        return self.etc / "egress-link.pem"

    @property
    def access_log(self) -> Path:
        return self.log / "access.json"

    @property
    def access_logs(self) -> list[Path]:
        """The log of requests and the one before it, as far as logrotate has not compressed them."""
        both = (self.log / "access.json.1", self.access_log)
        return [each for each in both if each.exists()]
