"""What an operator says of the gateway."""

from __future__ import annotations

import os
from typing import NamedTuple

STATE = "/var/lib/tproxy-gateway"


class Options(NamedTuple):
    """The options of `tproxy gateway`. ``address`` is "" for all addresses, of IPv4 and IPv6."""

    http_port: int = 80
    https_port: int = 443
    address: str = ""
    ports: str = ""  # a range such as 10000-10099, for routes without names; "" for none
    certificates: str = ""  # a directory of PEM files, each with certificate and key
    user: str = "haproxy"
    most_per_client: int = 500
    rate_per_client: int = 2000  # new connections in 10 s
    acme: str = ""  # the URL of an issuer's directory (RFC 8555); "": no certificates from an issuer
    acme_email: str = ""
    acme_ca: str = ""  # a file with the certificates that the issuer's own one is proved by
    acme_dns: str = ""  # how lego proves names by DNS; "": by HTTP
    state: str = STATE  # the directory of what an issuer gave
    most: int = 10_000  # connections; no option of the command

    def arguments(self, config: str) -> list[str]:
        """The options of the command that stand for these."""
        words = [f"--config={os.path.abspath(config)}"]
        for name in self._fields:
            value = getattr(self, name)
            if name != "most" and value != self._field_defaults[name]:
                words.append(f"--{name.replace('_', '-')}={value}")
        return words
