"""Every error of a policy is found, each with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.egress.policies import parse
from tproxy.egress.policy import reader
from tproxy.egress.policy.current import Current
from tproxy.errors import ConfigError


def problems(text: str) -> list[str]:
    with pytest.raises(reader.PolicyError) as caught:
        reader.parse("egress.yaml", text)
    return [each.at("egress.yaml") for each in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mode: open", "egress.yaml:1: mode: 'open' is not one of dmz, sealed"),
        ("ruels: []", "egress.yaml:1: unknown key 'ruels' in the file: did you mean rules?"),
        ("rules: 5", "egress.yaml:1: rules: '5' is not a list"),
        ("rules:\n  - pypi: [x]", "egress.yaml:2: networks: is missing in a rule"),
        ("rules:\n  - networks: [a]", "egress.yaml:2: a rule names nothing"),
        ("rules:\n  - networks: []\n    pypi: [x]", "egress.yaml:2: networks: (a list) names nothing"),
        ("rules:\n  - networks: [a]\n    pypi: ['x=>2']", "egress.yaml:3: pypi: 'x=>2' is not a project"),
        ("rules:\n  - networks: [a]\n    deny: yes\n    pypi: [x]", "egress.yaml:3: deny: 'yes' is not true"),
        ("rules:\n  - networks: [a]\n    network: [b]", "egress.yaml:3: unknown key 'network' in a rule"),
        ("rules:\n  - {networks: [a], oci: [alpine]}", "egress.yaml:2: oci: 'alpine' is not an image"),
        ("rules:\n  - {networks: [a], galaxy: [general]}", "egress.yaml:2: galaxy: 'general' is not a"),
        ("rules:\n  - {networks: [a], get: ['x/*']}", "egress.yaml:2: get: 'x/*' is not an http://"),
        (
            "rules:\n  - {networks: [a], get: ['https://a*b.c/']}",
            "egress.yaml:2: get: 'https://a*b.c/' has a *",
        ),
        ("rules:\n  - {networks: [a], get: ['https://a.c/../x']}", "egress.yaml:2: get:"),
        (
            "rules:\n  - {networks: [a], files: [{url: 'https://a.c/x'}]}",
            "egress.yaml:2: sha256: is missing in a file",
        ),
        ("rules:\n  - {networks: [a], limits: {requests: 5}}", "egress.yaml:2: unknown key 'requests'"),
        (
            "rules:\n  - {networks: [a], limits: {bytes_per_second: 5X}}",
            "egress.yaml:2: bytes_per_second: '5X'",
        ),
        ("tunnel: [127.0.0.1]", "egress.yaml:1: tunnel: '127.0.0.1' is not a host name"),
        ("clients: {10.0.0.0/33: a}", "egress.yaml:1: clients: '10.0.0.0/33' is not an address"),
        ("inner: [10.1.2.3/8]", "egress.yaml:1: inner: '10.1.2.3/8' is not an address"),
        ("listen: {proxy: [0]}", "egress.yaml:1: proxy: '0' is not a whole number of 1 to 65535"),
        ("mode: dmz\nmode: sealed", "egress.yaml:2: mode: is there twice"),
        ("a: [}", "egress.yaml:1: not YAML"),
        ("[" * 50, "egress.yaml:1: nested too deep"),
    ],
)
def test_an_error_names_file_line_key_and_value(text: str, expected: str) -> None:
    found = problems(text)
    assert any(each.startswith(expected) for each in found), found


def test_all_errors_are_found_at_once() -> None:
    text = "mode: open\nrules:\n  - networks: [a]\n    pypi: [x, '==', '!!']\n  - deny: 3\n"
    assert [each.split(": ")[0] for each in problems(text)] == [
        "egress.yaml:1",
        "egress.yaml:4",
        "egress.yaml:4",
        "egress.yaml:5",
        "egress.yaml:5",
        "egress.yaml:5",
    ]


EVERY = """\
mode: open
rules:
  - networks: [a, " b", "c "]
    hypervisors: []
    pypi: [x]
  - networks: [a]
  - networks: [a]
    files:
      - {url: "https://a.c/*", sha256: 12}
      - {url: "https://a.c/x", sha256: HASH0}
      - {url: "https://a.c/x", sha256: HASH1}
    limits: {connections: 0, bytes_per_second: 1X}
inner:
  - 10.0.0.1/8
  - x
upstream_ca: /nonexistent/ca.pem
listen: {proxy: [3128, 3190]}
""".replace("HASH", "0" * 63)


def test_each_of_many_errors_has_its_line() -> None:
    with pytest.raises(reader.PolicyError) as caught:
        reader.parse("egress.yaml", EVERY, look=True)
    found = [(each.line, each.at("").split(": ")[1]) for each in caught.value.problems]
    assert found == [
        (1, "mode"),
        (3, "networks"),
        (3, "networks"),
        (4, "hypervisors"),
        (6, "a rule names nothing"),
        (9, "url"),
        (9, "sha256"),
        (11, "files"),
        (12, "connections"),
        (12, "bytes_per_second"),
        (14, "inner"),
        (15, "inner"),
        (16, "upstream_ca"),
        (17, "listen"),
    ]


def test_an_empty_file_is_a_policy_that_denies() -> None:
    assert parse("").rules == ()


def test_a_policy_that_breaks_later_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "egress.yaml"
    path.write_text("rules: [{networks: [a], pypi: [x]}]\n")
    current = Current(path)
    before = current.get()
    assert before.rules
    path.write_text("rules: [")
    assert current.get() == before
    assert "not YAML" in current.problem
    path.unlink()
    assert current.get() == before
    path.write_text("rules: []\n")
    assert current.get().rules == ()
    assert current.problem == ""


def test_a_policy_that_cannot_be_read_at_the_start_denies(tmp_path: Path) -> None:
    current = Current(tmp_path / "none")
    assert current.get().rules == ()
    assert "No such file" in current.problem
    with pytest.raises(ConfigError):
        reader.load(tmp_path / "none")
