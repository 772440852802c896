"""Keys of a TCP router, as they become routes or not."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tproxy.fleet.redis import services
from tproxy.fleet.redis.services import Service, Unusable

KEY = "/tcprouter/service/www.example.com"


def value(**said: Any) -> str:
    inner = base64.b64encode(json.dumps(said).encode()).decode()
    return json.dumps({"Key": KEY, "Value": inner, "LastIndex": 1})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (value(addr="10.0.0.5", tlsport=443, httpport=80), Service("www.example.com", "10.0.0.5", 80, 443)),
        (value(addr="10.0.0.5:8443"), Service("www.example.com", "10.0.0.5", 0, 8443)),
        (value(Addr="10.0.0.5", TLSPort="443"), Service("www.example.com", "10.0.0.5", 0, 443)),
        (
            value(addr="10.0.0.5", httpport=80, sni="a.example.com"),
            Service("a.example.com", "10.0.0.5", 80, 0),
        ),
        ('{"addr": "10.0.0.5", "httpport": 80}', Service("www.example.com", "10.0.0.5", 80, 0)),
    ],
)
def test_a_service_with_an_address_is_understood(text: str, wanted: Service) -> None:
    assert services.parse(KEY, text) == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no object"),
        ('{"Value": "%"}', "no base64"),
        ('{"Value": "/w=="}', "no base64 of text"),
        (value(addr="10.0.0.5"), "neither httpport nor tlsport"),
        (value(addr="10.0.0.5", httpport=70000), "httpport '70000' is not a port"),
        (value(addr="10.0.0.5", httpport=True), "is not a port"),
        (value(addr="name", httpport=80), "addr 'name' is no IPv4 address"),
        (value(clientsecret="s3cret", httpport=80), "behind a tunnel"),
        (value(addr="10.0.0.5", httpport=80, sni="a b"), "'a b' is no host name"),
    ],
)
def test_what_cannot_become_a_route_is_said_without_its_secret(text: str, why: str) -> None:
    with pytest.raises(Unusable) as caught:
        services.parse(KEY, text)
    assert why in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_of_two_keys_for_one_name_the_first_counts() -> None:
    good = value(addr="10.0.0.5", httpport=80)
    used, problems = services.services({KEY: good, KEY.removeprefix("/"): good})
    assert [*used] == [KEY]
    assert "is that of the key" in problems[KEY.removeprefix("/")]


def test_ids_are_the_same_each_time_and_fit() -> None:
    assert services.id_of("*.example.com") == "any.example.com"
    long = f"{'a' * 60}.{'b' * 60}.example.com"
    assert services.id_of(long) == services.id_of(long)
    assert len(services.id_of(long)) <= 64
    assert services.id_of(long) != services.id_of(f"c.{long}")
