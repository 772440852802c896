"""The folder's architecture: imports go one way, downward."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import tproxy

# From the bottom up. A module may import from the layers below its own only, so that no two modules
# need each other and each can be read, and tested, without what is above it. Imports inside of
# functions and under TYPE_CHECKING count.
LAYERS = (
    ("children", "errors", "logfile", "typed"),
    ("logger", "title"),
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

# What starts often has tproxy.typed instead, where that can be: see there.
TYPING = {"typing"} if sys.version_info < (3, 14) else set()

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
    large |= {"json", "logging", "re", "subprocess", "threading", "traceback"}
    large |= {"tproxy.daemon", "tproxy.instance", *TYPING}
    assert not loaded & (large if TYPING else large - loaded_with("typing"))


def test_a_hook_that_finds_everything_in_order_needs_nothing_slow() -> None:
    """What it needs of these otherwise, it imports then."""
    loaded = loaded_with("tproxy.cli.hook")
    assert "tproxy.plumbing" in loaded
    slow = {"argparse", "asyncio", "click", "dataclasses", "hashlib", "inspect", "ipaddress", "logging"}
    slow |= {"heapq", "pathlib", "psutil", "pyroute2", "signal", "subprocess", "traceback", "urllib", "yaml"}
    assert not loaded & {*slow, *TYPING}


def loaded_with(module: str) -> set[str]:
    """All modules of a process that imports this one."""
    command = [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_exceptions_are_still_needed() -> None:
    edges = {(module, other) for module, other, _ in imports()}
    assert EXCEPTIONS.keys() <= edges
