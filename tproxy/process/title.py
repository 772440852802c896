"""Sets the title of a process with the C extension of the package ``setproctitle``.

The package's Python part imports ``logging``, which a relay has no room for (log/file.py). It would log a
line if the extension were missing.
"""

from __future__ import annotations

from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec

from tproxy.typed import Any


def _load_extension() -> Any:
    """Load the extension without the package, or the package where the extension has another name."""
    package = find_spec("setproctitle")
    folders = package.submodule_search_locations if package else None
    spec = PathFinder.find_spec("_setproctitle", folders)
    if spec is None or spec.loader is None:
        import setproctitle

        return setproctitle
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def set_title(title: str) -> None:
    """Set the title of this process, as ps(1) shows it."""
    _EXTENSION.setproctitle(title)


_EXTENSION = _load_extension()
