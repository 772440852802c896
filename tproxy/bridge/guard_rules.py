"""The rules of the guards that serve all bridges, as text for nftables, by chain. Pure.

The kernel runs every base chain for every frame on the host. So each rule there begins with a word at a fixed
place of the frame's payload, which the kernel reads without a copy (nft_payload_fast_eval). Only the few
frames that match it are compared with the protocol and the rest.

**Limits.** Whatever the namespace answers needs an entry of the kernel's neighbour table, and so does each
ARP request that it receives. That table is one for all namespaces (gc_thresh3, arp(7)), and a guest can
invent source addresses. So each port of a bridge, which a guest cannot forge, may bring in only so many
sources:

- A source is an IPv4 address and the port where it came in. Those that were let in lately are in ``known``,
  and all their frames pass.
- A source that is not known takes a token from the bucket of its port, in ``fresh``. It becomes known, or
  without a token its frame is dropped. A host that has a reason to ask then asks again, a second later.
- A source is known for KNOWN_SECONDS, however much it sends, and then takes another token. If sources stayed
  known while they send, one port could collect any number of them.

The kernel can discard an entry that nobody uses 5 s after it changed (neigh_forced_gc). With the sysctls of
the namespace (plan.namespace_sysctls) an address that nobody has is asked for during 4 s after its last SYN.
So at most BURST + RATE * (KNOWN_SECONDS + 5) = 46 entries of each port are in the way of others. ARP answers
take tokens too: connections of sources that are known no more retransmit for minutes, and each time they ask
for the source. Without an answer the entry is given up after 600 ms, so these add a few entries only.

**Greed.** A source that is known may still send as many SYNs as its guest can, and each costs the daemon a
connection; so may it send ARP requests, which the namespace answers. Each port has a bucket for SYNs in
``syns``, and one for ARP in ``arps``. Nothing else of a port is counted: other packets cost their sender more
than us. docs/security.md says how the rates were chosen.

**Tags.** Receivers ignore any number of tags with VLAN 0, 802.1Q calls them priority tags. Behind one of them
the kernel finds the packet for nftables, behind two it does not. So frames with more of them are dropped. The
protocol of a packet is compared by ``meta protocol``, which is that behind the tag. nft leaves it out of a
listing where a field such as ``arp saddr ip`` implies it, and a listing that is loaded again compares the
Ethernet header's, which is the tag's. So the rules that drop ARP have no such field: they stay what they are
when a firewall manager saves and restores them.

**New ports.** With ``meta ibrname`` the rules know a frame's bridge. Without, they know ports, and the daemon
adds a new port a moment after it was attached. A frame that is forwarded has two ports, of one bridge. So
where one of them is known the bridge is guarded, and whatever concerns the service is dropped until the other
is known too.

``ct`` would do the same for connections, but it would switch on connection tracking for the host.
"""

import socket
from functools import cache

from tproxy.addresses import SERVICE_ADDRESS, SERVICE_MAC

VETHS = "veths"  # our ports
UPLINKS = "uplinks"
GUARDED = "guarded"  # bridges; on kernels without `meta ibrname` the ports of the bridges
SETS = (VETHS, UPLINKS, GUARDED)

KNOWN = "known"  # sources that were let in lately, by port and address
FRESH = "fresh"  # a bucket of tokens for each port: new sources
SYNS, ARPS = "syns", "arps"  # likewise: new connections, and ARP
KNOWN_SECONDS = 10
RATE, BURST = 2, 16  # new sources of a port in a second, and at once after a quiet time
SYN_RATE, SYN_BURST = 1000, 20000  # new connections
ARP_RATE, ARP_BURST = 100, 200
# The buckets are refilled long before they are forgotten. More ports than a set has room for are not
# limited; while ``known`` is full, a new source takes a token for each frame.
_BUCKETS = "type ifname; flags dynamic,timeout; timeout 60s; size 4096;"
LIMIT_SETS = {
    KNOWN: f"type ifname . ipv4_addr; flags dynamic,timeout; timeout {KNOWN_SECONDS}s; size 65535;",
    FRESH: _BUCKETS,
    SYNS: _BUCKETS,
    ARPS: _BUCKETS,
}

