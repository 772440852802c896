"""Commands for the programs below tests/netns/programs."""

from __future__ import annotations

import sys


def program(name: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs the program ``name``. A stand-in hypervisor has this source tree on PYTHONPATH."""
    return (sys.executable, "-m", f"tests.netns.programs.{name}", *arguments)
