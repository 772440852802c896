"""The plan: actions from whatever was found to what should be there, in an order that can be carried out."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tproxy.addresses import PORT_MAC, SERVICE_ADDRESS, SERVICE_MAC
from tproxy.bridge import guards, plan
from tproxy.bridge.actions import (
    Action,
    AttachOuter,
    ConfigureInner,
    CreateNamespace,
    CreateVeth,
    DeleteInner,
    DeleteLink,
    DeleteMapAndGuards,
    FixForwarding,
    LoadGuards,
    LoadServiceMap,
    RemoveAddresses,
    RemoveName,
    SetSysctls,
)
from tproxy.bridge.guards import SETS, Guard, ObservedGuard
from tproxy.bridge.plan import Observed
from tproxy.kernel.links import InnerLink, OuterLink
from tproxy.model import Endpoint, Network, Service, ServiceKey, ServiceMap
from tproxy.names import BridgeNames

NAMES = BridgeNames("br0")
ONE, TWO = (
    Service(ServiceKey(80), Endpoint("10.0.0.1", 80)),
    Service(ServiceKey(81), Endpoint("10.0.0.2", 81)),
)
WANTED = ServiceMap("br0", {ServiceKey(80): ONE, ServiceKey(81): TWO}, Network("blue", "7"))
NO_UPLINKS: frozenset[str] = frozenset()
OTHER_MAC = "02:00:00:00:00:01"
METADATA = "169.254.169.254"
FURTHER = WANTED._replace(
    services={**WANTED.services, (key := ServiceKey(80, address=METADATA)): ONE._replace(key=key)}
)


def rules_of(guard: Guard) -> ObservedGuard:
    """What is found on a host on which exactly this guard was loaded."""
    marks: dict[str, list[str]] = {}
    for command in guards.load(guard, ObservedGuard("br0")):
        if command.startswith("add rule "):
            marks.setdefault(command.split()[4], []).append(command.rpartition('comment "')[2].rstrip('"'))
    arp_guard = marks.pop(NAMES.arp_guard)
    return ObservedGuard("br0", marks, arp_guard, guard.elements)


def right_guard(observed: Observed, named: frozenset[str], *, by_port: bool = True) -> ObservedGuard:
    by_bridge, with_ports, *_ = plan.wanted_guards("br0", observed, named, frozenset())
    return rules_of(with_ports if by_port else by_bridge)


def healthy() -> Observed:
    observed = Observed(
        bridge_mtu=1500,
        ports=frozenset({"br0b", "vnet0"}),
        name_taken=True,
        name_ours=True,
        namespace=True,
        outer=OuterLink(veth=True, up=True, mtu=1500, master="br0", peer=7, mac=PORT_MAC, fixed=True),
        inner=InnerLink(ifindex=7, up=True, mtu=1500, mac=SERVICE_MAC, addresses=(f"{SERVICE_ADDRESS}/32",),
                        default_route=True),
        sysctls=plan.namespace_sysctls(NAMES),
        map=WANTED,
    )  # fmt: skip
    return observed._replace(guard=right_guard(observed, NO_UPLINKS))


def after(observed: Observed, action: Action) -> Observed:
    """The state of the bridge after an action; fails where the kernel would refuse the action."""
    match action:
        case RemoveName():
            assert observed.name_taken
            assert observed.name_ours, "another program's namespace or file"
            return observed._replace(
                name_taken=False, name_ours=False, namespace=False, inner=None, sysctls=None
            )
        case CreateNamespace():
            assert not observed.name_taken
            return observed._replace(name_taken=True, name_ours=True, namespace=True)
        case DeleteLink(link):
            assert link == NAMES.veth_bridge
            assert observed.outer is not None
            assert observed.outer_ours, "another program's link"
            # The pair's other end goes with it; one that belongs to another pair does not.
            paired = observed.inner is not None and observed.inner.ifindex == observed.outer.peer
            inner = None if paired else observed.inner
            return observed._replace(outer=None, inner=inner, ports=observed.ports - {link})
        case DeleteInner():
            assert observed.inner is not None
            assert observed.inner_ours, "another program's link"
            return observed._replace(inner=None)
        case CreateVeth(_, mtu):
            assert observed.namespace
            assert observed.outer is None
            assert observed.inner is None
            inner = InnerLink(9, False, mtu, SERVICE_MAC, (), False)
            outer = OuterLink(True, False, mtu, "", 9, PORT_MAC, fixed=False)
            return observed._replace(outer=outer, inner=inner, sysctls={})
        case SetSysctls(_, values):
            assert observed.inner is not None, "sysctls of a link that does not exist yet"
            return observed._replace(sysctls={**(observed.sysctls or {}), **values})
        case ConfigureInner(_, mtu, _, addresses):
            assert observed.inner is not None
            inner = InnerLink(observed.inner.ifindex, True, mtu, SERVICE_MAC, addresses, default_route=True)
            return observed._replace(inner=inner)
        case RemoveAddresses(_, addresses, values):
            assert observed.inner is not None
            left = tuple(each for each in observed.inner.addresses if each not in addresses)
            return observed._replace(
                inner=observed.inner._replace(addresses=left), sysctls={**(observed.sysctls or {}), **values}
            )
        case AttachOuter(names, mtu):
            assert observed.outer is not None
            outer = observed.outer._replace(up=True, mtu=mtu, master=names.bridge, fixed=True)
            return observed._replace(outer=outer, ports=observed.ports | {names.veth_bridge})
        case FixForwarding(names):
            assert observed.outer is not None
            assert observed.outer.master == names.bridge, "an entry at a link that is no port"
            return observed._replace(outer=observed.outer._replace(fixed=True))
        case LoadServiceMap():
            return observed._replace(map=WANTED)
        case LoadGuards():
            return observed._replace(guard=right_guard(observed, NO_UPLINKS))
        case DeleteMapAndGuards():
            return observed._replace(map=None, guard=None)


outers = st.builds(
    OuterLink,
    veth=st.booleans(),
    up=st.booleans(),
    mtu=st.sampled_from([1400, 1500]),
    master=st.sampled_from(["br0", "br1", ""]),
    peer=st.sampled_from([7, 8]),
    mac=st.sampled_from([PORT_MAC, OTHER_MAC]),
    fixed=st.booleans(),
)
inners = st.builds(
    InnerLink,
    ifindex=st.just(7),
    up=st.booleans(),
    mtu=st.sampled_from([1400, 1500]),
    mac=st.sampled_from([SERVICE_MAC, OTHER_MAC]),
    addresses=st.sampled_from([(f"{SERVICE_ADDRESS}/32",), (f"{SERVICE_ADDRESS}/32", f"{METADATA}/32"), ()]),
    default_route=st.booleans(),
)
maps = st.builds(
    ServiceMap,
    st.just("br0"),
    st.dictionaries(
        st.sampled_from([ServiceKey(80), ServiceKey(81), ServiceKey(82)]), st.sampled_from([ONE, TWO])
    ),
    st.sampled_from([Network(), WANTED.network]),
)


@st.composite
def anything(draw: st.DrawFn) -> Observed:
    """Any state that killed hooks, operators or other programs may have left."""
    namespace = draw(st.booleans())
    name_taken = namespace or draw(st.booleans())
    wanted = healthy().sysctls
    assert wanted is not None
    sysctls = {path: draw(st.sampled_from([value, "2"])) for path, value in wanted.items()}
    observed = Observed(
        bridge_mtu=1500,
        ports=draw(st.frozensets(st.sampled_from(["br0b", "vnet0", "eth0"]))),
        recognised_uplinks=draw(st.frozensets(st.just("eth0"))),
        name_taken=name_taken,
        name_ours=name_taken and draw(st.booleans()),
        namespace=namespace,
        outer=draw(st.none() | outers),
        inner=draw(st.none() | inners) if namespace else None,
        sysctls=sysctls if namespace and draw(st.booleans()) else None,
        map=draw(st.none() | maps),
    )
    found = draw(st.sampled_from([None, "other uplinks", "right"]))
    if found:
        return observed._replace(guard=right_guard(observed, frozenset({"eth9"} if "other" in found else ())))
    return observed


def usable(observed: Observed) -> bool:
    return not plan.stranger("br0", observed)


some = settings(max_examples=60)


def test_nothing_is_planned_for_a_bridge_that_is_in_order() -> None:
    assert plan.up(WANTED, healthy(), NO_UPLINKS) == []


@pytest.mark.parametrize("kind", range(4))
def test_guards_have_fallbacks_only_while_the_kind_of_kernel_is_unknown(kind: int) -> None:
    observed = healthy()
    (unknown,) = plan.up(WANTED, observed._replace(guard=None), NO_UPLINKS)
    assert isinstance(unknown, LoadGuards)
    assert [lacks.partition(":")[0] for lacks, _ in unknown.fallbacks] == [
        "meta ibrname",
        "limit of nftables",
        "meta ibrname",
    ]
    guard = plan.wanted_guards("br0", observed, frozenset({"eth9"}), frozenset())[kind]
    (change,) = plan.up(WANTED, observed._replace(guard=rules_of(guard)), NO_UPLINKS)
    assert isinstance(change, LoadGuards)
    assert change.fallbacks == ()


@pytest.mark.parametrize("kind", range(4))
def test_guards_of_every_kind_of_kernel_count_as_in_order(kind: int) -> None:
    """A hook or the watcher must not try again, each time, what the kernel lacks."""
    observed = healthy()
    guard = plan.wanted_guards("br0", observed, NO_UPLINKS, frozenset())[kind]
    assert plan.up(WANTED, observed._replace(guard=rules_of(guard)), NO_UPLINKS) == []


def test_a_new_bridge_gets_its_guards_first_and_its_services_last() -> None:
    actions = plan.up(WANTED, Observed(bridge_mtu=1500, ports=frozenset({"vnet0"})), NO_UPLINKS)
    assert [type(action) for action in actions] == [
        LoadGuards,
        CreateNamespace,
        CreateVeth,
        SetSysctls,
        ConfigureInner,
        AttachOuter,
        LoadServiceMap,
    ]


def assert_up_completes(observed: Observed) -> None:
    done = reduce(after, plan.up(WANTED, observed, NO_UPLINKS), observed)
    # The bridge has new ports by now. The daemon makes the guards follow them.
    done = done._replace(guard=right_guard(done, NO_UPLINKS))
    assert plan.up(WANTED, done, NO_UPLINKS) == []


@some
@given(anything().filter(usable))
def test_up_can_be_carried_out_and_leaves_nothing_to_do(observed: Observed) -> None:
    assert_up_completes(observed)


@some
@given(anything().filter(usable), st.data())
def test_the_next_up_completes_one_that_was_killed_half_way(observed: Observed, data: st.DataObject) -> None:
    actions = plan.up(WANTED, observed, NO_UPLINKS)
    assert_up_completes(reduce(after, actions[: data.draw(st.integers(0, len(actions)))], observed))


@some
@given(anything())
def test_down_can_be_carried_out_and_leaves_nothing_of_ours(observed: Observed) -> None:
    done = reduce(after, plan.down("br0", observed), observed)
    # A link of ours in another program's namespace goes with its other end, which has our MAC.
    assert not any((done.outer_ours, done.name_ours, done.map, done.guard))
    assert done.anything == bool(plan.kept("br0", observed))
    assert plan.down("br0", done) == []


@some
@given(anything())
def test_every_action_has_one_line_of_text_that_names_the_bridge(observed: Observed) -> None:
    assume(usable(observed))
    for action in [*plan.up(WANTED, observed, NO_UPLINKS), *plan.down("br0", observed)]:
        assert "br0" in str(action)
        assert str(action).isprintable()


@pytest.mark.parametrize(
    ("damage", "repair"),
    [
        ({"up": False}, AttachOuter),
        ({"mtu": 1400}, AttachOuter),
        ({"master": ""}, AttachOuter),
        ({"master": "br1"}, AttachOuter),
        ({"fixed": False}, FixForwarding),
        ({"master": "", "fixed": False}, AttachOuter),
    ],
)
def test_only_the_port_is_repaired_when_only_the_port_is_damaged(
    damage: dict[str, Any], repair: type
) -> None:
    observed = healthy()
    assert observed.outer is not None
    damaged = observed._replace(outer=observed.outer._replace(**damage))
    assert [type(action) for action in plan.up(WANTED, damaged, NO_UPLINKS)] == [repair]


def test_our_port_keeps_an_mtu_that_is_larger_than_the_bridges() -> None:
    observed = healthy()
    assert observed.outer is not None
    outer = observed.outer._replace(mtu=9000)
    assert plan.up(WANTED, observed._replace(outer=outer), NO_UPLINKS) == []
    down = observed._replace(outer=outer._replace(up=False))
    assert plan.up(WANTED, down, NO_UPLINKS) == [AttachOuter(NAMES, 9000)]


def test_down_keeps_a_link_with_our_ports_name_that_is_no_veth() -> None:
    observed = healthy()
    assert observed.outer is not None
    stranger = observed._replace(outer=observed.outer._replace(veth=False))
    assert plan.dismantle("br0", stranger) == [RemoveName(NAMES.namespace)]
    assert plan.kept("br0", stranger) == ["link br0b"]


OURS, THEIRS = healthy(), healthy()._replace(name_ours=False)
THEIR_PORT = OURS.outer and OURS.outer._replace(mac=OTHER_MAC)
THEIR_INNER = OURS.inner and OURS.inner._replace(mac=OTHER_MAC)


@pytest.mark.parametrize(
    ("observed", "refused"),
    [
        (THEIRS._replace(outer=THEIR_PORT, inner=THEIR_INNER), ""),  # a whole pair is used
        (OURS._replace(outer=THEIR_PORT), ""),
        (OURS._replace(outer=OURS.outer and OURS.outer._replace(peer=0)), ""),  # our remnant: replaced
        (Observed(outer=OURS.outer), ""),
        (Observed(outer=THEIR_PORT), "link br0b belongs to another program"),
        (OURS._replace(outer=THEIR_PORT and THEIR_PORT._replace(peer=0)), "link br0b belongs to"),
        (OURS._replace(outer=OURS.outer and OURS.outer._replace(veth=False)), "link br0b is not a veth"),
        (THEIRS._replace(outer=None, inner=THEIR_INNER), "link br0a in namespace one_tproxy_br0 belongs to"),
        (OURS._replace(outer=None, inner=THEIR_INNER), ""),
        (Observed(name_taken=True), "one_tproxy_br0 in /run/netns is no namespace"),
        (Observed(name_taken=True, name_ours=True), ""),
        (Observed(guard=ObservedGuard("br0", foreign=frozenset({"ch_br0"}))), ""),
        (
            Observed(guard=ObservedGuard("br0", foreign=frozenset({"guard_forward"}))),
            "chain guard_forward in",
        ),
    ],
)
def test_up_refuses_what_another_program_has_under_our_names_and_cannot_be_used(
    observed: Observed, refused: str
) -> None:
    said = plan.stranger("br0", observed)
    assert said.startswith(refused)
    assert bool(said) == bool(refused)


def test_down_names_what_another_program_made_and_leaves_it() -> None:
    guard = ObservedGuard("br0", foreign=frozenset({"ch_br0"}))
    foreign = THEIRS._replace(outer=THEIR_PORT, inner=THEIR_INNER, guard=guard, map=None)
    assert plan.down("br0", foreign) == []
    assert plan.kept("br0", foreign) == ["link br0b", "namespace one_tproxy_br0", "chain ch_br0"]
    # The pair is ours there, because a hook made it in a namespace that existed.
    mixed = foreign._replace(outer=OURS.outer)
    assert [type(each) for each in plan.down("br0", mixed)] == [DeleteLink]


def test_another_programs_chain_is_neither_replaced_nor_deleted() -> None:
    observed = healthy()
    assert observed.guard is not None
    guard = observed.guard._replace(arp_guard=None, foreign=frozenset({"ch_br0"}))
    assert plan.up(WANTED, observed._replace(guard=guard), NO_UPLINKS) == []
    assert "ch_br0" not in str(guards.unload(guard))


@pytest.mark.parametrize(
    "damage",
    [
        {"up": False},
        {"mtu": 1400},
        {"mac": "02:00:00:00:00:01"},
        {"addresses": ()},
        {"default_route": False},
    ],
    ids=str,
)
def test_a_damaged_inner_link_is_configured_anew_and_not_replaced(damage: dict[str, Any]) -> None:
    observed = healthy()
    assert observed.inner is not None
    damaged = observed._replace(inner=observed.inner._replace(**damage))
    assert [type(action) for action in plan.up(WANTED, damaged, NO_UPLINKS)] == [ConfigureInner]


def test_an_address_that_nobody_wants_is_taken_away_last() -> None:
    observed = healthy()
    assert observed.inner is not None
    damaged = observed._replace(
        inner=observed.inner._replace(addresses=("10.0.0.1/24", "169.254.16.9/32"), mtu=1400)
    )
    configure, remove = plan.up(WANTED, damaged, NO_UPLINKS)
    assert isinstance(configure, ConfigureInner)
    assert configure.addresses == ("10.0.0.1/24", "169.254.16.9/32")
    assert remove == RemoveAddresses(NAMES, ("10.0.0.1/24",), {})


def test_ipv6_is_switched_off_when_its_address_is_taken_away() -> None:
    observed = healthy()
    assert observed.inner is not None
    before = observed._replace(
        sysctls={**(observed.sysctls or {}), **plan.namespace_sysctls(NAMES, ipv6=True)},
        inner=observed.inner._replace(addresses=("169.254.16.9/32", "fe80::a9fe:1009/64")),
    )
    (remove,) = plan.up(WANTED, before, NO_UPLINKS)
    assert remove == RemoveAddresses(NAMES, ("fe80::a9fe:1009/64",), {plan.NO_IPV6: "1"})


def test_an_address_that_the_kernel_made_is_gone_when_ipv6_is_switched_off() -> None:
    observed = healthy()
    assert observed.inner is not None
    before = observed._replace(
        sysctls={**(observed.sysctls or {}), plan.NO_IPV6: "0"},
        inner=observed.inner._replace(addresses=("169.254.16.9/32", "fe80::9830:9dff:fe6c:a87a/64")),
    )
    sysctls, *links = plan.up(WANTED, before, NO_UPLINKS)
    assert isinstance(sysctls, SetSysctls)
    assert all("fe80" not in address for each in links for address in getattr(each, "addresses", ()))


def test_a_further_service_address_needs_guards_the_address_and_the_map() -> None:
    (guard, configure, load) = plan.up(FURTHER, healthy(), NO_UPLINKS)
    assert isinstance(guard, LoadGuards)
    assert guard.fallbacks == ()
    assert isinstance(configure, ConfigureInner)
    assert configure.addresses == (f"{SERVICE_ADDRESS}/32", f"{METADATA}/32")
    assert isinstance(load, LoadServiceMap)


def test_ipv6_needs_sysctls_too_before_the_address() -> None:
    wanted = WANTED._replace(ipv6=True)
    (_, sysctls, configure, _) = plan.up(wanted, healthy(), NO_UPLINKS)
    assert isinstance(sysctls, SetSysctls)
    paths = list(sysctls.values)
    assert paths.index("ipv6/conf/br0a/addr_gen_mode") < paths.index(plan.NO_IPV6)
    assert sysctls.values[plan.NO_IPV6] == "0"
    assert isinstance(configure, ConfigureInner)
    assert configure.addresses == (f"{SERVICE_ADDRESS}/32", "fe80::a9fe:1009/64")


def test_a_namespace_that_had_ipv6_loses_it_with_one_sysctl() -> None:
    observed = healthy()
    sysctls = {**(observed.sysctls or {}), **plan.namespace_sysctls(NAMES, ipv6=True)}
    (action,) = plan.up(WANTED, observed._replace(sysctls=sysctls), NO_UPLINKS)
    assert action == SetSysctls(NAMES.namespace, {plan.NO_IPV6: "1"})


def test_only_sysctls_that_differ_are_set() -> None:
    observed = healthy()
    assert observed.sysctls is not None
    damaged = observed._replace(sysctls={**observed.sysctls, "ipv4/ip_forward": "1"})
    (action,) = plan.up(WANTED, damaged, NO_UPLINKS)
    assert action == SetSysctls(NAMES.namespace, {"ipv4/ip_forward": "0"})


def test_sysctls_that_the_kernel_lacks_are_not_set_by_every_hook() -> None:
    observed = healthy()
    assert observed.sysctls is not None
    fewer = {path: value for path, value in observed.sysctls.items() if not path.startswith("ipv6")}
    assert plan.up(WANTED, observed._replace(sysctls=fewer), NO_UPLINKS) == []


def test_veth_ends_that_do_not_belong_together_are_replaced_by_a_new_pair() -> None:
    observed = healthy()
    assert observed.outer is not None
    stranger = observed._replace(outer=observed.outer._replace(peer=99))
    actions = plan.up(WANTED, stranger, NO_UPLINKS)
    assert [type(action) for action in actions[:3]] == [DeleteLink, DeleteInner, CreateVeth]


def test_undoing_a_failed_up_removes_only_what_it_added() -> None:
    built = healthy()
    assert not built.added_since(built).anything
    assert built.added_since(Observed()).anything
    before = built._replace(map=None, outer=None)
    added = built.added_since(before)
    assert (added.map, added.outer) == (WANTED, built.outer)
    assert not added.name_taken
    assert added.guard is None or not added.guard.anything
    unguarded = built._replace(guard=ObservedGuard("br0"))
    assert built.added_since(unguarded).guard == built.guard


@given(st.frozensets(st.sampled_from(["br0b", "vnet0", "vnet1", "eth0"])), st.booleans())
def test_guests_are_all_ports_but_ours_and_the_uplinks(ports: frozenset[str], named: bool) -> None:
    uplinks = frozenset({"eth0"}) if named else NO_UPLINKS
    guests = plan.guests("br0", Observed(ports=ports), uplinks)
    assert guests == {each for each in ports if each.startswith("vnet") or (each == "eth0" and not named)}


def test_a_named_uplink_stays_named_when_it_is_also_recognised() -> None:
    observed = Observed(ports=frozenset({"eth0", "vnet0"}), recognised_uplinks=frozenset({"eth0"}))
    for guard in plan.wanted_guards("br0", observed, frozenset({"eth0", "eth9"}), frozenset()):
        assert guard.uplinks == {"eth0": True, "eth9": True}
    for guard in plan.wanted_guards("br0", observed, NO_UPLINKS, frozenset()):
        assert guard.uplinks == {"eth0": False}


def test_an_uplink_named_for_two_bridges_belongs_to_the_one_whose_port_it_is() -> None:
    """Otherwise each hook would take it from the other bridge, whose ``down`` would leave it unguarded."""
    named = frozenset({"eth0"})
    has, has_not = (Observed(ports=frozenset(ports)) for ports in (("eth0", "vnet0"), ("vnet1",)))
    for first, then, kept in ((has, has_not, False), (has_not, has, True), (has_not, has_not, False)):
        (owned, *_) = plan.wanted_guards("br0", first, named, frozenset())
        assert owned.uplinks == {"eth0": True}
        again, *_ = plan.wanted_guards("br0", first._replace(guard=rules_of(owned)), named, frozenset())
        assert again.uplinks == owned.uplinks
        there = rules_of(owned)._replace(bridge="br1")
        for guard in plan.wanted_guards("br1", then._replace(guard=there), named, frozenset()):
            assert guard.uplinks == ({"eth0": True} if kept else {})


def test_our_own_port_is_never_an_uplink() -> None:
    observed = Observed(ports=frozenset({"br0b"}), recognised_uplinks=frozenset({"br0b"}))
    for guard in plan.wanted_guards("br0", observed, frozenset({"br0b"}), frozenset()):
        assert guard.uplinks == {}
        assert set(guard.elements) == set(SETS)


def test_a_bridge_that_another_program_built_keeps_its_settings() -> None:
    """Its MAC, address and MTU may differ from ours; only a missing veth pair is made again."""
    observed = healthy()
    assert observed.inner is not None
    foreign = observed._replace(
        guard=None, inner=observed.inner._replace(mac="02:00:00:00:00:01", addresses=("169.254.16.9/24",))
    )
    assert plan.up_foreign(WANTED, foreign, "02:00:00:00:00:01") == []
    rebuilt = plan.up_foreign(WANTED, foreign._replace(outer=None), "02:00:00:00:00:01")
    (configure,) = [action for action in rebuilt if isinstance(action, ConfigureInner)]
    assert configure.mac == "02:00:00:00:00:01"
    assert not any(isinstance(action, LoadGuards) for action in rebuilt)


def test_sysctl_paths_keep_the_dots_of_a_bridge_name() -> None:
    paths = plan.namespace_sysctls(BridgeNames("a.b-c.10"))
    assert "ipv4/conf/a.b-c.10a/arp_ignore" in paths
    assert next(iter(paths)) == "ipv4/ip_forward", "the kernel resets others along with it"
