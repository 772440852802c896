"""event: the command that installed hooks of platforms call, read without click, because guests wait for it.

The form of the command is part of the contract (docs/contract.md, Hook): an upgrade of tproxy must not break
a hook that is installed.
"""

from __future__ import annotations

import os
from importlib import import_module

from tproxy.console import EXIT_USAGE, say

# A module of tproxy.platforms for each, whose ``handle_event`` takes the platform's own arguments.
PLATFORMS = ("libvirt", "proxmox")

HELP = """\
Usage: tproxy event libvirt|proxmox ARGUMENT...

Handle one event of a platform. The hooks that `tproxy install` puts in place call this.

  libvirt   qemu|lxc|network NAME OPERATION SUB-OPERATION EXTRA, and the XML on stdin
  proxmox   VMID PHASE

Set TPROXY_DEBUG=1 to log more and to show tracebacks.

Example:
  tproxy event proxmox 100 post-start"""


def run(arguments: list[str], *, debug: bool = False) -> int:
    """Carry out the arguments that follow ``tproxy event``; return the exit code."""
    platform, *rest = arguments or [""]
    if platform in ("-h", "--help"):
        print(HELP)
        return 0
    if platform not in PLATFORMS:
        say(f"event: the platform is {' or '.join(PLATFORMS)}, not {platform!a}")
        return EXIT_USAGE
    handle = import_module(f"tproxy.platforms.{platform}").handle_event
    code: int = handle(rest, debug=debug or bool(os.environ.get("TPROXY_DEBUG")))
    return code
