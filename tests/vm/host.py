"""A hypervisor as users have it: a virtual machine with Debian's plain kernel, and this machine's files.

Its root file system is an overlay: this machine's file system, read-only, below one in memory that can be
written to. So all programs and this checkout are there. The machine runs one command, and writes what the
command prints into a directory that both machines share.
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

# Modules that tests use; on a real host the programs that need them would have loaded them.
MODULES = ("nf_tables", "bridge", "nft_meta_bridge", "veth", "8021q", "vxlan", "sch_netem", "br_netfilter")

# Builds that root file system and hands over to process 1 there. Not by chroot(2) alone: a process that
# enters a mount namespace gets the root directory of the namespace.
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
# Compiling is slow here, and files that are written take memory.
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
        """Return the command that starts the machine; its output is the console."""
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
        """Return how the machine's command ended, when the machine has ended."""
        status, output = (self._results / f"{self._name}.{each}" for each in ("status", "output"))
        return Outcome(
            int(status.read_text()) if status.exists() else None,
            output.read_text(errors="replace") if output.exists() else "",
            console,
        )


def run_pytest(kernel: machine.Kernel, results: Path, arguments: Iterable[str], seconds: int) -> Outcome:
    """Start a hypervisor, run pytest there, and return how that ended."""
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
