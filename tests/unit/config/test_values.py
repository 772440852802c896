"""The values that the configuration may hold. Nothing is guessed: an entry with another value is skipped."""

from __future__ import annotations

import logging
import re
from unittest import mock

import pytest

from tests.keys import keys
from tests.unit.config.files import VNET1, Load, entry, said, services
from tproxy.config.resolver import services_for
from tproxy.model import DEFAULT_CONNECT_TIMEOUT, Endpoint, Network, Service, ServiceKey

# Ports


def test_service_port_is_remote_port_when_left_out(loaded: Load) -> None:
    for content in (entry(remote_port="5030"), entry(remote_port="5030", service_port="~")):
        assert services(loaded(content))[0] == {
            ServiceKey(5030): Service(ServiceKey(5030), Endpoint("10.0.0.1", 5030))
        }


@pytest.mark.parametrize("port", ["1", "65535", "'5030'", '"5030"', "!!str 5030"])
def test_a_port_is_a_number_or_its_digits_in_quotes(loaded: Load, port: str) -> None:
    found = loaded(entry(service_port=port))
    assert not said(found)
    assert list(services(found)[0]) == [ServiceKey(int(re.sub(r"\D", "", port)))]


@pytest.mark.parametrize("key", ["service_port", "remote_port"])
@pytest.mark.parametrize(
    "port",
    [
        "0",
        "-1",
        "65536",
        "9" * 5000,
        "true",
        "yes",
        "0x50",
        "0120",
        "'0120'",
        "5_030",
        "1:20",
        "80.0",
        "8e1",
        "http",
        "''",
        "' 80'",
        '"80\\n"',
        "'٨٠'",
        "[80]",
        "{}",
        "!!int a",
        "!port 80",
        "2026-01-01",
    ],
)
def test_an_entry_with_any_other_port_is_skipped(loaded: Load, key: str, port: str) -> None:
    found = loaded(entry(**{key: port}))
    assert not found.entries
    (warning,) = said(found)
    assert f"tproxy.yaml:1: entry 1: {key} " in warning
    assert warning.endswith("is not a port, 1 to 65535: entry skipped")


# Options


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        ("1", 1.0),
        ("0.5", 0.5),
        ("'2.5'", 2.5),
        ("300", 300.0),
        ("0.001", 0.001),
        ("~", DEFAULT_CONNECT_TIMEOUT),
    ],
)
def test_connect_timeout_is_in_seconds(loaded: Load, timeout: str, seconds: float) -> None:
    found = loaded(entry(connect_timeout=timeout))
    assert not said(found)
    assert services(found)[0][ServiceKey(80)].connect_timeout == seconds


@pytest.mark.parametrize(
    "timeout",
    ["0", "0.0", "-1", "300.001", "301", ".inf", ".nan", "1e2", "yes", "soon", "010", "1:30", "[1]", "''"],
)
def test_an_entry_with_any_other_connect_timeout_is_skipped(loaded: Load, timeout: str) -> None:
    found = loaded(entry(connect_timeout=timeout))
    assert not found.entries
    assert "entry 1: connect_timeout" in said(found)[0]


@pytest.mark.parametrize("name", ["''", "'" + "n" * 33 + "'", '"a\\nb"', "'ü'", "[a]", "1", '"\\e[31m"'])
def test_an_entry_whose_name_cannot_be_in_logs_and_maps_is_skipped(loaded: Load, name: str) -> None:
    found = loaded(entry(name=name))
    assert not found.entries
    assert "entry 1: name" in said(found)[0]


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        "10.1",
        "'10.1'",
        "10",
        "'167772161'",
        "0x7f.1",
        "0x7f000001",
        "127.0x1",
        "010.0.0.1",
        "1.2.3.4.",
        "1.2.3.256",
        "1.2.3.4.5",
        "'::1::'",
        "'fe80::1%eth0'",
        "'10.0.0.1 '",
        '"10.0.0.1\\n"',
        '"10.0.0.1\\0"',
        r'"\uff11.2.3.4"',
        "10.0.0.1:80",
        "'[10.0.0.1]'",
        "bücher.example",
        "a..b",
        "'.'",
        "'a b'",
        "a/b",
        "a" * 64 + ".example",
        "a." * 127 + "a",
        "yes",
        "''",
        "[10.1]",
        "http://one.example",
    ],
)
def test_an_entry_with_an_ambiguous_remote_addr_is_skipped(loaded: Load, address: str) -> None:
    found = loaded(entry(remote_addr=address))
    assert not found.entries
    assert "entry 1: remote_addr " in said(found)[0]
    assert "is not an IP address or a host name: entry skipped" in said(found)[0]


