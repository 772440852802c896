"""event: what installed platform hooks call, without click, since platforms wait for it at every start.

The command's form is part of the contract, so that an upgrade of tproxy never breaks an installed hook.
"""

from __future__ import annotations

from importlib import import_module

from tproxy.console import EXIT_USAGE, say

# The module of tproxy.platforms whose ``main`` takes the platform's own arguments.
PLATFORMS = ("libvirt", "proxmox")

USAGE = f"event: usage: tproxy event {{{'|'.join(PLATFORMS)}}} ARGUMENT..., as the platform gives them"


def run(arguments: list[str]) -> int:
    """Handle one event of a platform; returns the exit code."""
    platform, *rest = arguments or [""]
    if platform not in PLATFORMS:
        say(USAGE)
        return EXIT_USAGE
    code: int = import_module(f"tproxy.platforms.{platform}").main(rest)
    return code
