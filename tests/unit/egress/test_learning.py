"""A network that learns fetches what no rule denies, and rules are proposed from the log."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from urllib.parse import quote

import pytest

from tproxy.egress.model import Caller
from tproxy.egress.policy import judging, proposing, reader
from tproxy.egress.policy.rules import Upstreams

POLICY = """\
learn: {network: lab, until: 2027-01-31}
rules:
  - {networks: [lab], deny: true, pypi: [evil]}
  - {networks: [build], pypi: [good]}
"""
LAB, BUILD = Caller(network="lab"), Caller(network="build")
LAST, LATER = date(2027, 1, 31), date(2027, 2, 1)


def allowed(caller: Caller, url: str, today: date = LAST, text: str = POLICY) -> bool:
    return judging.request(reader.parse("egress.yaml", text), caller, "GET", url, today).allowed


def test_only_the_network_that_learns_may_fetch_more_and_only_until_the_day() -> None:
    url = "https://host.example/any/path"
    assert allowed(LAB, url)
    assert not allowed(LAB, url, LATER)
    assert not allowed(BUILD, url)
    assert not allowed(Caller(), url)


def test_learning_overrides_no_deny_no_sealed_mode_no_method_and_no_unclear_url() -> None:
    assert not allowed(LAB, "https://pypi.org/simple/evil/")
    assert not allowed(LAB, "https://host.example/x", text=f"mode: sealed\n{POLICY}")
    assert not allowed(LAB, "https://host.example/a/../b")
    assert not allowed(LAB, "https://host.example:8080/x")
    assert not judging.request(reader.parse("p", POLICY), LAB, "POST", "https://host.example/x", LAST).allowed


def test_a_connection_is_opened_to_the_port_of_https_only() -> None:
    policy = reader.parse("egress.yaml", POLICY.replace("2027-01-31", "2999-01-31"))
    assert judging.destination(policy, LAB, "host.example", 443).allowed
    assert not judging.destination(policy, LAB, "host.example", 22).allowed
    assert not judging.destination(policy, BUILD, "host.example", 443).allowed


@pytest.mark.parametrize(
    "text", ["{network: lab}", "{network: lab, until: tomorrow}", "{until: 2027-01-31}", "lab"]
)
def test_a_learn_that_is_not_complete_is_an_error(text: str) -> None:
    with pytest.raises(reader.PolicyError):
        reader.parse("egress.yaml", f"learn: {text}\nrules: []\n")


def entry(url: str, rule: str = "learn", status: str = "200", network: str = "lab") -> str:
    found = {"network": network, "method": "GET", "url": url, "status": status, "rule": rule}
    return json.dumps({name: quote(text, safe="") for name, text in found.items()})


def test_rules_are_proposed_that_allow_what_was_fetched_and_that_the_policy_reads(tmp_path: Path) -> None:
    urls = [
        "https://pypi.org/simple/requests/",
        "http://deb.debian.org/debian/dists/bookworm/InRelease",
        "http://deb.debian.org/debian/pool/main/c/curl/curl_7.88.1-10_amd64.deb",
        "https://registry-1.docker.io/v2/library/alpine/manifests/3",
        "https://galaxy.ansible.com/api/v3/collections/community/general/versions/",
        "https://host.example/releases/a",
    ]
    lines = [entry(url) for url in urls]
    lines += [
        entry("https://pypi.org/simple/denied/", rule="none", status="403"),
        entry("https://pypi.org/simple/gone/", status="404"),
        entry("https://pypi.org/simple/of-a-rule/", rule="egress.yaml:3"),
        "no JSON",
    ]
    text = "rules:\n" + proposing.rules(proposing.read(lines, Upstreams()))
    policy = reader.parse("egress.yaml", text)
    for url in urls:
        assert judging.request(policy, LAB, "GET", url).allowed, text
    for name in ("denied", "gone", "of-a-rule"):
        assert not judging.request(policy, LAB, "GET", f"https://pypi.org/simple/{name}/").allowed


def test_nothing_is_proposed_where_nothing_was_learned() -> None:
    assert proposing.rules(proposing.read([], Upstreams())) == ""
