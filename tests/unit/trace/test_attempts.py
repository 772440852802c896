"""What an attempt says, for what was seen of it."""

from __future__ import annotations

from typing import Any

from tproxy.addresses import SERVICE_ADDRESS, SERVICE_MAC
from tproxy.datapath.tracing import Told
from tproxy.model import ServiceKey
from tproxy.trace import frames
from tproxy.trace.attempt import FROM_GUEST, FROM_US, PATIENCE, TO_GUEST, TO_US, Link, Missing
from tproxy.trace.attempts import MOST_OPEN, Attempts, Place
from tproxy.trace.frames import ACK, FIN, RST, SYN, Frame
from tproxy.trace.line import FAILED, GOOD, OPEN, Line

GUEST, MAC, OTHER_MAC = "10.0.0.5", "02:00:0a:00:00:05", "02:00:0a:00:00:06"
SERVICES = frozenset({SERVICE_ADDRESS})
LINK = Link("br0", "br0b")


class Story:
    """What was seen, one thing after the other, each a millisecond later, and the lines that came of it."""

    def __init__(self, *, served: bool | None = True, untraced: str = "") -> None:
        self.lines: list[Line] = []
        self.now = 100.0
        self.link = LINK._replace(untraced=untraced)
        self.attempts = Attempts(self.lines.append, lambda bridge, key: served)

    def see(self, where: str, frame: Frame, port: str = "vnet0") -> Story:
        self.now += 0.001
        place = Place(self.link, "br0b" if where in (TO_US, FROM_US) else port, where)
        self.attempts.see(place, frame, self.now, SERVICES)
        return self

    def drop(self, frame: Frame, reason: str) -> Story:
        self.now += 0.001
        self.attempts.drop("br0", frame, reason, self.now, SERVICES)
        return self

    def hear(self, what: str, **more: Any) -> Story:
        self.now += 0.001
        protocol = more.pop("protocol", "tcp")
        guest, service = (GUEST, 40000), (SERVICE_ADDRESS, 5030)
        self.attempts.hear(Told(self.now, what, "ab-1", "br0", protocol, guest, service, more))
        return self

    def wait(self, seconds: float = PATIENCE + 1, missing: Missing = Missing()) -> Story:  # noqa: B008
        self.now += seconds
        self.attempts.look(self.now, missing)
        return self

    @property
    def events(self) -> list[str]:
        return [each.event for each in self.lines]

    @property
    def end(self) -> tuple[str, str]:
        (last,) = [each for each in self.lines if each.outcome]
        return last.outcome, last.text


def tcp(flags: int = SYN, *, vlan: int = 0, port: int = 40000) -> Frame:
    return Frame(
        *(frames.TCP, GUEST, SERVICE_ADDRESS, (port, 5030), flags),
        source_mac=MAC,
        target_mac=SERVICE_MAC,
        vlan=vlan,
    )


def back(flags: int = SYN | ACK) -> Frame:
    return Frame(
        *(frames.TCP, SERVICE_ADDRESS, GUEST, (5030, 40000), flags),
        source_mac=SERVICE_MAC,
        target_mac=MAC,
    )


def arp(source: str, target: str, *, asks: bool, mac: str = MAC) -> Frame:
    return Frame(frames.ARP, source, target, asks=asks, claimed=mac, source_mac=mac)


def accepted(story: Story) -> Story:
    story.see(FROM_GUEST, tcp()).see(TO_US, tcp()).see(FROM_US, back()).see(TO_GUEST, back())
    return story.hear("taken").hear("dials", endpoint="10.9.8.7:80")


def test_a_connection_that_does_what_it_should() -> None:
    story = accepted(Story()).hear("connected", endpoint="10.9.8.7:80")
    story.see(FROM_GUEST, tcp(FIN | ACK)).see(FROM_US, back(FIN | ACK))
    story.hear(
        "ended", how="finished", outcome="finished", to_endpoint=10, to_guest=20, endpoint="10.9.8.7:80"
    )
    story.wait()
    assert story.events == [
        *("syn", "reached", "answered", "delivered", "taken", "dials", "connected"),
        *("fin-guest", "fin-service", "end"),
    ]
    assert story.end == (
        GOOD,
        "ended in good order: 10 bytes to the endpoint, 20 to the guest; the guest ended first",
    )


