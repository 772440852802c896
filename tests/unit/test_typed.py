"""Named tuples without ``typing``: our modules use them exactly like those of ``typing``."""

from __future__ import annotations

import typing
from collections.abc import Callable

import pytest

from tproxy import typed


class Standard(typing.NamedTuple):
    """A port."""

    port: int
    name: str = ""
    seconds: float = 5.0

    def __str__(self) -> str:
        return f"{self.port} {self.name}"

    @property
    def known(self) -> bool:
        return bool(self.name)

    @classmethod
    def low(cls) -> Standard:
        return cls(1)


class Light(typed.NamedTuple):
    """A port."""

    port: int
    name: str = ""
    seconds: float = 5.0

    def __str__(self) -> str:
        return f"{self.port} {self.name}"

    @property
    def known(self) -> bool:
        return bool(self.name)

    @classmethod
    def low(cls) -> Light:
        return cls(1)


class Child(Light):
    __slots__ = ()

    def __new__(cls, port: int) -> Child:
        return super().__new__(cls, port + 1, "child")


def refused(call: Callable[..., object], *arguments: object) -> str:
    try:
        call(*arguments)
    except (AttributeError, TypeError) as error:
        return type(error).__name__
    return "not at all"


Kind = type[Standard] | type[Light]

USES: dict[str, Callable[[Kind], object]] = {
    "defaults": lambda kind: tuple(kind(80)),
    "by name": lambda kind: tuple(kind(name="web", port=80)),
    "str": lambda kind: str(kind(80, "web")),
    "repr": lambda kind: repr(kind(80)).replace(kind.__name__, ""),
    "property": lambda kind: (kind(80).known, kind(80, "web").known),
    "class method": lambda kind: tuple(kind.low()),
    "replace": lambda kind: tuple(kind(80)._replace(seconds=1.0)),
    "fields": lambda kind: (kind._fields, kind._field_defaults, kind.__match_args__),
    "equality": lambda kind: (kind(80) == (80, "", 5.0), hash(kind(80)) == hash((80, "", 5.0))),
    "immutable": lambda kind: refused(setattr, kind(80), "port", 81),
    "no other attributes": lambda kind: refused(setattr, kind(80), "other", 1),
    "too few": refused,
    "too many": lambda kind: refused(kind, 1, "", 1.0, 1),
}


@pytest.mark.parametrize("use", USES)
def test_a_light_named_tuple_behaves_like_one_of_typing(use: str) -> None:
    assert USES[use](Light) == USES[use](Standard)


def test_a_class_can_be_derived_and_matched() -> None:
    assert Child(79) == (80, "child", 5.0)
    assert isinstance(Child(79), Light)
    match Child(79):
        case Light(port, name):
            assert (port, name) == (80, "child")
        case _:
            pytest.fail("no match")
