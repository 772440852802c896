"""Members of a bridge: which guest belongs to which network, and which network came first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tproxy.bridge import comments, map_commands, members, service_map
from tproxy.bridge.members import Nics
from tproxy.model import Member, Network, ServiceMap
from tproxy.names import check_mac

BLUE, RED, GREEN = Network("blue", "1"), Network("red", "2"), Network("green", "3")
ONE, TWO, THREE = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"

names = st.text(max_size=40)
networks = st.builds(Network, names, names)


def bridge(found: dict[str, Member] | None, network: Network = BLUE) -> ServiceMap:
    return ServiceMap("br0", {}, network, found)


def test_the_network_of_the_first_guest_is_the_first_network() -> None:
    found = members.join(None, RED, [ONE])
    assert found == {ONE: Member(RED)}
    found = members.join(bridge(found), BLUE, [TWO])
    assert bridge(found).networks == (RED, BLUE)


def test_a_network_keeps_its_place_while_it_has_a_guest() -> None:
    found = members.join(None, RED, [ONE])
    found = members.join(bridge(found), BLUE, [TWO])
    found = members.join(bridge(found), RED, [THREE])
    assert bridge(members.leave(bridge(found), [ONE])).networks == (RED, BLUE)
    assert bridge(members.leave(bridge(found), [ONE, THREE])).networks == (BLUE,)


def test_a_network_that_comes_again_is_the_last() -> None:
    found = members.join(None, RED, [ONE])
    found = members.join(bridge(found), BLUE, [TWO])
    found = members.join(bridge(members.leave(bridge(found), [ONE])), RED, [ONE])
    assert bridge(found).networks == (BLUE, RED)


def test_a_vm_with_nics_on_two_networks_counts_for_both() -> None:
    found = members.join(bridge(members.join(None, RED, [ONE])), BLUE, [TWO])
    assert bridge(members.leave(bridge(found), [ONE])).networks == (BLUE,)


def test_a_guest_that_comes_for_another_network_leaves_the_former_one() -> None:
    found = members.join(bridge(members.join(None, RED, [ONE])), BLUE, [ONE])
    assert found == {ONE: Member(BLUE, 2)}


def test_a_hook_without_a_mac_stands_for_its_network_until_the_bridge_is_taken_down() -> None:
    found = members.join(None, RED, [])
    assert found == {members.address_of(RED): Member(RED)}
    found = members.join(bridge(found), BLUE, [ONE])
    assert bridge(members.leave(bridge(found), [ONE])).networks == (RED,)


def test_a_hook_that_names_nothing_changes_no_network() -> None:
    found = members.join(None, RED, [ONE])
    assert members.join(bridge(found), Network(), []) == found


def test_guests_without_a_network_are_no_network_beside_others() -> None:
    found = members.join(None, Network(), [])
    assert bridge(found).networks == (Network(),)
    assert members.join(bridge(found), RED, [ONE]) == {ONE: Member(RED)}


def test_the_network_of_a_map_without_a_set_has_guests_of_which_nobody_tells() -> None:
    found = members.join(bridge(None, RED), BLUE, [ONE])
    assert bridge(found).networks == (RED, BLUE)
    assert bridge(members.leave(bridge(found), [ONE])).networks == (RED,)
    assert members.join(bridge(None, Network()), BLUE, [ONE]) == {ONE: Member(BLUE)}


def test_a_network_whose_last_guest_has_gone_does_not_come_back() -> None:
    assert members.join(bridge({}, RED), BLUE, [ONE]) == {ONE: Member(BLUE)}


def test_the_watcher_can_name_the_network_of_unnamed_guests_anew() -> None:
    found = members.join(bridge(members.join(None, RED, [])), BLUE, [ONE])
    found = members.join(bridge(found), GREEN, [], anew=True)
    assert bridge(found).networks == (BLUE, GREEN)


def joined(found: ServiceMap | None, network: Network, *named: tuple[str, str]) -> ServiceMap:
    """The map after a hook that names these MACs, each with a port, or ""."""
    nics = Nics(
        frozenset(mac for mac, _ in named if mac), frozenset((port, mac) for mac, port in named if port)
    )
    return members.after_join(found, bridge({}), network, nics)


def left(found: ServiceMap, *macs: str, ports: tuple[str, ...] = ()) -> ServiceMap:
    return members.after_leave(found, Nics(frozenset(macs), frozenset((port, "") for port in ports)))


def test_a_card_is_a_port_and_the_mac_that_a_hook_named_with_it() -> None:
    found = joined(None, RED, (ONE, "vnet1"), (TWO, ""))
    assert found.members == {ONE: Member(RED), TWO: Member(RED)}
    assert found.cards == {("vnet1", ONE)}


def test_what_a_hook_says_of_a_mac_or_a_port_replaces_what_was_said_before() -> None:
    found = joined(None, RED, (ONE, "vnet1"), (TWO, "vnet2"))
    assert joined(found, RED, (ONE, "vnet3")).cards == {("vnet3", ONE), ("vnet2", TWO)}
    assert joined(found, RED, (THREE, "vnet1")).cards == {("vnet1", THREE), ("vnet2", TWO)}
    assert joined(found, RED, (ONE, "")).cards == {("vnet2", TWO)}


def test_a_port_without_a_mac_has_the_address_of_its_network() -> None:
    found = joined(None, RED, ("", "vnet1"))
    assert found.members == {members.address_of(RED): Member(RED)}
    assert found.cards == {("vnet1", members.address_of(RED))}
    both = joined(found, RED, ("", "vnet2"))
    assert {port for port, _ in both.cards} == {"vnet1", "vnet2"}
    assert left(both, ports=("vnet1",)).cards == {("vnet2", members.address_of(RED))}


def test_a_guest_goes_with_its_cards() -> None:
    found = joined(joined(None, RED, (ONE, "vnet1"), (TWO, "vnet2")), BLUE, (THREE, "vnet3"))
    assert left(found, ONE).cards == {("vnet2", TWO), ("vnet3", THREE)}
    gone = left(found, ports=("vnet3",))
    assert gone.members == {ONE: Member(RED), TWO: Member(RED)}
    assert gone.cards == {("vnet1", ONE), ("vnet2", TWO)}
    assert left(found, "02:00:00:00:00:99") == found


@given(st.sets(st.tuples(st.sampled_from(["vnet1", "tap.2", "x" * 15]), st.sampled_from([ONE, TWO]))))
def test_cards_read_as_they_were_stored(cards: set[tuple[str, str]]) -> None:
    elements = [{"concat": [*each]} for each in sorted(cards)]
    listed = {"type": ["ifname", "ether_addr"], "elem": elements}
    assert service_map.parse_cards(listed) == frozenset(cards)
    assert service_map.parse_cards({"type": "ifname", "elem": []}) is None


def test_cards_change_with_the_fewest_commands_and_their_set_goes_with_the_last() -> None:
    none, some = bridge({}), bridge({})._replace(cards=frozenset({("vnet1", ONE), ("vnet2", TWO)}))
    one = some._replace(cards=frozenset({("vnet1", ONE)}))
    assert map_commands.change_map(some, some) == []
    assert map_commands.change_map(some, one)[1:] == [
        f'delete element ip one_tproxy pt_br0 {{ "vnet2" . {TWO} }}'
    ]
    assert map_commands.change_map(one, none) == ["delete set ip one_tproxy pt_br0"]
    assert map_commands.change_map(none, one) == [
        "add set ip one_tproxy pt_br0 { type ifname . ether_addr; }",
        f'add element ip one_tproxy pt_br0 {{ "vnet1" . {ONE} }}',
    ]


@given(networks)
def test_the_address_of_a_network_is_locally_administered_and_its_own(network: Network) -> None:
    address = members.address_of(network)
    assert check_mac(address) == address
    assert int(address[:2], 16) & 3 == 2
    assert address == members.address_of(comments.stored(network))


@given(networks, networks)
def test_members_read_as_they_were_stored(first: Network, second: Network) -> None:
    found = members.join(None, first, [ONE])
    found = members.join(bridge(found, comments.stored(first)), second, [TWO])
    listed = {
        "type": "ether_addr",
        "elem": [
            {"elem": {"val": mac, "comment": comment}} if comment else mac
            for mac, comment in ((mac, comments.member_comment(each)) for mac, each in found.items())
        ],
    }
    assert service_map.parse_members(listed) == found