SOCKET = "unix:/run/x.sock"


def one_entry(text: str) -> str:
    return f"tproxy: [{{{text}}}]"


@pytest.mark.parametrize(
    "text",
    [
        f"remote_addr: {SOCKET}, service_port: 80",
        f"remote_addr: [{SOCKET}], service_port: 80, remote_port: ~",
        f"remote_addr: {SOCKET}, remote_port: 80",
        f"remote_addr: {SOCKET}, service_port: 80, remote_port: 8080, protocol: tcp",
    ],
)
def test_an_entry_of_unix_sockets_needs_no_remote_port(loaded: Load, text: str) -> None:
    found = loaded(one_entry(text))
    assert not said(found)
    service = Service(ServiceKey(80), Endpoint(SOCKET, 0))
    assert services(found)[0] == {ServiceKey(80): service}


def test_unix_sockets_and_addresses_are_tried_in_the_order_of_the_list(loaded: Load) -> None:
    found = loaded(one_entry(f"remote_addr: [{SOCKET}, one.example, fd00::1], remote_port: 80"))
    (service,) = services(found)[0].values()
    assert service.endpoint == Endpoint("10.0.0.2", 80)
    assert service.leads_to == f"{SOCKET}, 10.0.0.2:80, 10.0.0.10:80, [fd00::1]:80"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"remote_addr: {SOCKET}", "service_port is missing"),
        (f"remote_addr: [{SOCKET}, 10.0.0.1], service_port: 80", "remote_port is missing"),
        (
            f"remote_addr: [10.0.0.1, {SOCKET}], remote_port: 53, protocol: [tcp, udp]",
            f"protocol udp cannot lead to the UNIX socket remote_addr '{SOCKET}'",
        ),
        (
            "remote_addr: unix:run/x.sock, service_port: 80",
            "remote_addr 'unix:run/x.sock' "
            "is not the absolute path of a UNIX socket, such as unix:/run/x.sock",
        ),
    ],
)
def test_an_entry_with_a_unix_socket_that_cannot_be_used_is_skipped_with_one_line(
    loaded: Load, text: str, problem: str
) -> None:
    found = loaded(one_entry(text))
    assert not found.entries
    (line,) = said(found)
    assert line.endswith(f":1: entry 1: {problem}: entry skipped")


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "255.255.255.255", "224.0.0.1", "239.255.255.255", "169.254.16.9"]
)
def test_addresses_that_cannot_be_an_endpoint_are_refused(loaded: Load, address: str) -> None:
    found = loaded(entry(remote_addr=address))
    assert not found.entries
    assert f"remote_addr '{address}' is " in said(found)[0]


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "223.255.255.255", "240.0.0.1"])
def test_a_dotted_address_needs_no_resolver(loaded: Load, address: str) -> None:
    resolver = mock.Mock()
    chosen, warnings = services_for(loaded(entry(remote_addr=address)), VNET1, resolver)
    assert chosen[ServiceKey(80)].endpoint == Endpoint(address, 80)
    assert not warnings
    resolver.assert_not_called()


@pytest.mark.parametrize(
    "name", ["localhost", "Host-1.example.org", "a_b", "example.org.", "1and1.example", "0xyz"]
)
def test_host_names_are_left_to_the_resolver(loaded: Load, name: str) -> None:
    chosen, warnings = services_for(loaded(entry(remote_addr=name)), VNET1, lambda asked: ["10.0.0.5"])
    assert chosen[ServiceKey(80)].endpoint == Endpoint("10.0.0.5", 80)
    assert not warnings


# Networks


