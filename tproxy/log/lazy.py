"""Loggers that import ``logging`` when the first line is logged.

A hook that finds everything in order logs nothing, and importing ``logging`` would be a sixth of its time. So
the modules that such a hook imports use these loggers. All others use ``logging.getLogger``.
"""

from __future__ import annotations

from collections.abc import Callable

from tproxy.typed import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import logging

DEFAULT_LEVEL = 20  # logging.INFO

# Added to a level where lines are JSON (``log.file``).
JSON = 0x80

_set_up: Callable[[], None] | None = None


def logger(name: str) -> logging.Logger:
    """Return the logger of that name, like ``logging.getLogger``."""
    return cast("logging.Logger", _Lazy(name))


def when_needed(set_up: Callable[[], None]) -> None:
    """Call ``set_up`` before the first line is logged, to decide where lines go."""
    global _set_up
    _set_up = set_up


class _Lazy:
    """Stands for a logger: the first use of an attribute imports ``logging``."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        global _set_up
        import logging

        if _set_up is not None:
            set_up, _set_up = _set_up, None
            set_up()
        return getattr(logging.getLogger(self._name), attribute)
