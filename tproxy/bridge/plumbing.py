"""Observes a bridge, and carries out plans for it. The caller holds the host's lock."""

from __future__ import annotations

from collections.abc import Iterable

from tproxy.addresses import SERVICE_MAC
from tproxy.bridge import nftables, plan
from tproxy.errors import KernelError
from tproxy.kernel import kinds, links, netns
from tproxy.log.lazy import logger
from tproxy.names import BridgeNames
from tproxy.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from tproxy.bridge.actions import Action

log = logger(__name__)


def require_bridge(bridge: str) -> None:
    """Raise KernelError when the bridge does not exist."""
    if not links.exists(bridge):
        raise KernelError(f"bridge {bridge} does not exist")
    if not links.is_bridge(bridge):
        raise KernelError(f"{bridge} is not a bridge")


def usable(bridge: str) -> plan.Observed:
    """What the host has for the bridge, for ``plan.up``.

    Raises KernelError when another program has something under a name that the bridge needs, also NftError.
    """
    found = observe(bridge)
    name = BridgeNames(bridge).veth_bridge
    reason = plan.stranger(bridge, found)
    if not reason and found.outer is None and (real := links.real_name(name)) != name:
        reason = f"{name} is an alternative name of link {real}"
    if reason:
        raise KernelError(f"{reason}; bridge {bridge} needs that name")
    return found


def observe(bridge: str) -> plan.Observed:
    """What the host has for the bridge. The bridge itself may be gone. Raises NftError, KernelError."""
    return observe_links(bridge)._replace(map=nftables.read_map(bridge), guard=nftables.read_guard(bridge))


def observe_links(bridge: str) -> plan.Observed:
    """As ``observe``, without the service map and the guards."""
    names = BridgeNames(bridge)
    ports = links.ports(bridge)
    namespace = netns.identify(names.namespace) is not None
    inner, sysctls, ours = None, None, False
    if namespace:
        with netns.inside(names.namespace):
            ours = netns.is_marked()
            inner = links.inner_link(names.veth_namespace)
            sysctls = links.sysctls(plan.namespace_sysctls(names))
            if sysctls.get(plan.NO_IPV6) == "0":
                sysctls |= links.sysctls(plan.namespace_sysctls(names, ipv6=True))
    return plan.Observed(
        bridge_mtu=links.mtu(bridge),
        ports=ports,
        recognised_uplinks=kinds.uplinks(bridge, ports),
        probes=kinds.probes(ports),
        name_taken=netns.name_taken(names.namespace),
        name_ours=ours or (not namespace and netns.is_remnant(names.namespace)),
        namespace=namespace,
        outer=links.outer_link(names.veth_bridge, names.namespace),
        inner=inner,
        sysctls=sysctls,
    )


def has_links(bridge: str) -> bool:
    """Whether the host has a namespace or a veth for the bridge."""
    names = BridgeNames(bridge)
    return netns.name_taken(names.namespace) or links.exists(names.veth_bridge)


def carry_out(actions: Iterable[Action], *, quiet: bool = False) -> None:
    """Carry out the actions in order, and log a line for each, with ``quiet`` at level DEBUG.

    The first failure raises KernelError or NftError, and the remaining actions are not carried out.
    """
    for action in actions:
        (log.debug if quiet else log.info)("%s", action)
        _do(action)


def _do(action: Action) -> None:
    from tproxy.bridge import actions

    match action:
        case actions.RemoveName(namespace):
            netns.remove(namespace)
        case actions.CreateNamespace(namespace):
            netns.create(namespace)
        case actions.DeleteLink(link):
            links.delete(link)
        case actions.DeleteInner(names):
            with netns.inside(names.namespace):
                links.delete(names.veth_namespace)
        case actions.CreateVeth(names, mtu):
            links.create_veth(names.veth_bridge, names.veth_namespace, names.namespace, SERVICE_MAC, mtu)
        case actions.SetSysctls(namespace, values):
            with netns.inside(namespace):
                for path, value in values.items():
                    links.write_sysctl(path, value)
        case actions.ConfigureInner(names, mtu, mac, addresses):
            with netns.inside(names.namespace):
                links.configure(names.veth_namespace, mac, mtu, addresses)
        case actions.RemoveAddresses(names, addresses, sysctls):
            with netns.inside(names.namespace):
                links.remove_addresses(names.veth_namespace, addresses)
                for path, value in sysctls.items():
                    links.write_sysctl(path, value)
        case actions.AttachOuter(names, mtu, mac):
            links.attach(names.veth_bridge, names.bridge, mtu, mac)
        case actions.FixForwarding(names):
            links.fix_forwarding(names.veth_bridge)
        case actions.LoadServiceMap(_, commands) | actions.DeleteMapAndGuards(_, commands):
            nftables.transaction(commands)
        case actions.LoadGuards(bridge, commands, fallbacks):
            _load_guards(bridge, (("", commands), *fallbacks))


def _load_guards(bridge: str, choices: tuple[tuple[str, tuple[str, ...]], ...]) -> None:
    """Carry out the first transaction that this kernel accepts. With each comes what the kernel lacks."""
    for lacks, commands in choices:
        try:
            nftables.transaction(commands)
        except (nftables.Unsupported, nftables.Absent) as error:
            if len(choices) == 1:
                raise
            refused = error
        else:
            if lacks:
                log.info("guards of %s: this kernel has no %s", bridge, lacks)
            return
    raise KernelError(
        f"bridge {bridge} cannot be guarded: this kernel has no nftables bridge tables ({refused})"
    ) from None
