"""Commands for the programs below tests/netns/programs."""

from __future__ import annotations

import sys


def program(name: str, *arguments: str) -> tuple[str, ...]:
    """Return the command for a program; a stand-in hypervisor has this source tree on PYTHONPATH."""
    return (sys.executable, "-m", f"tests.netns.programs.{name}", *arguments)
