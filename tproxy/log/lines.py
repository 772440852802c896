"""A line of the log as text or as JSON, and as an entry of systemd's journal. Pure.

Relays and workers carry this module, so it imports nothing large; they could not import ``json`` later.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

Fields = Mapping[str, object]

# Priorities of syslog(3) by the levels of ``logging``.
_PRIORITIES = ((40, 3), (30, 4), (20, 6), (0, 7))

_NAMES = ((40, "ERROR"), (30, "WARNING"), (20, "INFO"), (0, "DEBUG"))


def name_of(level: int) -> str:
    """Return the name of a level of ``logging``."""
    return next(name for least, name in _NAMES if level >= least)


def as_text(now: float, pid: int, level: int, message: str) -> str:
    """Return the line, without an end. ``now`` is in seconds since the epoch, and shown as local time."""
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now))
    return f"{when}.{int(now % 1 * 1000):03} {pid} {name_of(level)} {message}"


def as_json(now: float, pid: int, level: int, message: str, fields: Fields) -> str:
    """Return the line as one JSON object, without an end; the time is in UTC (RFC 3339)."""
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    all_fields = {
        "time": f"{when}.{int(now % 1 * 1000):03}Z",
        "pid": pid,
        "level": name_of(level),
        "message": message,
        **fields,
    }
    return json_object(all_fields)


def json_object(fields: Fields) -> str:
    """Return a JSON object of ASCII characters; values that JSON has no kind for become texts."""
    return "{" + ", ".join(f"{_quoted(name)}: {_value(each)}" for name, each in fields.items()) + "}"


def as_entry(level: int, message: str, fields: Fields) -> bytes:
    """Return a datagram for the journal (systemd's "Native Journal Protocol").

    The journal itself notes time, process and unit.
    """
    priority = next(number for least, number in _PRIORITIES if level >= least)
    entry = _field("MESSAGE", message) + _field("PRIORITY", str(priority))
    entry += _field("SYSLOG_IDENTIFIER", "tproxy")
    for name, value in fields.items():
        entry += _field(f"TPROXY_{name.upper()}", str(value))
    return entry


def fields_in(message: str, words: Sequence[object]) -> dict[str, object]:
    """Return the bridge, where a message begins with it."""
    return {"bridge": words[0]} if words and message.startswith(("bridge %s", "bridge=%s")) else {}


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"


def _value(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else _quoted(str(value))


def _quoted(text: str) -> str:
    """Return a JSON string of ASCII characters only."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join(map(_character, text)) + '"'


def _character(one: str) -> str:
    if " " <= one <= "~" and one not in '"\\':
        return one
    code = ord(one)
    if code > 0xFFFF:  # as a pair of surrogates (RFC 8259, 7)
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"
