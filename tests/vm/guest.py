"""A guest as users have it: a virtual machine with Debian's cloud kernel, on a tap of a bridge.

The machine boots, carries out a script, and powers itself off.
"""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.vm import machine
from tproxy.lab.hypervisor import Hypervisor

MAC = "02:00:00:00:00:05"

_MARK = "@result"

# For scripts: ``say NAME COMMAND...`` prints how a command ended and what it printed. A command that takes
# more than ``patience`` seconds is ended. (busybox's wget has a time-out of its own, and crashes with it.)
_TOOLS = f"""
ip link set lo up
ip link set eth0 up
say() {{
    name=$1
    shift
    out=$(timeout "$patience" "$@" 2>/dev/null)
    echo "{_MARK} $name $? $(echo -n "$out" | base64 | tr -d '\\n')"
}}
patience=20
"""


class Result(NamedTuple):
    status: int
    output: str


class GuestMachine:
    def __init__(self, host: Hypervisor, kernel: machine.Kernel, where: Path, tap: str, script: str) -> None:
        archive = machine.initramfs(
            where / f"{tap}.cpio", kernel, ("virtio_pci", "virtio_net"), {"script": _TOOLS + script}
        )
        self._process = host.popen(
            *machine.command(kernel, archive, *machine.network_card(tap, MAC)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def results(self) -> dict[str, Result]:
        """Wait until the guest has powered itself off; return what ``say`` printed, by name."""
        console, _ = self._process.communicate()
        if self._process.returncode != 0 or "Power down" not in console:
            pytest.fail(f"the guest did not power itself off ({self._process.returncode}):\n{console}")
        print(console)  # pytest shows it with a failure
        told = [line.split() for line in console.splitlines() if line.startswith(_MARK)]
        return {
            name: Result(int(status), base64.b64decode("".join(output)).decode())
            for _, name, status, *output in told
        }
