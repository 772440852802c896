"""What a policy means for each host, and the lines about what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tproxy.errors import ConfigError
from tproxy.fleet import compiling, document, issuing, keys, policy
from tproxy.fleet.compiling import Compiled
from tproxy.fleet.issuing import Change, Standing

SERVICE = "{service_port: 5030, remote_addr: 10.0.0.1, remote_port: 80}"
HEAD = "store: file:///srv\nkey: key\n"

Compile = Callable[[str], Compiled]


@pytest.fixture
def compiled(tmp_path: Path) -> Compile:
    def compile_(text: str) -> Compiled:
        (tmp_path / "fleet.yaml").write_text(HEAD + text)
        return compiling.compile_policy(policy.load(str(tmp_path / "fleet.yaml")))

    return compile_


def test_a_host_gets_the_entries_of_its_groups_in_order(compiled: Compile) -> None:
    made = compiled(
        "groups:\n"
        f"- {{name: a, hosts: ['n[08-10]'], tproxy: [{SERVICE}], networks: [7]}}\n"
        "- {name: b, hosts: [n09], tproxy_watch: true, tproxy: [{remote_addr: 10.0.0.2, remote_port: 81}]}\n"
        "- {name: c, hosts: [idle]}\n"
    )
    assert made.problems == []
    assert [*made.hosts] == ["n08", "n09", "n10", "idle"]
    assert [each.service_port for each in made.hosts["n09"].config.entries] == [5030, 81]
    assert (made.hosts["n09"].config.watch, made.hosts["n08"].config.watch) == (True, False)
    assert made.hosts["n08"] is made.hosts["n10"]
    assert made.hosts["idle"].text == "entries: []\n"
    assert made.hosts["n08"].networks == {"7"}


@pytest.mark.parametrize(
    "text", ["tproxy: [{remote_addr: 2001:10:20::1, remote_port: 0x50}]", "tproxy_ipv6: true"]
)
def test_values_are_in_documents_as_they_are_written(compiled: Compile, text: str, tmp_path: Path) -> None:
    made = compiled(f"groups: [{{name: a, hosts: [n], {text}}}]\n").hosts["n"]
    key = keys.create(tmp_path / "key", "test")
    sealed = issuing.sealed(Change("n", None, made.text, 0, 1, 0), 0, "", key)
    try:
        read = document.read(sealed, [key.public])
    except document.Refused:
        assert "0x50" in text
    else:
        assert read.content == made.content


PROBLEMS = {
    "groups: [{name: a, hosts: [n], tproxy: [{remote_port: 80}]}]": "3: entry 1: remote_addr is missing",
    "zones: [example.com]\ngroups:\n- name: a\n  hosts: [n]\n  tproxy_routes:\n"
    "  - {id: x, network: b, guest_addr: 10.0.0.5, port: 80, domain: a.other.net}": (
        "8: tproxy_routes: x: domain a.other.net is in none of the zones example.com"
    ),
    "certificates: [www.example.com]\ngroups:\n- name: a\n  hosts: [n]\n  tproxy_routes:\n"
    "  - {id: x, network: b, guest_addr: 10.0.0.5, port: 80, domain: a.example.com, tls: terminate}": (
        "8: tproxy_routes: x: tls: terminate, and no certificate is for a.example.com"
    ),
    "groups:\n- name: a\n  hosts: [n]\n  tproxy_routes:\n"
    "  - {id: x, network: b, guest_addr: 10.0.0.5, port: 80}": (
        "7: tproxy_routes: x: it has neither domain nor gateway_port, so nobody can ask for it"
    ),
    "limits: {routes: 1}\ngroups:\n- name: a\n  hosts: [n]\n  tproxy_routes:\n"
    "  - {id: x, network: b, guest_addr: 10.0.0.5, port: 80, domain: a.x}\n"
    "  - {id: y, network: b, guest_addr: 10.0.0.5, port: 80, domain: b.x}": (
        "9: tproxy_routes: y: a host takes 1 routes (limits: routes)"
    ),
    "groups:\n- {name: a, hosts: [n], tproxy_ipv6: true}\n- {name: b, hosts: [n], tproxy_ipv6: false}": (
        "5: tproxy_ipv6 'false' of group b is another one in"
    ),
    "groups:\n- name: a\n  hosts: [n]\n  tproxy_routes:\n"
    "  - {id: x, network: b, guest_addr: 10.0.0.5, port: 80, domain: a.x}\n"
    "- name: b\n  hosts: [m]\n  tproxy_routes:\n"
    "  - {id: x, network: b, guest_addr: 10.0.0.6, port: 80, domain: b.x}": (
        "11: tproxy_routes: id x is that of another route in line 7"
    ),
}


@pytest.mark.parametrize("text", PROBLEMS)
def test_each_fault_is_one_line_with_file_line_key_and_value(
    compiled: Compile, text: str, tmp_path: Path
) -> None:
    (found,) = compiled(text + "\n").problems
    assert found.startswith(f"{tmp_path}/fleet.yaml:{PROBLEMS[text]}")
    assert "\n" not in found


def test_a_fault_of_an_included_file_names_that_file(compiled: Compile, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("\ntproxy:\n- {remote_port: 80}\n")
    (found,) = compiled("groups: [{name: a, hosts: [n], include: [more.yaml]}]\n").problems
    assert found == f"{tmp_path}/more.yaml:3: entry 1: remote_addr is missing: entry skipped"


UNUSABLE = {
    "groups: [{name: a}]": "3: groups: name and hosts are needed",
    "groups: [{name: a, hosts: [n], tprox: []}]": "3: group a: key 'tprox' is no key of the",
    "groups: [{name: a, hosts: ['-n']}]": "3: hosts '-n': '-n' is no host name",
    "groups: [{name: a, hosts: [n]}, {name: a, hosts: [m]}]": "3: groups: a is there twice",
    "groups: []\nzone: [x]": "4: the policy: key 'zone' is unknown; known are store, key",
    "groups: {}": "3: groups",
    "groups: [{name: a, hosts: [n], not_after: soon}]": "3: not_after 'soon' is not a date",
    "limits: {routes: many}\ngroups: []": "3: routes 'many' is not a number of",
    "groups: [": "4: not YAML",
}


@pytest.mark.parametrize("text", UNUSABLE)
def test_a_policy_that_cannot_be_used_is_one_line(compiled: Compile, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        compiled(text + "\n")
    assert str(caught.value).startswith(f"{tmp_path}/fleet.yaml:{UNUSABLE[text]}")
    assert "\n" not in str(caught.value)


# What is issued


def standing(compiled: Compile, key: keys.SecretKey, serial: int, text: str) -> Standing:
    sealed = issuing.sealed(Change("n", None, text, 0, serial, 0), 0, "", key)
    return issuing.standing(sealed, None, [key.public])


def test_only_hosts_whose_document_differs_get_another_one(compiled: Compile, tmp_path: Path) -> None:
    key = keys.create(tmp_path / "key", "test")
    made = compiled(f"groups: [{{name: a, hosts: [n, m], tproxy: [{SERVICE}]}}]\n").hosts
    same = standing(compiled, key, 4, f"tproxy: [{SERVICE}]\n")
    other = standing(compiled, key, 7, "entries: []\n")
    (found,) = issuing.changes(made, {"n": same, "m": other})
    assert (found.host, found.serial) == ("m", 8)
    # A store that was restored: its document is older than what the host has.
    older = same._replace(serial=9)
    assert [each.serial for each in issuing.changes(made, {"n": older, "m": same})] == [10]
    assert issuing.entries_of(same.document.text if same.document else "") == f"tproxy: [{SERVICE}]\n"


def change(host: str, rank: int = 2) -> Change:
    return Change(host, None, "", 0, 1, rank)


@pytest.mark.parametrize(
    ("canary", "then", "sizes"),
    [
        (0, "", [10]),
        (2, "", [2, 8]),
        (2, "50%", [2, 5, 3]),
        (0, "4", [4, 4, 2]),
        (1, "1%", [1] * 10),
        (20, "", [10]),
    ],
)
def test_stages_have_the_sizes_that_were_asked_for(canary: int, then: str, sizes: list[int]) -> None:
    made = issuing.stages([change(f"n{each}") for each in range(10)], canary, then)
    assert [*map(len, made)] == sizes
    assert [each.host for stage in made for each in stage] == [f"n{each}" for each in range(10)]


def test_names_go_out_before_certificates_and_these_before_routes() -> None:
    found = [change("zones", 0), change("certificates", 1), change("one"), change("two")]
    made = issuing.stages(found, 0, "")
    assert [[each.host for each in stage] for stage in made] == [["zones"], ["certificates"], ["one", "two"]]


@pytest.mark.parametrize("then", ["0", "x", "0%", "200%", "-1"])
def test_sizes_that_cannot_be_are_refused(then: str) -> None:
    with pytest.raises(ValueError, match=r"^(could not convert.*|invalid literal.*|0|0%|200%|-1)$"):
        issuing.stages([change("n")], 0, then)
