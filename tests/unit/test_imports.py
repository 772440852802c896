"""What packages may import, and what processes that start often may load."""

from __future__ import annotations

import subprocess
import sys

# Processes that start often use tproxy.typed instead, where Python allows it.
TYPING = {"typing"} if sys.version_info < (3, 14) else set()


def test_packages_import_only_what_is_below_them() -> None:
    """pyproject.toml has the layers ([tool.importlinter]). A failure prints each import that breaks them.

    In a process of its own: import-linter's set-up of ``logging`` disables the loggers of other tests.
    """
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# A relay and a worker are forked from the spawner, and write to what they have in memory, which copies it.
LARGE = {
    "argparse",
    "asyncio",
    "dataclasses",
    "inspect",
    "json",
    "logging",
    "nftables",
    "pathlib",
    "pyroute2",
}
LARGE |= {"re", "subprocess", "threading", "traceback", "yaml", "tproxy.daemon.daemon", *TYPING}


def test_the_process_that_relays_are_forked_from_imports_nothing_large() -> None:
    """Each relay shares its memory, and copies pages when it writes: dataclasses alone is a megabyte."""
    loaded = loaded_with("tproxy.daemon.__main__")
    assert "tproxy.relay.relay" in loaded
    assert not loaded & (LARGE if TYPING else LARGE - loaded_with("typing"))
    # A worker imports these after the fork.
    assert not {each for each in loaded if each.startswith(("tproxy.worker", "tproxy.datapath"))}


def test_a_worker_loads_nothing_large() -> None:
    loaded = loaded_with("tproxy.daemon.__main__, tproxy.worker.worker")
    assert {"tproxy.worker.intake", "tproxy.datapath.connection"} <= loaded
    assert not loaded & (LARGE if TYPING else LARGE - loaded_with("typing"))


def test_another_spawner_in_the_place_of_one_that_was_killed_imports_nothing_large() -> None:
    loaded = loaded_with("tproxy.daemon.spawner")
    assert not loaded & (LARGE if TYPING else LARGE - loaded_with("typing"))


def test_a_hook_that_finds_everything_in_order_imports_nothing_slow() -> None:
    """A hook that has something to change imports these when it needs them."""
    loaded = loaded_with("tproxy.cli.hook")
    assert "tproxy.bridge.plumbing" in loaded
    slow = {"argparse", "asyncio", "click", "dataclasses", "hashlib", "inspect", "ipaddress", "logging"}
    slow |= {"heapq", "pathlib", "psutil", "pyroute2", "signal", "subprocess", "traceback", "urllib", "yaml"}
    slow |= {"tproxy.bridge.actions", "tproxy.bridge.obstacles", "tproxy.daemon.launcher"}
    slow |= {"tproxy.operations.lost_table", "tproxy.operations.removal"}
    assert not loaded & {*slow, *TYPING}


def loaded_with(module: str) -> set[str]:
    """Return all modules of a process that imports this one."""
    command = [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
