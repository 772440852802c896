"""Metrics of UDP sessions, and the network of services whose bridge several networks share.

One host for all tests, in any order: each looks at what grows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.netns.metrics.scraped import ENDPOINT, Key, Samples, Scraped, key
from tests.netns.metrics.scraped import service as of_service
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor
from tproxy.metrics import declared

# Networks with different services at one port, and one service that both have.
SHARED = f"""\
tproxy:
- {{service_port: 80, name: web, remote_addr: {ENDPOINT}, remote_port: 8080, networks: [blue]}}
- {{service_port: 80, name: web, remote_addr: {ENDPOINT}, remote_port: 8080, networks: [red],
   connect_timeout: 4}}
- {{service_port: 82, name: both, remote_addr: {ENDPOINT}, remote_port: 8080}}
- {{service_port: 53, name: dns, remote_addr: {ENDPOINT}, remote_port: 5353, networks: [red], protocol: udp}}
"""
SESSIONS, ENDED = "tproxy_udp_sessions_total", "tproxy_udp_sessions_ended_total"
KEPT, SHORT, REFUSED = "kept:5353/udp", "short:5354/udp", "5355/udp"


@pytest.fixture(scope="module")
def host(real_kernel: None) -> Iterator[Scraped]:
    with Hypervisor() as hypervisor:
        scraped = Scraped(hypervisor)
        scraped.serve()
        yield scraped


def grown(host: Scraped, before: Samples, **wanted: float) -> Samples:
    """Wait until each series has grown by as much; names are those of series of the service KEPT."""
    names = {f"tproxy_udp_{name}": value for name, value in wanted.items()}
    for _ in eventually():
        now = host.scrape()
        if all(now[_of(name)] - before[_of(name)] == value for name, value in names.items()):
            return now
    raise AssertionError


def _of(name: str) -> Key:
    """``datagrams_total__to_guest`` is the series of that direction, and so with outcomes."""
    stem, _, last = name.partition("__")
    if not last:
        return of_service(stem, KEPT)
    label = "outcome" if stem == ENDED else "direction"
    return of_service(stem, KEPT, **{label: last})


def test_a_session_is_counted_with_its_datagrams_and_bytes(host: Scraped) -> None:
    before = host.scrape()
    answers = host.send(5353, (0, "hello"), (0, "hello"), (1, "hey"))
    assert len(answers) == 3
    grown(
        host,
        before,
        sessions_total=2,
        datagrams_total__to_endpoint=3,
        datagrams_total__to_guest=3,
        transferred_bytes_total__to_endpoint=13,
        transferred_bytes_total__to_guest=sum(map(len, answers)),
    )
    assert of_service("tproxy_connections_open", KEPT) not in before


def test_sessions_that_make_room_for_others_show_as_evicted(host: Scraped) -> None:
    for _ in eventually():  # a guest's sessions with all UDP services count together
        before = host.scrape()
        if not any(before[of_service("tproxy_udp_sessions_open", name)] for name in (SHORT, REFUSED)):
            break
    host.send(5353, *((number, "x") for number in range(5)))  # one guest may have three
    open_ = before[of_service("tproxy_udp_sessions_open", KEPT)]
    now = grown(host, before, sessions_total=5, sessions_ended_total__evicted=open_ + 2)
    assert now[of_service("tproxy_udp_sessions_open", KEPT)] == 3
    limited = of_service("tproxy_connections_limited_total", KEPT, limit="max_connections_per_guest")
    assert now[limited] - before[limited] == open_ + 2


def test_a_session_that_was_silent_shows_as_finished(host: Scraped) -> None:
    before = host.scrape()
    host.send(5354, (0, "x"))
    finished = of_service(ENDED, SHORT, outcome="finished")
    for _ in eventually():
        now = host.scrape()
        if now[finished] - before[finished] == 1:
            break
    assert now[of_service("tproxy_udp_sessions_open", SHORT)] == 0


def test_an_endpoint_that_refuses_datagrams_shows_in_outcome_reason_and_state(host: Scraped) -> None:
    before = host.scrape()
    failed = of_service(ENDED, REFUSED, outcome="dial_failed")
    dials = of_service("tproxy_dial_failures_total", REFUSED, reason="refused")
    for _ in eventually():
        host.send(5355, (0, "x"), seconds=0.1)
        now = host.scrape()
        if now[failed] > before[failed] and now[dials] > before[dials]:
            break
    assert now[of_service("tproxy_endpoint_up", REFUSED, endpoint=f"{ENDPOINT}:1/udp")] == 0


def test_open_and_ended_sessions_make_all_sessions(host: Scraped) -> None:
    for _ in eventually():
        now = host.scrape()
        if all(
            now[of_service(SESSIONS, name)]
            == now[of_service("tproxy_udp_sessions_open", name)]
            + sum(now[of_service(ENDED, name, outcome=each)] for each in declared.SESSIONS_ENDED.values)
            for name in (KEPT, SHORT, REFUSED)
        ):
            break


def test_sessions_of_a_lost_worker_have_ended(host: Scraped) -> None:
    host.send(5353, (0, "x"))
    before = host.scrape()
    assert before[of_service("tproxy_udp_sessions_open", KEPT)] > 0
    host.kill(host.worker())
    lost = of_service(ENDED, KEPT, outcome="worker_lost")
    for _ in eventually():
        now = host.scrape()
        if now[lost] > before[lost]:
            break
    for _ in eventually():  # the next worker serves
        if host.send(5353, (0, "x"), seconds=1.0)[0] != "silent":
            break
    after = host.scrape()
    assert after[of_service(SESSIONS, KEPT)] > before[of_service(SESSIONS, KEPT)]
    assert after[lost] == now[lost]


def test_services_of_a_bridge_that_networks_share_have_the_label_of_their_network(host: Scraped) -> None:
    config = host.host.write("/run/shared.yaml", SHARED)
    host.host.add_bridge("br1")
    guests = [host.host.add_guest(name, "br1") for name in ("one", "two")]
    up = ("hook", "up", "--bridge", "br1", "--config", config)

    def join(number: int, network: str) -> None:
        guest = guests[number]
        (link,) = json.loads(guest.run("ip", "-j", "link", "show", "eth0").stdout)
        host.host.tproxy(*up, "--network", network, "--mac", link["address"], "--port", guest.port)

    def listening(network: str, service: str) -> Key:
        return key("tproxy_service_listening", bridge="br1", network=network, service=service)

    def of_br1() -> set[Key]:
        wanted = ("tproxy_service_listening", "bridge", "br1")
        return {each for each in host.scrape() if each[0] == wanted[0] and wanted[1:] in each[1]}

    join(0, "blue")
    alone = {listening("blue", "web:80"), listening("blue", "both:82")}
    for _ in eventually():
        if of_br1() == alone:
            break
    join(1, "red")
    shared = {listening(name, "web:80") for name in ("blue", "red")}
    for _ in eventually():
        if of_br1() == {*shared, listening("", "both:82"), listening("red", "dns:53/udp")}:
            break
    assert host.scrape()[key("tproxy_relay_up", bridge="br1", network="")] == 1
    answered = key(
        "tproxy_connections_ended_total", bridge="br1", network="red", service="web:80", outcome="finished"
    )
    for _ in eventually():
        if guests[1].get("169.254.16.9", 80, 60) == "one":
            break
    for _ in eventually():
        if host.scrape()[answered] >= 1:
            break
