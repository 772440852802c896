"""A hypervisor as users have them: a virtual machine with Debian's plain kernel, and this machine's files.

Its root file system is this machine's, which it cannot write to, below one in memory that it can. So all
programs and this checkout are there. It runs one command; what that prints comes out through a directory
that both share.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.vm import machine

# 9p for the shares. The rest is loaded from the root file system.
_EARLY = ("virtio_pci", "9pnet_virtio", "9p", "overlay")

# What tests use, so that they need not know which program would have loaded it.
MODULES = ("nf_tables", "bridge", "nft_meta_bridge", "veth", "8021q", "vxlan", "sch_netem", "br_netfilter")

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
mount -t tmpfs -o mode=755 tmpfs /host/run
mkdir -p /host/dev/pts /host/dev/shm /host/run/results /host/lib/modules
mount -t devpts devpts /host/dev/pts
ln -s /proc/self/fd /host/dev/fd # as udev does
for each in 0:stdin 1:stdout 2:stderr; do ln -s fd/${{each%:*}} /host/dev/${{each#*:}}; done
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
busybox hostname {name}
{command} >/run/results/{name}.output 2>&1 </dev/null
echo $? >/run/results/{name}.status
sync
busybox poweroff -f
"""


class Outcome(NamedTuple):
    status: int | None  # None when the machine ended before its command did
    output: str
    console: str

    def __str__(self) -> str:
        return f"ended with {self.status}\n{self.output}\n--- console ---\n{self.console}"


class HostMachine:
    """A hypervisor that runs one command in this checkout's directory, and powers itself off.

    Its directory ``/run/results`` is ``results`` here; several machines can have the same.
    """

    def __init__(self, kernel: machine.Kernel, results: Path, name: str = "host") -> None:
        self._kernel, self._results, self._name = kernel, results, name

    def command(
        self,
        argv: Iterable[str],
        modules: Iterable[str],
        seconds: int,
        cards: Iterable[str] = (),
        memory: int = 1024,
    ) -> list[str]:
        """What starts it; all its output is the console."""
        texts = {
            "script": _ENTER.format(modules=shlex.quote(str(self._kernel.modules.parent))),
            "inside": _INSIDE.format(
                name=self._name,
                root=shlex.quote(str(machine.ROOT)),
                modules=" ".join(modules),
                command=shlex.join(argv),
            ),
        }
        archive = machine.initramfs(self._results / f"{self._name}.cpio", self._kernel, _EARLY, texts)
        shares = [
            *("-virtfs", "local,path=/,mount_tag=files,security_model=none,readonly=on,multidevs=remap"),
            *("-virtfs", f"local,path={self._results},mount_tag=results,security_model=none"),
        ]
        return machine.command(self._kernel, archive, *shares, *cards, memory=memory, cpus=2, seconds=seconds)

    def outcome(self, console: str) -> Outcome:
        """What came of it, when it has ended."""
        status, output = (self._results / f"{self._name}.{each}" for each in ("status", "output"))
        return Outcome(
            int(status.read_text()) if status.exists() else None,
            output.read_text(errors="replace") if output.exists() else "",
            console,
        )


def run_pytest(kernel: machine.Kernel, results: Path, arguments: Iterable[str], seconds: int) -> Outcome:
    """Start a hypervisor, run pytest there, and end it."""
    host = HostMachine(kernel, results)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout=600", *arguments]
    done = subprocess.run(
        host.command(command, MODULES, seconds),
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return host.outcome(done.stdout.decode(errors="replace"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        print(run_pytest(machine.Kernel("amd64"), Path(directory), sys.argv[1:], 3600))
