"""Times `hook up` against shell scripts that do its steps with ip and nft, and many hooks at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from bench.lab import BRIDGE, ENDPOINT, PORTS
from bench.peers import TPROXY, tproxy_config
from bench.results import Results
from bench.rounds import FAILURES
from tproxy.addresses import SERVICE_ADDRESS, SERVICE_MAC
from tproxy.bridge.plan import namespace_sysctls
from tproxy.lab.hypervisor import Hypervisor
from tproxy.names import TABLE, BridgeNames

IP_NFT, IP_NFT_ONCE = "`ip`, `nft` for each step", "`ip`, `nft` once"

# Runs of each; one takes about a tenth of a second.
TIMES = 20

# A network driver that starts many guests at once: hooks, bridges that they share, and repetitions.
CROWD, CROWD_BRIDGES, CROWD_TIMES = 12, 6, 5

_CONFIG = "/run/hooks.yaml"

_IP_STEPS = """set -e
[ -e /run/netns/{namespace} ] || ip netns add {namespace}
[ -e /sys/class/net/{theirs} ] || ip link add {theirs} type veth peer name {ours} netns {namespace}
ip netns exec {namespace} sysctl -qw {sysctls}
ip -n {namespace} link set {ours} address {mac}
ip -n {namespace} address replace {address}/32 dev {ours}
ip -n {namespace} link set {ours} mtu 1500 up
ip -n {namespace} route replace default dev {ours} scope link
ip link set {theirs} master {bridge} mtu 1500 up
"""

# The service map and the ARP guard; the other guards are left out.
_NFT_STEPS = """
nft add table ip {table}
nft add map {map} '{{ type inet_service : ipv4_addr . inet_service; }}'
nft flush map {map}
{elements}
nft add table bridge {table}
nft add chain {chain} '{{ type filter hook forward priority filter; policy accept; }}'
nft flush chain {chain}
nft add rule {chain} arp daddr ip {address} oifname != {theirs} drop
"""

_GONE = """
nft flush ruleset
ip link del {theirs}
ip netns del {namespace}
"""

_NAMES = BridgeNames(BRIDGE)
_MAP = f"ip {TABLE} {_NAMES.map}"
_VALUES = {
    "bridge": BRIDGE,
    "namespace": _NAMES.namespace,
    "ours": _NAMES.veth_namespace,
    "theirs": _NAMES.veth_bridge,
    "sysctls": " ".join(f"net/{path}={value}" for path, value in namespace_sysctls(_NAMES).items()),
    "mac": SERVICE_MAC,
    "address": SERVICE_ADDRESS,
    "table": TABLE,
    "map": _MAP,
    "chain": f"bridge {TABLE} ch_{BRIDGE}",
}


@dataclass(frozen=True)
class Bridge:
    """Two calls: ``up`` brings one bridge up, ``down`` removes what ``up`` built."""

    up: Callable[[], object]
    down: Callable[[], object]


def measure(results: Results) -> None:
    against_scripts(results)
    try:
        crowd(results)
    except FAILURES as problem:
        results.failed(TPROXY, "many hooks at once", problem)


def against_scripts(results: Results) -> None:
    """Time a cold and a warm ``up`` of each builder, in turns."""
    with ExitStack() as hosts:
        bridges = []
        for name, build in _BUILDERS.items():
            try:
                bridges.append((name, build(hosts.enter_context(Hypervisor()))))
            except FAILURES as problem:
                results.failed(name, "hook", problem)
        for key, prepare in (("cold", lambda bridge: bridge.down()), ("warm", lambda _: None)):
            for _ in range(TIMES):
                for name, bridge in bridges:
                    try:
                        prepare(bridge)
                        results.add(name, {f"hook {key}": milliseconds(bridge.up)})
                    except FAILURES as problem:
                        results.failed(name, f"hook {key}", problem)


def crowd(results: Results) -> None:
    """Time hooks for bridges that have nothing yet: one after the other, and all at once."""
    with Hypervisor() as host:
        config = host.write(_CONFIG, tproxy_config())
        names = [f"br{number}" for number in range(CROWD_BRIDGES)]
        for name in ("first", *names):
            host.add_bridge(name)
        hook(host, "first", config).up()
        bridges = [hook(host, name, config) for name in names]
        calls = [(bridges * CROWD)[number].up for number in range(CROWD)]
        for _ in range(CROWD_TIMES):
            for key, callers in (("hooks one by one", 1), ("hooks at once", CROWD)):
                for bridge in bridges:
                    bridge.down()
                with ThreadPoolExecutor(callers) as pool:
                    taken = milliseconds(lambda: [each.result() for each in map(pool.submit, calls)])
                results.add(TPROXY, {key: taken})


def milliseconds(job: Callable[[], object]) -> float:
    began = time.monotonic()
    job()
    return (time.monotonic() - began) * 1000


def build_tproxy(host: Hypervisor) -> Bridge:
    """A host with another bridge that is up: the first hook of a host would have to start the daemon too."""
    config = host.write(_CONFIG, tproxy_config())
    for bridge in ("first", BRIDGE):
        host.add_bridge(bridge)
        host.tproxy("hook", "up", "--bridge", bridge, "--config", config)
    return hook(host, BRIDGE, config)


def hook(host: Hypervisor, bridge: str, config: str) -> Bridge:
    up = partial(host.tproxy, "hook", "up", "--bridge", bridge, "--config", config)
    return Bridge(up, partial(host.tproxy, "hook", "down", "--bridge", bridge))


def build_script(host: Hypervisor) -> Bridge:
    elements = "\n".join(f"nft add element {_MAP} '{{ {port} : {ENDPOINT} . {port} }}'" for port in PORTS)
    return script(host, _NFT_STEPS.format(elements=elements, **_VALUES))


def build_script_at_once(host: Hypervisor) -> Bridge:
    """Return ``build_script`` with an nft transaction that loads the same map and guards as `hook up`."""
    with Hypervisor() as other:
        build_tproxy(other)
        tables = other.run("nft", "list", "ruleset").stdout
    empty = "".join(f"add table {each} {TABLE}\ndelete table {each} {TABLE}\n" for each in ("ip", "bridge"))
    return script(host, f"nft -f {host.write('/run/ruleset.nft', empty + tables)}\n")


def script(host: Hypervisor, nft_steps: str) -> Bridge:
    host.add_bridge(BRIDGE)
    up = partial(host.run, "sh", host.write("/run/up.sh", _IP_STEPS.format(**_VALUES) + nft_steps))
    up()
    return Bridge(up, partial(host.run, "sh", "-c", _GONE.format(**_VALUES)))


_BUILDERS: dict[str, Callable[[Hypervisor], Bridge]] = {
    TPROXY: build_tproxy,
    IP_NFT: build_script,
    IP_NFT_ONCE: build_script_at_once,
}
