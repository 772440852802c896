"""The folder's architecture: imports go one way, downward."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import ForwardRef

import pytest

import tproxy

# From the bottom up. A module may import from the layers below its own only, so that no two modules
# need each other and each can be read, and tested, without what is above it. Imports inside of
# functions and under TYPE_CHECKING count.
LAYERS = (
    ("errors", "logger"),
    ("model",),
    ("catalog", "flow", "labview", "report", "ruleset", "wire"),  # pure: formats and decisions
    ("config", "guards", "values"),
    ("check", "reader"),
    ("plan",),
    ("fdpass", "hypervisor", "logs", "loop", "netns", "nft", "stream"),  # one facility of the kernel each
    ("control", "install", "instance", "links", "netlink", "splice"),
    ("answering", "connection", "foreground", "plumbing", "ports", "probe", "recall", "relay", "running"),
    ("serving",),
    ("process", "watchdog"),
    ("spawner",),
    ("supervisor",),
    ("daemon", "hook", "lifeline", "preview"),
    ("attend", "lab", "launch", "mend", "opennebula", "refresh", "sync"),
    ("leftovers", "watch"),
    ("cli",),
    ("adapters",),
    ("__main__",),
)

EXCEPTIONS = {
    ("plan", "links"): "the types of what was observed; no call",
}

PACKAGE = Path(tproxy.__file__).parent
MODULES = {path.stem: [path] for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"}
# A folder counts as one module.
MODULES |= {
    folder.parent.name: sorted(folder.parent.glob("*.py")) for folder in PACKAGE.glob("*/__init__.py")
}
LEVEL = {module: level for level, layer in enumerate(LAYERS) for module in layer}


def imports() -> Iterator[tuple[str, str, str]]:
    """Each import of a module of tproxy by another: who, whom, and where."""
    for module, paths in MODULES.items():
        for path in paths:
            for other, line in imported(path):
                if other != module:
                    yield module, other, f"{path.relative_to(PACKAGE)}:{line}"


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """The modules of tproxy that a file imports, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # We write no relative imports; one from a folder would be taken for one from the top.
            base = ".".join(filter(None, ("tproxy" if node.level else "", node.module)))
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            module = rest.partition(".")[0]
            # Not a module: a name of the package itself, such as __version__.
            if package == "tproxy" and (module in MODULES or module in LEVEL):
                yield module, node.lineno


def test_each_module_has_a_layer() -> None:
    homeless = sorted(MODULES.keys() - LEVEL.keys())
    assert not homeless, f"{homeless}: add to LAYERS in {__file__}, above all that they import"


def test_no_module_is_in_two_layers() -> None:
    assert len(LEVEL) == sum(map(len, LAYERS))


def test_imports_go_one_way_downward() -> None:
    wrong = [
        f"{place}: {module} may not import {other}, which is not in a layer below it"
        for module, other, place in imports()
        if module in LEVEL and LEVEL.get(other, 0) >= LEVEL[module] and (module, other) not in EXCEPTIONS
    ]
    assert not wrong, "\n".join(wrong)


def test_what_relays_are_forked_from_carries_nothing_large() -> None:
    """Each relay has a share of it, and copies of what it touches: dataclasses alone is a megabyte."""
    loaded = loaded_with("tproxy.launch")
    assert "tproxy.relay" in loaded
    large = {"argparse", "asyncio", "dataclasses", "inspect", "nftables", "pathlib", "pyroute2", "yaml"}
    assert not loaded & (large | {"subprocess", "tproxy.daemon", "tproxy.instance"})


def test_a_hook_that_finds_everything_in_order_needs_nothing_slow() -> None:
    """What it needs of these otherwise, it imports then."""
    loaded = loaded_with("tproxy.cli.hook")
    assert "tproxy.plumbing" in loaded
    slow = {"argparse", "asyncio", "click", "dataclasses", "hashlib", "inspect", "ipaddress", "logging"}
    slow |= {"heapq", "pathlib", "psutil", "pyroute2", "subprocess", "traceback", "urllib", "yaml"}
    assert not loaded & slow


@pytest.mark.parametrize("module", ["tproxy.cli.hook", "tproxy.launch"])
def test_what_starts_often_has_no_types_with_annotations_as_text(module: str) -> None:
    """One is enough for `typing` to need all of the compiler's types: a twentieth of a hook's time."""
    as_text = {
        f"{name}.{each.__name__}"
        for name in loaded_with(module)
        if name.startswith("tproxy.")
        for each in vars(import_module(name)).values()
        if isinstance(each, type)
        and any(isinstance(of, ForwardRef) for of in inspect.get_annotations(each).values())
    }
    assert not as_text, f"{as_text}: no `from __future__ import annotations` there"


def loaded_with(module: str) -> set[str]:
    """All modules of a process that imports this one."""
    command = [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_exceptions_are_still_needed() -> None:
    edges = {(module, other) for module, other, _ in imports()}
    assert EXCEPTIONS.keys() <= edges
