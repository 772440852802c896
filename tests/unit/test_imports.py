"""The folder's architecture: imports go one way, downward."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import tproxy

# From the bottom up. A module may import from the layers below its own only, so that no two modules
# need each other and each can be read, and tested, without what is above it. Imports inside of
# functions and under TYPE_CHECKING count.
LAYERS = (
    ("errors",),
    ("model",),
    ("catalog", "config", "flow", "labview", "report", "ruleset", "wire"),  # pure: formats and decisions
    ("plan",),
    ("fdpass", "hypervisor", "logs", "loop", "netns", "nft", "stream"),  # one facility of the kernel each
    ("control", "instance", "links", "splice"),
    ("connection", "plumbing", "ports", "process", "relay"),
    ("spawner",),
    ("supervisor",),
    ("daemon", "hook"),
    ("lab", "launch"),
    ("cli",),
    ("__main__",),
)

EXCEPTIONS = {
    ("plan", "links"): "the types of what was observed; no call",
}

PACKAGE = Path(tproxy.__file__).parent
MODULES = {path.stem: path for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"}
LEVEL = {module: level for level, layer in enumerate(LAYERS) for module in layer}


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """The modules of tproxy that a file imports, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # A relative import is from this package: it has no folders.
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
        f"{path.name}:{line}: {module} may not import {other}, which is not in a layer below it"
        for module, path in MODULES.items()
        for other, line in imported(path)
        if module in LEVEL and LEVEL.get(other, 0) >= LEVEL[module] and (module, other) not in EXCEPTIONS
    ]
    assert not wrong, "\n".join(wrong)


def test_exceptions_are_still_needed() -> None:
    edges = {(module, other) for module, path in MODULES.items() for other, _ in imported(path)}
    assert EXCEPTIONS.keys() <= edges
