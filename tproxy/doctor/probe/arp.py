"""Asks for an address by ARP (RFC 826) and hears all answers: two of them mean that two machines claim it."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

_ETH_P_ARP = 0x0806
_FRAME = struct.Struct("!6s6sHHHBBH6s4s6s4s")
_REQUEST, _REPLY = 1, 2
_BROADCAST = b"\xff" * 6

_TRIES, _APART = 3, 1.0  # seconds, as Linux does (mcast_solicit, retrans_time_ms)
# Seconds in which a second answer counts: whoever else answers is on the same wire.
_OTHERS = 0.1


class Answers(NamedTuple):
    """The MACs that answered, the first one first, and after how many seconds it did."""

    macs: tuple[str, ...]
    seconds: float


def request(own_mac: str, own: str, wanted: str) -> bytes:
    """The frame that asks who has ``wanted``, from ``own``."""
    mac = bytes.fromhex(own_mac.replace(":", ""))
    addresses = socket.inet_aton(own), socket.inet_aton(wanted)
    return _FRAME.pack(
        *(_BROADCAST, mac, _ETH_P_ARP),
        *(1, 0x0800, 6, 4, _REQUEST, mac, addresses[0], bytes(6), addresses[1]),
    )


def answerer(frame: bytes, own: str, wanted: str) -> str:
    """The MAC that the frame says ``wanted`` is at, in answer to ``own``; "" for any other frame."""
    if len(frame) < _FRAME.size:
        return ""
    *_, kind, mac, sender, _, target = _FRAME.unpack_from(frame)
    fits = kind == _REPLY and sender == socket.inet_aton(wanted) and target == socket.inet_aton(own)
    return mac.hex(":") if fits else ""


def ask(link: str, own_mac: str, own: str, wanted: str) -> Answers:
    """Ask on a link of this thread's namespace, up to three times. Raises OSError."""
    question = request(own_mac, own, wanted)
    return question_and_answers(link, _ETH_P_ARP, question, lambda frame: answerer(frame, own, wanted))


def question_and_answers(
    link: str, protocol: int, question: bytes, answerer: Callable[[bytes], str]
) -> Answers:
    """Send a frame up to three times, until an answer comes, and hear all answers. Raises OSError.

    ``answerer`` returns the MAC that a frame of this ``protocol`` names, or "" for one that is no answer.
    """
    began = time.monotonic()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol)) as sock:
        sock.bind((link, protocol))
        for attempt in range(_TRIES):
            sock.send(question)
            first = _hear(sock, answerer, began + (attempt + 1) * _APART)
            if first:
                seconds = time.monotonic() - began
                macs = [first]
                while another := _hear(sock, answerer, began + seconds + _OTHERS):
                    macs.append(another)
                return Answers(tuple(dict.fromkeys(macs)), seconds)
    return Answers((), time.monotonic() - began)


def _hear(sock: socket.SocketType, answerer: Callable[[bytes], str], until: float) -> str:
    while (left := until - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            found = answerer(sock.recv(2048))
        except TimeoutError:
            break
        if found:
            return found
    return ""