PREROUTING = "guard_prerouting"
FORWARD = "guard_forward"
INPUT = "guard_input"
# For further service addresses (address_rules): a set for each, and chains.
AT_PREFIX, AT_CHAIN_PREFIX = "at_", "guard_at_"
KNOWN_IPV6 = "known6"  # to IPv6 what KNOWN is to IPv4

# Those jump to these. So a frame that does not concern the service costs only a few comparisons.
CLAIMING = "guard_claiming"
ASKING = "guard_asking"
FOR_SERVICE = "guard_for_service"
LEAVING = "guard_leaving"
KNOWN_SOURCE = "guard_known"
SHARED_CHAINS = (CLAIMING, KNOWN_SOURCE, ASKING, FOR_SERVICE, LEAVING, PREROUTING, FORWARD, INPUT)

_ARP, _IP = "meta protocol arp", "meta protocol ip"

_MAC = f"0x{SERVICE_MAC.replace(':', '')}"
_FROM_MAC = f"ether saddr {SERVICE_MAC}"
_FOR_MAC = f"ether daddr {SERVICE_MAC}"
# The kernel's fast way takes words that are aligned to their size. nft would join two that follow each other.
_ARP_FROM_MAC = f"@nh,64,32 {_MAC[:10]} {_ARP} @nh,96,16 0x{_MAC[10:]}"


def arp_from(address: str) -> str:
    """The match of ARP frames whose sender has this address."""
    word = _word(address)
    return f"@nh,112,16 {word[:6]} {_ARP} @nh,128,16 0x{word[6:]}"


def arp_for(address: str) -> str:
    """The match of ARP frames that ask for this address, or tell its host something."""
    return f"@nh,192,32 {_word(address)} {_ARP}"


def ip_from(address: str) -> str:
    """The match of IPv4 packets from this address."""
    return f"@nh,96,32 {_word(address)} {_IP} ip saddr {address}"


def ip_for(address: str) -> str:
    """The match of IPv4 packets for this address."""
    return f"@nh,128,32 {_word(address)} {_IP} ip daddr {address}"


def _word(address: str) -> str:
    return f"0x{socket.inet_aton(address).hex()}"


_ARP_FROM_ADDRESS, _ARP_FOR_ADDRESS = arp_from(SERVICE_ADDRESS), arp_for(SERVICE_ADDRESS)
_IP_FROM_ADDRESS, _IP_FOR_ADDRESS = ip_from(SERVICE_ADDRESS), ip_for(SERVICE_ADDRESS)
# A frame of two or more tags, the second with VLAN 0. After the first tag, which the kernel has read already,
# the payload is the second one: 4 bits, the VLAN in 12 bits, a protocol.
_STACKED = "@nh,0,32 & 0x0fff0000 == 0 meta protocol { 8021q, 8021ad }"
# A TCP segment with SYN and without ACK. Another protocol's packet that looks so takes a token in its stead.
_SYN = "@th,96,32 & 0x00120000 == 0x00020000"

TO_US = f"ether daddr set {SERVICE_MAC} accept"


def _over(bucket: str, rate: int, burst: int) -> str:
    """The end of a rule that drops the frame if its port's bucket has no token left."""
    return f"update @{bucket} {{ iifname limit rate over {rate}/second burst {burst} packets }} drop"


NO_TOKEN = _over(FRESH, RATE, BURST)
TOO_MANY_SYNS = f"{_SYN} {_over(SYNS, SYN_RATE, SYN_BURST)}"
TOO_MUCH_ARP = _over(ARPS, ARP_RATE, ARP_BURST)


