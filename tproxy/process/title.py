"""Titles of processes, by the C part of the package ``setproctitle`` alone.

The package itself imports ``logging``, for a line that it would say without that part: see ``logfile``.
"""

from __future__ import annotations

from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec

from tproxy.typed import Any


def _c_part() -> Any:
    package = find_spec("setproctitle")
    folders = package.submodule_search_locations if package else None
    spec = PathFinder.find_spec("_setproctitle", folders)
    if spec is None or spec.loader is None:  # a version of another build
        import setproctitle

        return setproctitle
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def set_title(title: str) -> None:
    """Have the process shown under this title, as by ps(1)."""
    _C_PART.setproctitle(title)


_C_PART = _c_part()
