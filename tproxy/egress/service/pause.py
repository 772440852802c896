"""Lets new connections to squid wait for the moment in which nobody listens, instead of refusing them.

squid closes its ports to read a new configuration, and a new squid can open them only when the old one has
closed them. Meanwhile the packet filter drops the first packet of connections to them. TCP sends it again
after one second, and after three (RFC 6298, 2 and 5), which the daemon's ``connect_timeout`` allows.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from tproxy.egress.policy.rules import Policy
from tproxy.egress.service import nft

TABLE = "one_tproxy_egress_pause"

# Seconds after which the packet filter forgets the pause by itself, should this process be killed.
_LONGEST = 10

# Seconds in which squid accepts the connections that are complete already, and reads what is asked on them:
# it resets and closes the others.
_SETTLE = 0.5


def ports(policy: Policy) -> frozenset[int]:
    """Return squid's ports."""
    listen = policy.listen
    return frozenset((*listen.proxy, *([listen.clients] if policy.clients else [])))


@contextmanager
def pause(among: Collection[int]) -> Iterator[None]:
    """Let new connections to these ports wait until the end of the block. Raises NftError."""
    elements = ", ".join(map(str, sorted(among)))
    nft.load(
        f"""\
table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  set waiting {{ type inet_service; flags timeout; timeout {_LONGEST}s; elements = {{ {elements} }} }}
  chain new {{
    type filter hook input priority filter; policy accept;
    tcp flags & (syn|ack) == syn tcp dport @waiting drop
  }}
}}
"""
    )
    try:
        time.sleep(_SETTLE)
        yield
    finally:
        nft.remove(TABLE)
