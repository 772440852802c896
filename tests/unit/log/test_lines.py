"""Lines of the log as text, as JSON, and as entries of the journal."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tproxy.log import lines

VALUES = st.text() | st.integers() | st.booleans()


@given(st.text(), st.dictionaries(st.text(), VALUES))
def test_any_line_as_json_is_one_line_that_a_json_parser_reads(
    message: str, fields: dict[str, object]
) -> None:
    own = {"time", "pid", "level", "message"}
    fields = {name: value for name, value in fields.items() if name not in own}
    line = lines.as_json(0.5, 7, 30, message, fields)
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.500Z",
        "pid": 7,
        "level": "WARNING",
        "message": message,
        **fields,
    }


def test_names_that_are_not_utf_8_stay_readable_json() -> None:
    line = lines.as_json(0.0, 1, 20, "bridge \udcff", {})
    assert json.loads(line)["message"] == "bridge \udcff"


def test_the_text_is_as_the_contract_says() -> None:
    text = lines.as_text(0.25, 17, 20, "bridge br0: port 5030 leads to 10.11.12.13:8080")
    assert text.endswith(".250 17 INFO bridge br0: port 5030 leads to 10.11.12.13:8080")


def test_an_entry_of_the_journal_has_a_field_a_line() -> None:
    entry = lines.as_entry(40, "no way", {"bridge": "br0", "seconds": 0.5})
    assert entry == (
        b"MESSAGE=no way\nPRIORITY=3\nSYSLOG_IDENTIFIER=tproxy\nTPROXY_BRIDGE=br0\nTPROXY_SECONDS=0.5\n"
    )


def test_a_line_end_in_a_value_makes_no_field() -> None:
    entry = lines.as_entry(20, "one\nPRIORITY=0", {})
    assert entry.startswith(b"MESSAGE\n" + (14).to_bytes(8, "little") + b"one\nPRIORITY=0\nPRIORITY=6\n")


def test_a_message_that_begins_with_a_bridge_has_it_for_a_field() -> None:
    assert lines.fields_in("bridge %s: relay lost: %s", ("br0", "x")) == {"bridge": "br0"}
    assert lines.fields_in("bridge=%s port=%d", ("br0", 1)) == {"bridge": "br0"}
    assert lines.fields_in("worker %d is lost", (7,)) == {}
    assert lines.fields_in("bridge %s", ()) == {}
