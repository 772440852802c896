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

``ct`` would do the same for connections, but it would switch on connection tracking for the host.

**Tags.** Receivers ignore any number of tags with VLAN 0, 802.1Q calls them priority tags. Behind one of them
the kernel finds the packet for nftables, behind two it does not. So frames with more of them are dropped.
"""

import socket
from functools import cache

from tproxy.model import SERVICE_ADDRESS, SERVICE_MAC

VETHS = "veths"  # our ports
UPLINKS = "uplinks"
GUARDED = "guarded"  # bridges; on kernels without `meta ibrname` the ports of the bridges
SETS = (VETHS, UPLINKS, GUARDED)

KNOWN = "known"  # sources that were let in lately, by port and address
FRESH = "fresh"  # a bucket of tokens for each port
KNOWN_SECONDS = 10
RATE, BURST = 2, 16  # new sources of a port in a second, and at once after a quiet time
# The buckets are refilled long before they are forgotten. More ports than ``fresh`` has room for are not
# limited; while ``known`` is full, a new source takes a token for each frame.
LIMIT_SETS = {
    KNOWN: f"type ifname . ipv4_addr; flags dynamic,timeout; timeout {KNOWN_SECONDS}s; size 65535;",
    FRESH: "type ifname; flags dynamic,timeout; timeout 60s; size 4096;",
}

PREROUTING = "guard_prerouting"
FORWARD = "guard_forward"
# The two jump to these, so that a frame which does not concern the service costs only a few comparisons.
CLAIMING = "guard_claiming"
ASKING = "guard_asking"
FOR_SERVICE = "guard_for_service"
SHARED_CHAINS = (CLAIMING, ASKING, FOR_SERVICE, PREROUTING, FORWARD)

# The protocol behind a tag, if there is one. nft by itself would compare the Ethernet header's for ARP: that
# is another one where a frame has a tag with VLAN 0, a priority, and every receiver ignores such a tag.
_ARP, _IP = "meta protocol arp", "meta protocol ip"

_ADDRESS = f"0x{socket.inet_aton(SERVICE_ADDRESS).hex()}"
_MAC_START = f"0x{SERVICE_MAC.replace(':', '')[:8]}"
_FROM_MAC = f"ether saddr {SERVICE_MAC}"
_FOR_MAC = f"ether daddr {SERVICE_MAC}"
_ARP_FROM_MAC = f"@nh,64,32 {_MAC_START} {_ARP} arp saddr ether {SERVICE_MAC}"
_ARP_FROM_ADDRESS = (
    f"@nh,112,16 {_ADDRESS[:6]} {_ARP} arp saddr ip {SERVICE_ADDRESS}"  # 32 bits are not aligned, 16 are
)
_ARP_FOR_ADDRESS = f"@nh,192,32 {_ADDRESS} {_ARP} arp daddr ip {SERVICE_ADDRESS}"
_IP_FROM_ADDRESS = f"@nh,96,32 {_ADDRESS} {_IP} ip saddr {SERVICE_ADDRESS}"
_IP_FOR_ADDRESS = f"@nh,128,32 {_ADDRESS} {_IP} ip daddr {SERVICE_ADDRESS}"
# A frame of two or more tags, the second with VLAN 0. After the first tag, which the kernel has read already,
# the payload is the second one: 4 bits, the VLAN in 12 bits, a protocol.
_STACKED = "@nh,4,12 0 meta protocol { 8021q, 8021ad }"

_TO_US = f"ether daddr set {SERVICE_MAC} accept"
_NO_TOKEN = f"update @{FRESH} {{ iifname limit rate over {RATE}/second burst {BURST} packets }} drop"


@cache
def shared_rules(*, by_port: bool, limited: bool) -> dict[str, list[str]]:
    """Return the rules of the chains that serve all bridges.

    ``by_port``: for kernels without ``meta ibrname``. ``limited``: with the limits of new sources.
    """
    if by_port:
        unguarded = elsewhere = f"iifname != @{GUARDED}"
        # A frame is forwarded between ports of one bridge, so either port tells which bridge. So frames from
        # a port that is not in the set yet are kept from the uplinks too.
        elsewhere += f" oifname != @{GUARDED}"
    else:
        unguarded = elsewhere = f"meta ibrname != @{GUARDED}"
    claims = (_FROM_MAC, _ARP_FROM_MAC, _ARP_FROM_ADDRESS, _IP_FROM_ADDRESS)
    asks = (_ARP_FOR_ADDRESS, _IP_FOR_ADDRESS, _FOR_MAC)
    return {
        CLAIMING: [f"iifname @{VETHS} accept", f"{unguarded} return", "drop"],
        ASKING: _asking(unguarded) if limited else _asking_without_limits(unguarded),
        FOR_SERVICE: [f"oifname @{VETHS} accept", f"{elsewhere} return", "drop"],
        PREROUTING: [
            f"{_STACKED} jump {CLAIMING}",
            *(f"{claim} jump {CLAIMING}" for claim in claims),
            *(f"{ask} jump {ASKING}" for ask in asks),
        ],
        FORWARD: [
            *(f"{ask} jump {FOR_SERVICE}" for ask in asks),
            f"{_FROM_MAC} oifname @{UPLINKS} drop",
        ],
    }


def arp_rule(bridge: str, ours: str, *, by_port: bool) -> str:
    """The rule of a bridge's ARP guard: no request for the service leaves at another port than ``ours``."""
    if by_port:
        return f"{_ARP_FOR_ADDRESS} oifname != @{VETHS} iifname @{GUARDED} drop"
    return f'{_ARP_FOR_ADDRESS} oifname != "{ours}" meta ibrname "{bridge}" drop'


def _asking(unguarded: str) -> list[str]:
    from_ip, from_arp = "iifname . ip saddr", "iifname . arp saddr ip"
    return [
        # First, because nearly all frames match. No uplink is known: a change of uplinks empties ``known``.
        f"{_FOR_MAC} {_IP} {from_ip} @{KNOWN} accept",
        f"{_IP_FOR_ADDRESS} {from_ip} @{KNOWN} {_TO_US}",
        f"{unguarded} return",
        f"iifname @{UPLINKS} drop",
        f"{_ARP_FOR_ADDRESS} {from_arp} != @{KNOWN} {_NO_TOKEN}",
        f"{_ARP_FOR_ADDRESS} add @{KNOWN} {{ {from_arp} }}",
        f"{_IP_FOR_ADDRESS} {from_ip} != @{KNOWN} {_NO_TOKEN}",
        f"{_IP_FOR_ADDRESS} add @{KNOWN} {{ {from_ip} }}",
        f"{_IP_FOR_ADDRESS} {_TO_US}",
    ]


def _asking_without_limits(unguarded: str) -> list[str]:
    # The first rule is not written as before there were limits: those rules are to be replaced.
    return [
        f"iifname != @{UPLINKS} {_FOR_MAC} accept",
        f"{unguarded} return",
        f"iifname @{UPLINKS} drop",
        f"{_IP_FOR_ADDRESS} {_TO_US}",
    ]
