"""The one form of a name, and overlaps."""

from __future__ import annotations

import pytest

from tproxy.errors import BadName
from tproxy.inward.names import domain


@pytest.mark.parametrize(
    ("written", "form"),
    [
        ("WWW.Example.COM", "www.example.com"),
        ("www.example.com.", "www.example.com"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("*.Example.com.", "*.example.com"),
        ("_service.example.com", "_service.example.com"),
        (f"{'a' * 63}.example", f"{'a' * 63}.example"),
    ],
)
def test_a_name_has_one_form(written: str, form: str) -> None:
    assert domain.normalised(written, wildcard=True) == form


@pytest.mark.parametrize(
    "written",
    [
        *("", ".", "a..b", "-a.example", "a-.example", f"{'a' * 64}.example", ".".join(["abcdefg"] * 40)),
        *("a b.example", "192.0.2.1", "a.*.example", "**.example", "exa$mple.com", "a\u2603.ex ample"),
    ],
)
def test_what_is_no_name_is_refused(written: str) -> None:
    with pytest.raises(BadName):
        domain.normalised(written, wildcard=True)


def test_a_wildcard_is_refused_where_none_may_be() -> None:
    with pytest.raises(BadName):
        domain.normalised("*.example.com")


@pytest.mark.parametrize(
    ("one", "other", "overlaps"),
    [
        ("a.example.com", "a.example.com", True),
        ("a.example.com", "b.example.com", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "x.a.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.a.example.com", "*.example.com", True),
        ("*.a.example.com", "a.example.com", False),
        ("x.www.example.com", "www.example.com", False),
        ("*.example.com", "aexample.com", False),
    ],
)
def test_overlaps(one: str, other: str, overlaps: bool) -> None:
    assert domain.overlap(one, other) is overlaps
    assert domain.overlap(other, one) is overlaps


def test_a_name_is_within_a_domain_by_whole_parts() -> None:
    assert domain.within("a.example.com", "example.com")
    assert domain.within("*.example.com", "example.com")
    assert not domain.within("notexample.com", "example.com")


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("\u0440aypal.example", "CYRILLIC and LATIN"),  # the first letter is Cyrillic
        ("\u0441\u043e\u0435.example", "it looks like coe.example"),
        ("bücher.example", ""),
        ("пример.example", ""),
        ("日本語テスト.example", ""),
    ],
)
def test_what_may_be_read_as_another_name_is_told(written: str, told: str) -> None:
    said = domain.homograph(domain.normalised(written), ())
    assert (told in said) if told else not said


def test_a_twin_among_other_names_is_named() -> None:
    name = domain.normalised("\u0430pple.example")
    assert domain.homograph(name, ["apple.example"]) == f"{name} looks like apple.example"
