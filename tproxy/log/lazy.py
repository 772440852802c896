"""Loggers that import ``logging`` when there is something to say.

A hook that finds everything in order has nothing to say, and ``logging``, with what it imports in turn, would
be a sixth of its time. Modules that such a hook runs through have these loggers, all others have plain ones.
"""

from __future__ import annotations

from collections.abc import Callable

from tproxy.typed import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import logging

DEFAULT_LEVEL = 20  # logging.INFO

_set_up: Callable[[], None] | None = None


def logger(name: str) -> logging.Logger:
    """As ``logging.getLogger``."""
    return cast("logging.Logger", _Lazy(name))


def when_needed(set_up: Callable[[], None]) -> None:
    """Have this done before the first line: it says where lines go."""
    global _set_up
    _set_up = set_up


class _Lazy:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        global _set_up
        import logging

        if _set_up is not None:
            set_up, _set_up = _set_up, None
            set_up()
        return getattr(logging.getLogger(self._name), attribute)