@cache
def shared_rules(*, by_port: bool, limited: bool) -> dict[str, list[str]]:
    """Return the rules of the chains that serve all bridges.

    ``by_port``: for kernels without ``meta ibrname``. ``limited``: with the limits of new sources.
    """
    claims = forwarded_claims = [_FROM_MAC, _ARP_FROM_MAC, _ARP_FROM_ADDRESS, _STACKED]
    asks = (_ARP_FOR_ADDRESS, _FOR_MAC)
    if by_port:
        unguarded = f"iifname != @{GUARDED}"
        elsewhere = f"{unguarded} oifname != @{GUARDED}"
        for_service = f"iifname @{GUARDED} oifname @{VETHS} accept"
        leaving = [f"iifname @{VETHS} oifname @{GUARDED} accept", f"{elsewhere} return", "drop"]
    else:
        unguarded = elsewhere = f"meta ibrname != @{GUARDED}"
        for_service = f"oifname @{VETHS} accept"
        leaving = ["accept"]
        forwarded_claims = claims[:1]
    return {
        CLAIMING: [f"iifname @{VETHS} accept", f"{unguarded} return", "drop"],
        KNOWN_SOURCE: _known_source() if limited else ["return"],  # nothing jumps to it without limits
        ASKING: _asking(unguarded) if limited else _asking_without_limits(unguarded),
        FOR_SERVICE: [for_service, f"{elsewhere} return", "drop"],
        LEAVING: [f"oifname @{UPLINKS} drop", *leaving],
        # First what nearly all frames of the service match: its answers, and packets for it.
        PREROUTING: [
            f"{_IP_FROM_ADDRESS} jump {CLAIMING}",
            f"{_FROM_MAC} jump {CLAIMING}",
            f"{_IP_FOR_ADDRESS} jump {ASKING}",
            *(f"{claim} jump {CLAIMING}" for claim in claims[1:]),
            *(f"{ask} jump {ASKING}" for ask in asks),
        ],
        FORWARD: [
            f"{_IP_FOR_ADDRESS} jump {FOR_SERVICE}",
            f"{_IP_FROM_ADDRESS} jump {LEAVING}",
            *(f"{ask} jump {FOR_SERVICE}" for ask in asks),
            *(f"{claim} jump {LEAVING}" for claim in forwarded_claims),
        ],
        # No answer of the service is for the host, which a guest may have named as the source.
        INPUT: [f"{claim} iifname @{VETHS} drop" for claim in (_IP_FROM_ADDRESS, _ARP_FROM_ADDRESS)],
    }


def arp_rule(
    bridge: str, ours: str, *, by_port: bool, address: str = SERVICE_ADDRESS, ports: str = GUARDED
) -> str:
    """A rule of a bridge's ARP guard: no request for the address leaves at another port than ``ours``.

    ``ports`` is the set of the ports of bridges with this address.
    """
    asks = f"{arp_for(address)} arp daddr ip {address}"
    if by_port:
        return f"{asks} oifname != @{VETHS} iifname @{ports} drop"
    return f'{asks} oifname != "{ours}" meta ibrname "{bridge}" drop'


def _known_source() -> list[str]:
    """The rules for IP packets of known sources. No uplink has any: a change of uplinks empties ``known``."""
    return [
        TOO_MANY_SYNS,
        f"{_FOR_MAC} accept",  # nearly all
        f"{_IP_FOR_ADDRESS} {TO_US}",
    ]


def _asking(unguarded: str) -> list[str]:
    from_ip, from_arp = "iifname . ip saddr", "iifname . arp saddr ip"
    return [
        f"{_IP} {from_ip} @{KNOWN} jump {KNOWN_SOURCE}",
        f"{unguarded} return",
        f"iifname @{UPLINKS} drop",
        f"{_ARP_FOR_ADDRESS} {TOO_MUCH_ARP}",
        f"{_ARP_FOR_ADDRESS} {from_arp} @{KNOWN} accept",
        f"{_ARP_FOR_ADDRESS} {NO_TOKEN}",
        f"{_ARP_FOR_ADDRESS} add @{KNOWN} {{ {from_arp} }}",
        f"{_IP_FOR_ADDRESS} {NO_TOKEN}",
        f"{_IP_FOR_ADDRESS} add @{KNOWN} {{ {from_ip} }}",
        f"{_IP_FOR_ADDRESS} {TO_US}",
    ]


def _asking_without_limits(unguarded: str) -> list[str]:
    # The first rule is not written as before there were limits: those rules are to be replaced.
    return [
        f"iifname != @{UPLINKS} {_FOR_MAC} accept",
        f"{unguarded} return",
        f"iifname @{UPLINKS} drop",
        f"{_IP_FOR_ADDRESS} {TO_US}",
    ]
