"""Documents that a host takes, and those that it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tproxy.fleet import document, judging, keys
from tproxy.fleet.document import Document, Refused
from tproxy.fleet.judging import Limits, Verdict

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> keys.SecretKey:
    return keys.create(tmp_path_factory.mktemp("keys") / "key", "test")


def made(key: keys.SecretKey, *lines: str, host: str = "node1", serial: int = 2, ends: str = "") -> Document:
    header = [f"host: {host}", f"serial: {serial}", *([f"not_after: {ends}"] if ends else [])]
    not_after = {"": 0, "2027-01-15": 1799971200, "2028-01-01": 1830297600}[ends]
    text = document.seal("\n".join([*header, *(lines or ["entries: []"])]) + "\n", not_after, key)
    return document.read(text, [key.public])


@pytest.mark.parametrize(
    ("serial", "held", "wanted"),
    [(2, 1, Verdict.ACCEPTED), (2, 0, Verdict.ACCEPTED), (2, 3, Verdict.OLDER), (2, 2, Verdict.REFUSED)],
)
def test_the_serial_decides(key: keys.SecretKey, serial: int, held: int, wanted: Verdict) -> None:
    found = made(key, serial=serial)
    assert judging.judge(found, (held, "other"), "node1", NOW)[0] is wanted


def test_the_same_document_is_no_news(key: keys.SecretKey) -> None:
    found = made(key)
    assert judging.judge(found, (2, found.text), "node1", NOW) == (Verdict.SAME, "")


def test_a_document_that_was_lost_is_taken_again_and_an_older_one_is_not(key: keys.SecretKey) -> None:
    assert judging.judge(made(key, serial=2), (2, ""), "node1", NOW)[0] is Verdict.ACCEPTED
    assert judging.judge(made(key, serial=1), (2, ""), "node1", NOW)[0] is Verdict.OLDER


def test_another_hosts_document_and_one_whose_time_is_over_are_refused(key: keys.SecretKey) -> None:
    assert judging.judge(made(key, host="node2"), (0, ""), "node1", NOW)[0] is Verdict.REFUSED
    assert judging.judge(made(key, ends="2027-01-15"), (0, ""), "node1", NOW)[0] is Verdict.REFUSED
    assert judging.judge(made(key, ends="2028-01-01"), (0, ""), "node1", NOW)[0] is Verdict.ACCEPTED


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["host: node1", "entries: []"], "serial is missing"),
        (["serial: 1", "entries: []"], "host is missing"),
        (["host: node1", "serial: 1"], "it says nothing"),
        (["host: node1", "serial: 0", "entries: []"], "serial '0' is not a number of 1 to"),
        (["host: node1", "serial: 1", "entries: [x]"], "entries can only be []"),
        (["host: '-'", "serial: 1", "entries: []"], "host '-' is not a host name"),
        (["- a list"], "is not a mapping"),
        (["host: [", "serial: 1"], "not YAML"),
        (["host: node1", "serial: 1", "tprox: []"], "did you mean tproxy?"),
        (["host: node1", "serial: 1", "x: &x [*x]"], "it contains itself"),
    ],
)
def test_a_document_that_is_none_is_refused_in_one_line(
    key: keys.SecretKey, lines: list[str], why: str
) -> None:
    text = document.seal("\n".join(lines) + "\n", 0, key)
    with pytest.raises(Refused) as caught:
        document.read(text, [key.public])
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_is_a_document_too(key: keys.SecretKey) -> None:
    text = document.seal('{"host": "node1", "serial": 3, "entries": []}', 0, key)
    assert document.read(text, [key.public]).serial == 3


def test_what_ends_in_the_first_line_and_in_the_header_must_be_the_same(key: keys.SecretKey) -> None:
    text = made(key, ends="2027-01-15").text.replace("not_after=1799971200", "not_after=0", 1)
    with pytest.raises(Refused, match="differ in not_after"):
        document.read(text, [key.public])


ROUTES = [
    "tproxy_routes:",
    "- {id: a, network: n, guest_addr: 10.0.0.5, port: 80, domain: a.example.com, owner: x}",
    "- {id: b, network: n, guest_addr: 10.0.0.5, port: 81, domain: b.example.com, owner: x}",
    "- {id: c, network: n, guest_addr: 10.0.0.5, port: 82}",
]


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        (Limits(), [("missing domain", "c")]),
        (Limits(routes=1), [("capacity", "b"), ("capacity", "c")]),
        (Limits(routes_per_owner=1), [("quota", "b"), ("missing domain", "c")]),
    ],
)
def test_routes_without_room_or_domain_are_refused(
    key: keys.SecretKey, limits: Limits, wanted: list[tuple[str, str]]
) -> None:
    found = judging.refusals(made(key, *ROUTES), limits)
    assert [(each.kind, each.entry) for each in found] == wanted


def test_a_file_of_trusted_keys_can_have_several_and_names_the_line_of_a_bad_one(tmp_path: Path) -> None:
    first, second = (keys.create(tmp_path / name, name) for name in ("one", "two"))
    file = tmp_path / "trusted"
    file.write_text(f"# ours\n{first.public.line('one')}\n\n{second.public.line('two')} # new\n")
    assert [each.raw for each in keys.trusted(file)] == [first.public.raw, second.public.raw]
    file.write_text("ed25519 AAAA\n")
    with pytest.raises(keys.KeyProblem, match=r"trusted:1: 'ed25519 AAAA' is no public key"):
        keys.trusted(file)
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o600