def test_the_time_of_a_line_is_that_since_the_first_frame() -> None:
    story = accepted(Story())
    assert [round(each.seconds, 3) for each in story.lines] == [0.0, 0.001, 0.002, 0.003, 0.004, 0.005]


def test_an_endpoint_that_refuses() -> None:
    story = (
        accepted(Story()).hear("dial-failed", endpoint="10.9.8.7:80", why="refused").see(FROM_US, back(RST))
    )
    story.hear(
        "ended", how="refused", outcome="dial_failed", endpoint="10.9.8.7:80", to_endpoint=0, to_guest=0
    )
    assert story.wait().end == (FAILED, "endpoint 10.9.8.7:80 refused, and the guest was reset")


def test_a_connection_that_a_limit_refused() -> None:
    story = Story().see(FROM_GUEST, tcp()).see(TO_US, tcp()).see(FROM_US, back())
    story.hear("limited", cause="max_connections_per_guest", why=": 16 are open").wait()
    assert story.end == (FAILED, "reset by max_connections_per_guest: 16 are open")


def test_a_port_without_a_service() -> None:
    story = Story(served=False).see(FROM_GUEST, tcp()).see(TO_US, tcp()).see(FROM_US, back(RST | ACK)).wait()
    assert story.end == (FAILED, "refused: br0 has no service at 169.254.16.9:5030")


def test_a_service_whose_port_does_not_listen() -> None:
    story = Story().see(FROM_GUEST, tcp()).see(TO_US, tcp()).see(FROM_US, back(RST | ACK)).wait()
    assert story.end[1].endswith("nothing listens at 169.254.16.9:5030, although br0 has that service")


def test_a_reset_after_the_handshake_that_no_worker_knows_of_is_no_refusal() -> None:
    story = (
        Story().see(FROM_GUEST, tcp()).see(TO_US, tcp()).see(FROM_US, back()).see(FROM_US, back(RST)).wait()
    )
    assert story.end[1].startswith("reset before a worker took it")


def test_a_frame_that_the_guards_drop() -> None:
    story = Story().see(FROM_GUEST, tcp()).drop(tcp(), "by the guards (too many)").wait()
    assert story.events == ["syn", "dropped", "end"]
    assert story.end == (FAILED, "no answer: dropped by the guards (too many)")


def test_a_frame_that_vanishes_is_not_said_to_be_dropped_by_anybody() -> None:
    story = Story().see(FROM_GUEST, tcp()).wait()
    assert story.end == (
        FAILED,
        "no answer: it did not reach br0b, and no rule of nftables was seen to drop it",
    )


def test_where_rules_are_not_traced_the_line_says_that_the_rule_is_not_known() -> None:
    story = Story(untraced="rules cannot be traced: no such flag").see(FROM_GUEST, tcp()).wait()
    assert "by which rule is not known (rules cannot be traced: no such flag)" in story.end[1]


def test_a_syn_that_the_namespace_leaves_unanswered() -> None:
    story = Story().see(FROM_GUEST, tcp()).see(TO_US, tcp()).wait()
    assert story.end[1] == "no answer: the SYN reached br0b, and the namespace did not answer it"


def test_a_syn_in_a_vlan() -> None:
    story = Story().see(FROM_GUEST, tcp(vlan=5)).see(TO_US, tcp(vlan=5)).wait()
    assert story.end[1] == "no answer: the SYN reached br0b in VLAN 5, and the namespace is in none"


def test_a_guest_that_does_not_answer_arp() -> None:
    story = Story().see(FROM_GUEST, tcp()).see(TO_US, tcp())
    story.see(FROM_US, arp(SERVICE_ADDRESS, GUEST, asks=True, mac=SERVICE_MAC)).wait()
    assert story.events == ["syn", "reached", "asked", "end"]
    assert story.end[1] == "no answer: the namespace asked who has 10.0.0.5, and nobody told"