@pytest.mark.parametrize(
    "networks", ["0", "'0'", "[0]", "['0']", "[1, 0]", "storage", "[9, 'storage']", "!!str 0"]
)
def test_a_network_matches_by_name_or_id(loaded: Load, networks: str) -> None:
    found = loaded(entry(networks=networks))
    assert not said(found)
    assert services(found, Network("storage", "0"))[0].keys() == {*keys(80)}
    assert not services(found, Network("other", "5"))[0]


@pytest.mark.parametrize("networks", ["", "~", "[]", "''"])
def test_missing_or_empty_networks_are_every_network(loaded: Load, networks: str) -> None:
    found = loaded(entry(networks=networks))
    assert not said(found)
    for network in (VNET1, Network()):
        assert services(found, network)[0].keys() == {*keys(80)}


@pytest.mark.parametrize(
    "network",
    [
        "0123",
        "1_000",
        "0x10",
        "1:30",
        "-1",
        "+1",
        "yes",
        "on",
        "1.5",
        "1.0e+3",
        "~",
        "''",
        "2026-01-01",
        "{}",
        "[a]",
    ],
)
def test_an_entry_with_a_network_that_yaml_reads_as_something_else_is_skipped(
    loaded: Load, network: str
) -> None:
    found = loaded(entry(networks=f"[vnet1, {network}]"))
    assert not found.entries
    (warning,) = said(found)
    assert "entry 1: networks " in warning
    assert "is not clearly a name or an id: put a name in quotes: entry skipped" in warning


@pytest.mark.parametrize("network", ["0123", "1_000", "yes", "1.5", "2026-01-01"])
def test_a_quoted_network_is_taken_as_it_is_written(loaded: Load, network: str) -> None:
    found = loaded(entry(networks=f"'{network}'"))
    assert services(found, Network(network))[0].keys() == {*keys(80)}


def test_an_entry_whose_networks_are_a_mapping_is_skipped(loaded: Load) -> None:
    found = loaded(entry(networks="{vnet1: 0}"))
    assert not found.entries
    assert "networks (a mapping) is not a list of names or ids" in said(found)[0]


# Log level


@pytest.mark.parametrize(
    ("level", "meaning"),
    [
        ("0", logging.ERROR),
        ("1", logging.WARNING),
        ("2", logging.INFO),
        ("'3'", logging.DEBUG),
        ("~", logging.INFO),
    ],
)
def test_the_log_level_goes_from_error_to_debug(loaded: Load, level: str, meaning: int) -> None:
    found = loaded(f":tproxy_debug_level: {level}")
    assert found.log_level == meaning
    assert not said(found)


@pytest.mark.parametrize("level", ["4", "-1", "03", "DEBUG", "true", "[1]", "''", "2.0"])
def test_any_other_log_level_is_a_warning_and_the_default(loaded: Load, level: str) -> None:
    found = loaded(f"\ntproxy_debug_level: {level}")
    assert found.log_level == logging.INFO
    (warning,) = said(found)
    assert "tproxy.yaml:2: tproxy_debug_level " in warning


@pytest.mark.parametrize(
    ("written", "number"), [("auto", 0), ("'auto'", 0), ("1", 1), ("64", 64), ("'8'", 8), ("", 0)]
)
def test_the_number_of_workers_is_auto_or_1_to_64(loaded: Load, written: str, number: int) -> None:
    found = loaded(f":tproxy_workers: {written}\n")
    assert (found.workers, found.settings.workers, found.warnings) == (number, number, ())


@pytest.mark.parametrize(
    "written", ["0", "65", "-1", "1.5", "08", "Auto", "true", "[2]", "1_0", "99999999999"]
)
def test_a_bad_number_of_workers_leaves_the_workers_as_they_are(loaded: Load, written: str) -> None:
    found = loaded(f"tproxy_debug_level: 3\ntproxy_workers: {written}\n")
    (warning,) = found.warnings
    value = "(a list)" if written == "[2]" else repr(written)
    assert warning.at("f") == (
        f"f:2: tproxy_workers {value} is not auto, or a number of 1 to 64: it stays as it is"
    )
    assert (found.settings.workers, found.settings.log_level) == (None, logging.DEBUG)
