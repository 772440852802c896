"""A hypervisor as users have them: a virtual machine with Debian's plain kernel, and this machine's files.

Its root file system is this machine's, which it cannot write to, below one in memory that it can. So all
programs and this checkout are there. It runs one command; what that prints comes out through a directory
that both share.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.vm import machine

_OUTPUT, _STATUS = "output", "status"

# 9p for the shares. The rest is loaded from the root file system.
_EARLY = ("virtio_pci", "9pnet_virtio", "9p", "overlay")

# What a root file system on disk would be, and process 1 hands over to the one there. Not by chroot
# alone: who enters a mount namespace gets the root that this has.
_ENTER = """
share() {{ mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,$3 $1 $2; }}
mkdir /files /memory /host
share files /files ro,cache=loose
mount -t tmpfs memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/files,upperdir=/memory/upper,workdir=/memory/work overlay /host
for each in proc sys dev; do mount -o move /$each /host/$each; done
for each in run tmp var/log; do mount -t tmpfs -o mode=1755 tmpfs /host/$each; done
mkdir -p /host/dev/pts /host/dev/shm /host/run/results /host/lib/modules
mount -t devpts devpts /host/dev/pts
share results /host/run/results rw,cache=none
mount -o bind /host{modules} /host/lib/modules
cp /inside /host/run/inside
exec switch_root /host /bin/sh /run/inside
"""

_INSIDE = """
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
export CI=true TPROXY_MACHINE=yes TPROXY_PATIENCE=200
# Compiling is slow here, and what is written goes to memory.
export PYTHONDONTWRITEBYTECODE=
cd {root}
ip link set lo up
modprobe -a {modules}
{command} >/run/results/{output} 2>&1 </dev/null
echo $? >/run/results/{status}
sync
busybox poweroff -f
"""


class Outcome(NamedTuple):
    status: int | None  # None when the machine ended before its command did
    output: str
    console: str

    def __str__(self) -> str:
        return f"ended with {self.status}\n{self.output}\n--- console ---\n{self.console}"


def run_inside(
    kernel: machine.Kernel, where: Path, argv: Iterable[str], modules: Iterable[str], seconds: int
) -> Outcome:
    """Start a hypervisor, run a command in this checkout's directory there, and end it."""
    results = where / "results"
    results.mkdir()
    texts = {
        "script": _ENTER.format(modules=shlex.quote(str(kernel.modules.parent))),
        "inside": _INSIDE.format(
            root=shlex.quote(str(machine.ROOT)),
            modules=" ".join(modules),
            command=shlex.join(argv),
            output=_OUTPUT,
            status=_STATUS,
        ),
    }
    archive = machine.initramfs(where / "host.cpio", kernel, _EARLY, texts)
    shares = [
        *("-virtfs", "local,path=/,mount_tag=files,security_model=none,readonly=on,multidevs=remap"),
        *("-virtfs", f"local,path={results},mount_tag=results,security_model=none"),
    ]
    command = machine.command(kernel, archive, *shares, memory=1024, cpus=2, seconds=seconds)
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    console = done.stdout.decode(errors="replace")
    return Outcome(*_read(results), console)


def _read(results: Path) -> tuple[int | None, str]:
    status, output = results / _STATUS, results / _OUTPUT
    return (
        int(status.read_text()) if status.exists() else None,
        output.read_text(errors="replace") if output.exists() else "",
    )


def pytest_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
