"""A guest that has only IPv6."""

from __future__ import annotations

import json

from tests.netns.waiting import await_equal
from tproxy.addresses import SERVICE_ADDRESS_IPV6
from tproxy.lab.hypervisor import Guest, Hypervisor

# The service address as a guest names it, with its link.
AT = f"{SERVICE_ADDRESS_IPV6}%eth0"


def add_ipv6_guest(host: Hypervisor, name: str, bridge: str = "br0") -> Guest:
    """Add a guest without IPv4, whose IPv6 address needs no second to be checked."""
    port = f"v{name}"
    host.ip(f"netns add {name}", f"link add {port} type veth peer name eth0 netns {name}")
    host.run("sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0", netns=name)
    host.ip(f"link set {port} master {bridge} up")
    host.ip("link set lo up", "link set eth0 up", netns=name)
    guest = Guest(host, name, bridge, port, "")
    # The kernel gives it its address when the link has a carrier, from a work queue.
    await_equal(lambda: link_local(guest).startswith("fe80:"), True)
    return guest


def link_local(guest: Guest) -> str:
    """The address of the guest's link."""
    shown = json.loads(guest.run("ip", "-j", "-6", "address", "show", "eth0").stdout)
    return next(str(each["local"]) for each in shown[0]["addr_info"] if each["local"].startswith("fe80:"))
