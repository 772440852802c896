"""A stand-in hypervisor with libvirt's own daemon, which starts real machines and calls our hooks.

`.ci/setup vm` unpacks libvirt below build/vm/libvirt. Overlays put it over the stand-in's /usr; what libvirt
writes to /etc and /var/lib stays in memory.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.netns.waiting import eventually
from tests.vm import machine
from tproxy.lab.hypervisor import Hypervisor

TREE = machine.KERNELS / "libvirt"
URI = "qemu:///system"

_LAYERS = f"""
set -e
mount -t tmpfs none /mnt
mkdir /mnt/etc /mnt/etc.work /mnt/lib /mnt/lib.work
mount -t overlay -o lowerdir={TREE}/usr:/usr none /usr
mount -t overlay -o lowerdir={TREE}/etc:/etc,upperdir=/mnt/etc,workdir=/mnt/etc.work none /etc
mount -t overlay -o lowerdir=/var/lib,upperdir=/mnt/lib,workdir=/mnt/lib.work none /var/lib
mount -t tmpfs none /var/cache
getent passwd libvirt-qemu || echo libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin >>/etc/passwd
getent group libvirt-qemu || echo libvirt-qemu:x:64055: >>/etc/group
getent group kvm || echo kvm:x:64056: >>/etc/group
"""

# Everything runs as root and without helper processes; migration goes over TCP. Two hosts on one machine must
# have different UUIDs.
_LIBVIRTD = """
auth_unix_rw = "none"
listen_tls = 0
listen_tcp = 1
auth_tcp = "none"
host_uuid = "00000000-0000-4000-8000-00000000000{number}"
"""
_QEMU = """
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
"""

_NETWORK = "<network><name>{name}</name><bridge name='{bridge}' stp='off'/></network>"
_DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>256</memory>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>console=ttyS0 quiet panic=-1</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact' check='none'><model>Nehalem</model></cpu>
  <on_reboot>destroy</on_reboot>
  <devices>
    {interfaces}
    <serial type='file'><source path='/mnt/{name}.log'/></serial>
    <controller type='pci' model='pcie-root'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>"""
_INTERFACE = """<interface type='{kind}'>
      <source {kind}='{name}'/><model type='virtio'/><rom enabled='no'/>
    </interface>"""


class Libvirtd:
    def __init__(self, host: Hypervisor, number: int = 0) -> None:
        self.host = host
        host.run("sh", "-c", _LAYERS)
        host.write("/etc/libvirt/libvirtd.conf", _LIBVIRTD.format(number=number))
        host.write("/etc/libvirt/qemu.conf", _QEMU)
        host.tproxy("install", "libvirt")
        self._daemon = self._start()

    def virsh(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        # The first call waits for libvirt's questions to QEMU, which take seconds on a loaded machine.
        return self.host.run("virsh", "-c", URI, *arguments, check=check, timeout=90)

    def restart(self, meanwhile: str = "true") -> None:
        """End the daemon and start it again, as an upgrade does; guests run on."""
        self.host.run("pkill", "-x", "libvirtd")
        self._daemon.wait()
        self.host.run("sh", "-c", meanwhile)
        self._daemon = self._start()

    def add_network(self, name: str, bridge: str) -> None:
        path = self.host.write(f"/mnt/{name}.xml", _NETWORK.format(name=name, bridge=bridge))
        self.virsh("net-define", path)
        self.virsh("net-start", name)

    def define(self, name: str, kernel: machine.Kernel, initrd: Path, **nics: str) -> None:
        """Define a guest with network cards on bridges and networks: ``bridge="br0", network="blue"``."""
        interfaces = "".join(_INTERFACE.format(kind=kind, name=each) for kind, each in nics.items())
        xml = _DOMAIN.format(name=name, kernel=kernel.image, initrd=initrd, interfaces=interfaces)
        self.virsh("define", self.host.write(f"/mnt/{name}.xml", xml))

    def console(self, name: str) -> str:
        """Return what a guest has printed to its console on this host."""
        path = self.host.path(f"/mnt/{name}.log")
        return path.read_text(errors="replace") if path.exists() else ""

    def state(self, name: str) -> str:
        return self.virsh("domstate", name).stdout.strip()

    def _start(self) -> subprocess.Popen[str]:
        daemon = self.host.popen("libvirtd", "--listen", stderr=subprocess.DEVNULL)
        for _ in eventually():
            if self.virsh("list", check=False).returncode == 0:
                break
        return daemon
