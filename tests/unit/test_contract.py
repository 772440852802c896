"""The tables of docs/contract.md that can be compared with the code alone, without a host."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.contract import PAGE, bare, quoted, table
from tproxy import console
from tproxy.addresses import PORT_MAC, SERVICE_ADDRESS, SERVICE_MAC
from tproxy.bridge.guard_rules import LIMIT_SETS, SETS
from tproxy.cli import check as check_command
from tproxy.cli import commands
from tproxy.cli import hook as hook_command
from tproxy.config import keys, reader
from tproxy.config.file import SEARCH_PATH, required
from tproxy.config.resolver import services_for
from tproxy.config.services import Config
from tproxy.errors import ConfigError
from tproxy.log import output
from tproxy.model import Endpoint, Network, Service, ServiceKey
from tproxy.names import BridgeNames
from tproxy.options import Domains, Entries, Text
from tproxy.proxy_protocol import (
    OF_BRIDGE,
    OF_HYPERVISOR,
    OF_MAC,
    OF_NETWORK,
    OF_NETWORK_ID,
    OF_PORT,
    UNIQUE_ID,
)

VNET1 = Network("vnet1", "0")
UNIX_SOCKET = "unix:/run/x.sock"
BEFORE = Service(ServiceKey(5030), Endpoint("192.0.2.7", 5030))


def test_the_names_are_those_that_are_made() -> None:
    names = BridgeNames("bridge")
    found = table("Names on the host", "thing").by_first_column()
    made = {thing: bare(row["name"]).replace("<bridge>", "bridge") for thing, row in found.items()}
    assert made["namespace"] == names.namespace
    assert made["veth, bridge side"] == names.veth_bridge
    assert made["veth, namespace side"] == names.veth_namespace
    assert f"map `{names.map}`" in made["service map"]
    assert f"chain `{names.arp_guard}`" in made["ARP guard"]
    assert made["relay"] == f"process title `{names.relay_title}`"
    assert made["daemon's log"] == f"/var/log/{output.DAEMON_LOG}"
    assert made["relay's log"] == f"/var/log/{names.relay_log}"
    assert {*SETS} < {*quoted(made["sets of the guards"])}
    assert {*LIMIT_SETS} < {*quoted(made["sets of the limits"])}
    assert PORT_MAC in quoted(found["veth, bridge side"]["note"])
    assert {f"{SERVICE_ADDRESS}/32", SERVICE_MAC} < {*quoted(found["veth, namespace side"]["note"])}


def test_all_commands_are_there_and_no_other() -> None:
    assert sorted(table("Commands", "command").column("command")) == sorted(commands.COMMANDS)


def test_the_exit_codes_are_those_of_the_code() -> None:
    known = [console.EXIT_FAILURE, console.EXIT_USAGE, console.EXIT_INTERNAL, console.EXIT_INTERRUPTED]
    assert list(map(int, table("Commands", "exit code").column("exit code"))) == [0, *known]
    check = table("Commands", "command").by_first_column()["check"]
    assert f"{check_command.EXIT_WARNINGS}: usable" in check["exit codes"]
    hook = list(map(int, table("Hook", "exit code").column("exit code")))
    assert hook == [
        0,
        console.EXIT_FAILURE,
        console.EXIT_USAGE,
        hook_command.EXIT_IN_USE,
        console.EXIT_INTERNAL,
    ]


def test_all_options_of_the_hook_are_there_and_no_other() -> None:
    options = [each.split()[0] for each in table("Hook", "option").column("option")]
    assert sorted(options) == sorted([*hook_command.FLAGS, *hook_command.VALUES])


def test_all_keys_of_the_configuration_are_there_and_no_other() -> None:
    assert sorted(table("Configuration file", "entry key").column("entry key")) == sorted(keys.ENTRY)
    assert sorted(table("Configuration file", "bridge key").column("bridge key")) == sorted(keys.BRIDGE)
    for key in table("Configuration file", "top-level key").column("top-level key"):
        # No key can have this value, so one that is read complains of it.
        try:
            complaints = len(reader.parse("f", f"{key}: {{}}").warnings)
        except ConfigError:
            complaints = 1
        assert complaints == 1, key


def test_the_search_order_is_that_of_the_code() -> None:
    assert re.findall(r"^\d\. `(/.*)`$", PAGE.read_text(), re.MULTILINE) == [*SEARCH_PATH]


# The cases of the configuration file


class Said(NamedTuple):
    """What a configuration comes to for vnet1: endpoints by service port, and how many warnings there are."""

    endpoints: dict[int, str]
    warnings: int


def resolve(name: str) -> list[str]:
    match name:
        case "several":
            return ["192.0.2.10", "192.0.2.9"]
        case "unanswered":
            raise socket.gaierror(socket.EAI_AGAIN, "nobody answers")
    raise socket.gaierror(socket.EAI_NONAME, "no such name")


def said(text: str) -> Said:
    read: Config = reader.parse("f", text)
    services, problems = services_for(read, VNET1, resolve, {ServiceKey(5030): BEFORE}.get)
    endpoints = {key.port: str(each.endpoint) for key, each in services.items()}
    return Said(endpoints, len(read.warnings) + len(problems))


def entries(*lines: str) -> str:
    return "tproxy:\n" + "".join(f"- {{{line}}}\n" for line in lines)


GOOD = "remote_addr: 192.0.2.1, remote_port: 5030"
OTHER = "remote_addr: 192.0.2.2, remote_port: 5031"
FIRST = {5030: "192.0.2.1:5030"}
SECOND = {5031: "192.0.2.2:5031"}
SKIPPED = Said(SECOND, 1)
UNUSABLE: dict[type, str] = {
    Text: "[1]",
    Domains: "a b",
}  # by the kind of a value; any other kind does not take a word that means nothing
BASE = f"b: &b {{{GOOD}}}\n"

CASES: dict[str, list[tuple[str, Said | None]]] = {
    "two entries with one service port and protocol that apply to the same network": [
        (entries(GOOD, "service_port: 5030, remote_addr: 192.0.2.2, remote_port: 1"), Said(FIRST, 1))
    ],
    "the first of them cannot be used": [
        (entries("service_port: 5030, remote_addr: 0.0.0.0, remote_port: 1", GOOD), Said(FIRST, 1))
    ],
    "entry without `remote_addr` or `remote_port`": [
        (entries("remote_port: 5030", OTHER), SKIPPED),
        (entries("remote_addr: 192.0.2.1", OTHER), SKIPPED),
    ],
    "port that is not 1 to 65535, or any other value that cannot be used": [
        (entries(f"{GOOD}, service_port: 65536", OTHER), SKIPPED),
        (entries(f"{GOOD}, connect_timeout: 301", OTHER), SKIPPED),
        (entries(f"{GOOD}, name: {'n' * 33}", OTHER), SKIPPED),
    ],
    "`remote_addr` that is the service address, `0.0.0.0`, `255.255.255.255` or multicast; "
    "likewise of IPv6, and link-local": [
        (entries(f"remote_addr: {address}, remote_port: 5030", OTHER), SKIPPED)
        for address in (
            SERVICE_ADDRESS,
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "'::'",
            "ff02::1",
            "fe80::1",
        )
    ],
    "entry whose endpoints are all UNIX sockets (`unix:/run/x.sock`), with `service_port`": [
        (entries("remote_addr: unix:/run/x.sock, service_port: 5030"), Said({5030: UNIX_SOCKET}, 0)),
        (entries("remote_addr: [unix:/run/x.sock], remote_port: 5030"), Said({5030: UNIX_SOCKET}, 0)),
        (entries("remote_addr: unix:/run/x.sock", OTHER), SKIPPED),
        (entries("remote_addr: [unix:/run/x.sock, 192.0.2.1], service_port: 5030", OTHER), SKIPPED),
    ],
    "UNIX socket with `protocol: udp`, or whose path is no absolute one of up to 107 printable ASCII "
    "characters without space and comma": [
        (entries("remote_addr: unix:/run/x.sock, service_port: 5030, protocol: udp", OTHER), SKIPPED),
        (entries("remote_addr: unix:/run/x.sock, service_port: 5030, protocol: [tcp, udp]", OTHER), SKIPPED),
        (entries("remote_addr: unix:x.sock, service_port: 5030", OTHER), SKIPPED),
        (entries(f"remote_addr: unix:/{'n' * 107}, service_port: 5030", OTHER), SKIPPED),
    ],
    "host name that does not exist": [(entries("remote_addr: nobody, remote_port: 5030", OTHER), SKIPPED)],
    "host name for which no name server answers": [
        (
            entries("remote_addr: unanswered, remote_port: 5030", OTHER),
            Said({5030: str(BEFORE.endpoint), **SECOND}, 1),
        ),
        (entries("service_port: 5030, remote_addr: unanswered, remote_port: 1", OTHER), SKIPPED),
    ],
    "host name with several addresses": [
        (entries("remote_addr: several, remote_port: 5030"), Said({5030: "192.0.2.9:5030"}, 0))
    ],
    "value that YAML does not clearly read as a name or an id (`0123`, `yes`, `1_000`) in `networks`": [
        *((entries(f"{GOOD}, networks: [{each}]", OTHER), SKIPPED) for each in ("0123", "yes", "1_000")),
        (entries(f'{GOOD}, networks: ["0123", vnet1]', OTHER), Said({**FIRST, **SECOND}, 0)),
    ],
    "key twice in an entry, or with and without a colon": [
        (entries(f"remote_addr: 192.0.2.3, {GOOD}"), Said(FIRST, 1)),
        (
            ":tproxy:\n- :remote_addr: 192.0.2.3\n  remote_addr: 192.0.2.1\n  :remote_port: 5030\n",
            Said(FIRST, 1),
        ),
    ],
    "unknown key in an entry that resembles a known one (`network`, `netwroks`)": [
        (entries(f"{GOOD}, {key}: vnet2", OTHER), SKIPPED) for key in ("network", "netwroks")
    ],
    "any other unknown key in an entry": [(entries(f"{GOOD}, colour: red"), Said(FIRST, 1))],
    "several networks in one string (`networks: 0, 1`)": [
        (entries(f"{GOOD}, networks: '0, 1'", OTHER), SKIPPED),
        (entries(f"{GOOD}, networks: ['sales, inland', vnet1]"), Said(FIRST, 0)),
    ],
    "key at the top level that resembles one of ours (`:Tproxy:`), or that belongs into an entry": [
        (f":Tproxy: []\nnetworks: [vnet2]\n{entries(GOOD)}", Said(FIRST, 0))
    ],
    "value at the top level that cannot be used, other than a list": [
        (f"{key}: {UNUSABLE.get(type(each.option.kind), 'nonsense')}\n{entries(GOOD)}", Said(FIRST, 1))
        for key, each in keys.FILE.items()
        if not isinstance(each.option.kind, Entries)
    ],
    "merge key that cannot be followed: "
    "twice in one mapping, in quotes, of something that is no mapping, of itself": [
        (BASE + entries("<<: *b, <<: *b", OTHER), SKIPPED),
        (BASE + entries('"<<": *b', OTHER), SKIPPED),
        (entries(f"<<: 5, {GOOD}", OTHER), SKIPPED),
        (f"tproxy:\n- &b {{<<: *b, {GOOD}}}\n- {{{OTHER}}}\n", SKIPPED),
        (f"<<: 5\n{entries(GOOD)}", None),
    ],
    "key without a value (`networks:`)": [(f"{entries(GOOD)[:-2]}, networks: }}\n", Said(FIRST, 0))],
    "no entry applies to the network": [(entries(f"{GOOD}, networks: vnet2"), Said({}, 0))],
    "`tproxy` or `tproxy_bridges` is not a list": [("tproxy: 5", None), ("tproxy_bridges: 5", None)],
    "key of ours twice at the top level": [("tproxy: []\n:tproxy: []", None)],
    "file that is missing, unreadable, too large, not UTF-8 or not YAML, or nested too deeply": [
        ("tproxy: [", None),
        ("tproxy: " + "[" * 60 + "]" * 60, None),
    ],
    "no `tproxy` key at all": [("other: 1", Said({}, 0))],
}


def test_every_case_of_the_configuration_has_a_test_and_every_test_a_case() -> None:
    assert table("Configuration file", "case").column("case") == list(CASES)


@pytest.mark.parametrize("case", CASES)
def test_the_configuration_is_read_as_the_contract_says(case: str) -> None:
    for text, expected in CASES[case]:
        if expected is None:
            with pytest.raises(ConfigError, match=r"\Af:\d+: "):
                said(text)
        else:
            assert said(text) == expected, text


@pytest.mark.parametrize(
    "spoil",
    [Path.unlink, lambda path: path.write_bytes(b"\xff"), lambda path: path.write_bytes(b"#" * (1 << 21))],
    ids=["missing", "not UTF-8", "too large"],
)
def test_a_file_that_cannot_be_read_is_one_line_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("tproxy.yaml")  # the message cuts a long path
    path.write_text(entries(GOOD))
    spoil(path)
    with pytest.raises(ConfigError, match=r"tproxy\.yaml") as caught:
        reader.load(required(str(path), {}))
    assert "\n" not in str(caught.value)


def test_merged_keys_yield_to_an_entrys_own_and_an_earlier_mapping_wins() -> None:
    text = f"a: &a {{{GOOD}, networks: [vnet1]}}\nb: &b {{remote_addr: 192.0.2.3}}\n"
    assert said(text + entries("<<: [*b, *a], service_port: 1")).endpoints == {1: "192.0.2.3:5030"}
    assert said(text + entries("remote_port: 7, <<: *a")).endpoints == {7: "192.0.2.1:7"}
    assert said(text + entries("<<: *a, networks: [vnet2]")).endpoints == {}


def test_the_values_of_a_proxy_header_have_the_types_of_the_contract() -> None:
    types = (UNIQUE_ID, OF_NETWORK, OF_NETWORK_ID, OF_BRIDGE, OF_MAC, OF_PORT, OF_HYPERVISOR)
    assert table("PROXY protocol", "type").column("type") == [f"0x{each:02X}" for each in types]
