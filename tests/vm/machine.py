"""Real machines, emulated by QEMU: Debian's kernels, started from a small file system in memory.

Theory of operation. `.ci/setup vm` unpacks the kernels below build/vm. A machine gets a kernel and an
initramfs: busybox, the modules it needs before it has a root file system, and a script that process 1
runs. What the script prints goes to the serial console, which is QEMU's whole output. The machine ends
when the script does. KVM is not used: most places where tests run do not have it, and where it seems to be
there it may not work.

Emulation makes Python and forking 20 to 35 times slower, so nothing in a machine has a tight time-out.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "build/vm"

PROGRAMS = ("qemu-system-x86_64", "busybox", "cpio", "modprobe", "timeout")

# Process 1. It runs the script in the same shell, so that the script can hand over to another process 1.
_INIT = """#!/bin/sh
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
echo # the BIOS leaves the console in the middle of a line
for module in $(cat /modules/order); do insmod /modules/$module; done
. /script
poweroff -f
"""

# With these options the machine has no network card and no disk unless they are given, and a panic ends it.
# (Not microvm: it has one clock, and on a busy host the kernel fails to measure it and waits for ever.)
_QEMU = (
    *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "Nehalem-v1"),
    *("-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"),
)
# Mitigations cost a flush of the emulator's tables at each system call: without them the machine is twice as
# fast. The kernel's check of its timer can fail on a busy host, where ticks come late.
_CMDLINE = "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off init_on_alloc=0 audit=0"


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel of Debian's: ``cloud-amd64`` for guests; ``amd64``, with more modules, for hosts."""

    flavour: str

    @property
    def tree(self) -> Path:
        return KERNELS / self.flavour

    @property
    def present(self) -> bool:
        return any(self.tree.glob("boot/vmlinuz-*"))

    @property
    def image(self) -> Path:
        (image,) = self.tree.glob("boot/vmlinuz-*")
        return image

    @property
    def version(self) -> str:
        return self.image.name.removeprefix("vmlinuz-")

    @property
    def modules(self) -> Path:
        return self.tree / "lib/modules" / self.version

    def files_of(self, *modules: str) -> list[Path]:
        """Return the files of these modules and of those they need, in the order in which they load."""
        command = ["modprobe", "-d", str(self.tree), "-S", self.version, "--show-depends", "-a", *modules]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        loads = [line.split()[1] for line in listed.splitlines() if line.startswith("insmod ")]
        return list(map(Path, dict.fromkeys(loads)))


def initramfs(where: Path, kernel: Kernel, modules: Sequence[str], files: Mapping[str, str]) -> Path:
    """Pack a file system for process 1, which runs the ``script`` among the ``files``, into ``where``."""
    loads = kernel.files_of(*modules)
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        for each in ("bin", "modules"):
            (tree / each).mkdir()
        busybox = shutil.which("busybox")
        assert busybox is not None
        shutil.copy(busybox, tree / "bin/busybox")
        (tree / "bin/sh").symlink_to("busybox")
        for load in loads:
            shutil.copy(load, tree / "modules")
        (tree / "modules/order").write_text("\n".join(load.name for load in loads))
        for path, text in {"init": _INIT, **files}.items():
            (tree / path).write_text(text)
            (tree / path).chmod(0o755)
        names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        pack = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"]
        with where.open("wb") as archive:
            subprocess.run(pack, check=True, cwd=tree, input=names.encode(), stdout=archive)
    return where


def command(
    kernel: Kernel, archive: Path, *options: str, memory: int = 256, cpus: int = 1, seconds: int = 120
) -> list[str]:
    """Return the command that starts a machine, and ends it after ``seconds``."""
    return [
        *("timeout", "--kill-after=5", str(seconds), *_QEMU, "-m", str(memory), "-smp", str(cpus)),
        *("-kernel", str(kernel.image), "-initrd", str(archive), "-append", _CMDLINE, *options),
    ]


def network_card(tap: str, mac: str, number: int = 0) -> list[str]:
    """Return the options for a network card on a tap of the network namespace in which QEMU runs."""
    return [
        *("-netdev", f"tap,id=net{number},ifname={tap},script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=net{number},mac={mac},romfile="),
    ]