def test_an_answer_that_does_not_reach_the_guest() -> None:
    story = Story().see(FROM_GUEST, tcp()).see(TO_US, tcp()).see(FROM_US, back())
    story.drop(back(), "by another program's nftables: table bridge x, chain c, handle 3").wait()
    assert story.end[1].startswith("the answer was dropped by another program's nftables")


def test_a_copy_of_an_answer_at_another_port_is_not_taken_for_the_guests() -> None:
    story = Story().see(FROM_GUEST, tcp()).see(TO_US, tcp()).see(FROM_US, back())
    assert "delivered" not in story.see(TO_GUEST, back(), port="vnet1").events


def test_what_is_repeated_is_counted_and_not_endless() -> None:
    story = Story()
    for _ in range(200):
        story.see(FROM_GUEST, tcp())
    assert len(story.lines) == 40
    assert story.events[-1] == "more"


def test_a_guest_that_only_repeats_itself_has_no_more_time() -> None:
    story = Story()
    for _ in range(5):
        story.see(FROM_GUEST, tcp()).wait(1)
    assert story.events == ["syn", "syn-again", "syn-again", "end", "syn", "syn-again"]


def test_when_news_was_lost_no_verdict_is_given() -> None:
    story = Story().see(FROM_GUEST, tcp()).wait(missing=Missing("7 frames were left out"))
    assert story.end == (OPEN, "how it went on is not known: 7 frames were left out")


def test_without_workers_what_the_bridge_showed_still_counts() -> None:
    story = Story().see(FROM_GUEST, tcp()).wait(missing=Missing(workers="no daemon"))
    assert story.end[0] == FAILED
    story = Story().see(FROM_GUEST, tcp()).see(TO_US, tcp()).see(FROM_US, back())
    assert story.wait(missing=Missing(workers="no daemon")).end[0] == OPEN


def test_a_port_that_goes_is_told_in_each_open_attempt() -> None:
    story = accepted(Story())
    story.attempts.gone("br0", "vnet0", story.now)
    assert story.lines[-1].text == "port vnet0 has left br0"


def test_what_is_open_at_the_end_of_the_trace_is_neither_good_nor_failed() -> None:
    story = accepted(Story())
    story.attempts.cut()
    assert story.end == (OPEN, "the trace ended before this did")
    assert (story.attempts.ended, story.attempts.failed) == (0, 0)


def question() -> Frame:
    return arp(GUEST, SERVICE_ADDRESS, asks=True)


def answer(mac: str = SERVICE_MAC) -> Frame:
    return arp(SERVICE_ADDRESS, GUEST, asks=False, mac=mac)


def test_a_question_for_the_service_address() -> None:
    story = Story().see(FROM_GUEST, question()).see(TO_US, question()).see(FROM_US, answer())
    story.see(TO_GUEST, answer()).wait()
    assert story.events == ["asks", "reached", "answered", "end"]
    assert story.end == (GOOD, f"169.254.16.9 is at {SERVICE_MAC}; the answer went to port vnet0")
    assert story.attempts.ended == 0, "the guest goes on from there"


def test_an_answer_of_another_machine() -> None:
    story = Story().see(FROM_GUEST, question()).see(TO_GUEST, answer(OTHER_MAC)).wait()
    assert story.end == (FAILED, f"another machine, {OTHER_MAC}, says that it is 169.254.16.9")


def test_a_question_that_is_repeated_and_not_answered() -> None:
    story = Story().see(FROM_GUEST, question()).see(FROM_GUEST, question()).wait()
    assert story.events == ["asks", "asks-again", "end"]
    assert story.end[0] == FAILED
    assert story.attempts.ended == 1


def test_a_claim_to_be_the_service() -> None:
    claim = answer(OTHER_MAC)
    story = Story().see(FROM_GUEST, claim).drop(claim, "by the guards (it claims)").wait()
    assert story.events == ["claims", "dropped", "end"]
    assert story.end == (FAILED, "dropped by the guards (it claims)")


