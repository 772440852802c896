"""The packets of a probe: what it asks, and which answers it takes."""

from __future__ import annotations

import socket
import struct

from tproxy.doctor.probe import arp, ping

OWN_MAC, OWN, WANTED, THEIR_MAC = "02:74:70:00:00:05", "169.254.7.8", "169.254.16.9", "06:00:a9:fe:10:09"


def reply(sender: str = WANTED, target: str = OWN, kind: int = 2) -> bytes:
    ours, theirs = (bytes.fromhex(each.replace(":", "")) for each in (OWN_MAC, THEIR_MAC))
    head = ours + theirs + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, kind)
    return head + theirs + socket.inet_aton(sender) + ours + socket.inet_aton(target)


def test_the_question_is_an_arp_request_to_everybody() -> None:
    frame = arp.request(OWN_MAC, OWN, WANTED)
    assert len(frame) == 42
    assert frame[:6] == b"\xff" * 6
    assert frame[12:22] == bytes.fromhex("08060001080006040001")
    assert frame[22:32] == bytes.fromhex(OWN_MAC.replace(":", "")) + socket.inet_aton(OWN)
    assert frame[38:] == socket.inet_aton(WANTED)


def test_only_an_answer_to_the_question_counts() -> None:
    assert arp.answerer(reply(), OWN, WANTED) == THEIR_MAC
    assert arp.answerer(reply() + bytes(18), OWN, WANTED) == THEIR_MAC, "frames are padded to 60 bytes"
    for other in (reply(sender="10.0.0.1"), reply(target="10.0.0.2"), reply(kind=1), reply()[:30], b""):
        assert arp.answerer(other, OWN, WANTED) == ""


def test_a_ping_is_answered_by_its_own_echo_alone() -> None:
    mark = bytes(range(8))
    asked = ping.echo(0x1234, mark)
    assert sum(struct.unpack("!8H", asked)) % 0xFFFF == 0, "RFC 1071: the sum with its checksum is 0"
    head = b"\x45" + bytes(19)
    answer = head + b"\0" + asked[1:]
    assert ping.is_answer(answer, 0x1234, mark)
    for other in (head + asked, answer[:-1], head + b"\0" + ping.echo(0x1235, mark)[1:], head, b""):
        assert not ping.is_answer(other, 0x1234, mark)
