"""The packet filter of the egress: who may send PROXY headers on this host, and where squid may connect to.

A header says who is calling, so only the daemon's workers, and the front, may send one; both have user ids of
their own (``kernel.privileges``). squid can look at addresses only, and all programs of this host share them.

The second chain is a second look at what squid's own list of inner addresses refuses: a name whose address
changes between the look and the connection gets nobody inside, nor to what listens on this node, whatever
addresses it has by then.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network

from tproxy.egress.policy.addresses import INNER
from tproxy.egress.policy.rules import Policy
from tproxy.egress.service import nft
from tproxy.kernel.privileges import FIRST_UID

TABLE = "one_tproxy_egress"
LINK_TABLE = "one_tproxy_egress_link"

# squid talks with the programs that it starts through connections to itself, from and to local ports
# (net.ipv4.ip_local_port_range). Services do not listen there.
_LOCAL_PORTS = "32768-60999"

_LAST_UID = FIRST_UID + 2**22  # the largest process id, proc_pid_max(5)


def ruleset(policy: Policy, user: str) -> str:
    """Return the ruleset, which replaces an older one at once. ``user`` is squid's."""
    listen = policy.listen
    ports = [(listen.address, port) for port in (*listen.proxy, listen.transparent)]
    ports.append(("127.0.0.1", listen.guests))
    inner = ", ".join(str(each) for each in INNER if isinstance(each, IPv4Network))
    inner6 = ", ".join(str(each) for each in INNER if not isinstance(each, IPv4Network))
    allowed = "".join(
        f"    meta skuid {user} {'ip' if isinstance(each, IPv4Network) else 'ip6'} daddr {each} accept\n"
        for each in policy.inner
    )
    return f"""\
table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
{_headers(ports)}  chain inner {{
    type filter hook output priority filter; policy accept;
    meta skuid != {user} accept
    udp dport 53 accept
    tcp dport 53 accept
    ip daddr 127.0.0.1 tcp dport {{ {listen.mirror}, {_LOCAL_PORTS} }} accept
    ip6 daddr ::1 tcp dport {_LOCAL_PORTS} accept
{allowed}    fib daddr type local tcp flags & (syn|ack) == syn reject
    ip daddr {{ {inner} }} tcp flags & (syn|ack) == syn reject
    ip6 daddr {{ {inner6} }} tcp flags & (syn|ack) == syn reject
  }}
}}
"""


def link_ruleset(ports: Iterable[int]) -> str:
    """Return the ruleset of a hypervisor whose guests use a node elsewhere: only workers reach the link."""
    return f"""\
table inet {LINK_TABLE}
delete table inet {LINK_TABLE}
table inet {LINK_TABLE} {{
{_headers(("127.0.0.1", port) for port in ports)}}}
"""


def _headers(ports: Iterable[tuple[str, int]]) -> str:
    among = ", ".join(f"{address} . {port}" for address, port in sorted(set(ports)))
    return f"""\
  chain headers {{
    type filter hook output priority filter; policy accept;
    meta skuid {{ 0, {FIRST_UID}-{_LAST_UID} }} accept
    tcp flags & (syn|ack) == syn ip daddr . tcp dport {{ {among} }} reject with tcp reset
  }}
"""


def load_link(ports: Iterable[int]) -> None:
    """Load the ruleset of a hypervisor. Raises NftError."""
    nft.load(link_ruleset(ports))


def load(policy: Policy, user: str) -> None:
    """Load the ruleset. Raises NftError."""
    nft.load(ruleset(policy, user))


def remove(table: str = TABLE) -> None:
    """Remove the table, if it is there. Raises NftError."""
    nft.remove(table)