def udp() -> Frame:
    return Frame(frames.UDP, GUEST, SERVICE_ADDRESS, (40000, 5030), source_mac=MAC)


def told() -> Frame:
    return Frame(frames.UDP, SERVICE_ADDRESS, GUEST, (5030, 40000), source_mac=SERVICE_MAC)


def test_a_datagram_that_is_answered() -> None:
    story = (
        Story()
        .see(FROM_GUEST, udp())
        .see(TO_US, udp())
        .hear("session", endpoint="10.9.8.7:53", protocol="udp")
    )
    story.hear("endpoint-answered", endpoint="10.9.8.7:53", protocol="udp").see(FROM_US, told())
    story.see(TO_GUEST, told()).wait()
    assert story.events == ["datagram", "reached", "session", "endpoint-answered", "answered", "end"]
    assert story.end[0] == GOOD


def test_a_datagram_that_nobody_has_to_answer_is_no_failure() -> None:
    story = (
        Story()
        .see(FROM_GUEST, udp())
        .see(TO_US, udp())
        .hear("session", endpoint="10.9.8.7:53", protocol="udp")
    )
    assert story.wait().end == (GOOD, "sent to endpoint 10.9.8.7:53, which has not answered within 3 s")


def test_a_datagram_to_a_port_without_a_service() -> None:
    story = (
        Story(served=False).see(FROM_GUEST, udp()).see(TO_US, udp()).drop(udp(), "by the wall (none)").wait()
    )
    assert story.end == (
        FAILED,
        "no answer: dropped by the wall (none): br0 has no UDP service at 169.254.16.9:5030",
    )


def test_a_datagram_that_is_refused() -> None:
    refusal = Frame(frames.REFUSAL, SERVICE_ADDRESS, GUEST, (5030, 40000), source_mac=SERVICE_MAC)
    story = Story(served=False).see(FROM_GUEST, udp()).see(TO_US, udp()).see(FROM_US, refusal).wait()
    assert story.end == (FAILED, "refused by ICMP: br0 has no UDP service at 169.254.16.9:5030")


def test_a_udp_client_that_goes_on_is_told_of_once() -> None:
    story = (
        Story().see(FROM_GUEST, udp()).see(TO_US, udp()).hear("session", endpoint="x", protocol="udp").wait()
    )
    before = len(story.lines)
    story.see(FROM_GUEST, udp()).wait()
    assert len(story.lines) == before
    story.wait(60).see(FROM_GUEST, udp())
    assert len(story.lines) > before


def test_a_flood_is_counted_and_not_shown() -> None:
    story = Story()
    for port in range(1, 2000):
        story.attempts.see(Place(LINK, "vnet0", FROM_GUEST), tcp(port=port), story.now, SERVICES)
    assert story.attempts.begun == len(story.lines) <= MOST_OPEN
    assert story.attempts.take_hidden() == 1999 - story.attempts.begun
    assert story.attempts.take_hidden() == 0


def test_frames_of_connections_that_were_there_before_begin_no_attempt() -> None:
    story = Story().see(FROM_GUEST, tcp(FIN | ACK)).see(FROM_US, back(RST)).wait()
    assert story.lines == []


def test_a_line_is_one_line_of_ascii() -> None:
    line = Line(1, 0.0012, "x", "a\nb\x1b[2Jc\u00e9")
    assert str(line) == "#1           1.2 ms  a\\nb\\x1b[2Jc\\xe9"
    assert "\\u001b" in line.as_json()


def test_the_key_of_a_service_is_that_which_the_guest_asked_for() -> None:
    asked: list[ServiceKey] = []

    def has(bridge: str, key: ServiceKey) -> bool:
        asked.append(key)
        return False

    attempts = Attempts(lambda line: None, has)
    place = Place(LINK, "vnet0", FROM_GUEST)
    attempts.see(place, tcp(), 1.0, SERVICES)
    attempts.see(place._replace(where=FROM_US), back(RST), 1.1, SERVICES)
    attempts.look(2.0)
    assert asked == [ServiceKey(5030)]
