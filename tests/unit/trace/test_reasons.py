"""Which rule dropped a frame, in words; and what the kernel tells of it."""

from __future__ import annotations

import zlib

import pytest

from tproxy.bridge import guard_rules, wall
from tproxy.bridge.guards import Guard
from tproxy.trace import frames, reasons
from tproxy.trace.frames import Frame
from tproxy.trace.reasons import Rule
from tproxy.trace.rule_events import Drop, Reader

FRAME = Frame(frames.TCP, "10.0.0.5", "169.254.16.9")
TEXTS = reasons.our_texts(frozenset({"169.254.169.254", "fe80::a9fe:1009"}))

# What Linux 6.18 told of an ARP request that a rule dropped: chain seen, which marked it, then chain c.
MARKED = (
    "d8000000110a000000000000000000000700000008000f000000000708000400000000030800060027f2f278090002007365656e"
    "00000000150001006f6e655f7470726f78795f7472616365000000000c00030000000000000000020c00050008000100ffffffff"
    "08000e00000000d408000a000000000406000b00000100002c000800600000000024000100000000000000000000000000000000"
    "ff020000000000000000000000000016180009008f004d420000000104000000ff020000000000001200070033330000001616e6"
    "d4f7215186dd0000"
)


def drop(
    chain: str, text: str = "", *, family: str = "bridge", table: str = "one_tproxy", handle: int = 7
) -> str:
    rules = [Rule(7, f"tproxy {zlib.crc32(text.encode()):08x}" if text else "")]
    return reasons.why(Drop(FRAME, family, table, chain, handle, 1, 0), rules, TEXTS)


@pytest.mark.parametrize("addresses", [frozenset[str](), frozenset({"169.254.169.254", "fe80::a9fe:1009"})])
@pytest.mark.parametrize("ports", [None, frozenset({"vnet0"})])
def test_each_rule_of_the_guards_that_drops_has_words(
    ports: frozenset[str] | None, addresses: frozenset[str]
) -> None:
    for chain, rules in Guard("br0", ports, {}, True, addresses).shared_rules.items():
        for rule in rules:
            if rule.endswith("drop"):
                said = drop(chain, rule)
                assert said.startswith("by the guards (")
                assert f"chain {chain}" not in said, rule


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (guard_rules.TOO_MANY_SYNS, "more than 1000 connections a second"),
        (f"iifname @{guard_rules.UPLINKS} drop", "it comes from an uplink"),
    ],
)
def test_a_limit_and_an_uplink_are_told_apart(rule: str, words: str) -> None:
    assert words in drop(guard_rules.ASKING, rule)


def test_the_comment_of_a_rule_for_one_address_has_more_words() -> None:
    text = guard_rules.TOO_MANY_SYNS
    rules = [Rule(7, f"tproxy {zlib.crc32(text.encode()):08x} at=169.254.169.254")]
    found = reasons.why(Drop(FRAME, "bridge", "one_tproxy", guard_rules.ASKING, 7, 1, 0), rules, TEXTS)
    assert "1000 connections" in found


def test_the_wall_and_what_it_refuses() -> None:
    kind, parts = wall.KINDS[0], wall.Parts(udp=True, further=False, ipv6=False)
    refusing, dropping = wall.rules(kind, parts)[wall.AFTER][1:]
    assert "lets in the services" in drop(wall.CHAIN, family="inet", handle=0)
    assert "with ICMP" in drop(wall.AFTER, refusing, family="inet")
    assert "no such UDP service" in drop(wall.AFTER, dropping, family="inet")


def test_another_programs_rule_is_named_so_that_nft_shows_it() -> None:
    rules = [Rule(7, 'group "a"\n')]
    found = reasons.why(Drop(FRAME, "bridge", "filter", "in", 7, 1, 0), rules, TEXTS)
    assert found == "by another program's nftables: table bridge filter, chain in, handle 7, 'group \"a\"\\n'"
    found = reasons.why(Drop(FRAME, "bridge", "filter", "in", 0, 1, 0), [], TEXTS)
    assert found == "by another program's nftables: table bridge filter, chain in, by its policy"


def test_a_frame_that_goes_on_is_no_drop() -> None:
    assert Reader().read(bytes.fromhex(MARKED)) == []


@pytest.mark.parametrize("length", range(0, 216, 7))
def test_a_message_that_is_cut_off_is_no_error(length: int) -> None:
    data = bytes.fromhex(MARKED)
    Reader().read(data[:length])
    Reader().read(length.to_bytes(4, "little") + data[4:length])
