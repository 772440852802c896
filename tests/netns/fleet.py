"""A stand-in workstation, and stand-in hypervisors that it reaches by ssh; each has an sshd of its own.

This machine's ssh files are neither read nor written: keys, configurations and known hosts are below /run,
and each stand-in has its own /run. (sshd needs the user sshd, which Debian's package makes.)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Guest, Hypervisor

SSHD = "/usr/sbin/sshd"
SSH_CONFIG = "/run/ssh/config"
PORT = 2222
CONFIG = "/run/etc/tproxy.yaml"  # the configuration file of each host
# Its content before and after a test: the service of port 80 gets another endpoint.
OLD = "tproxy: [{remote_addr: 10.11.12.13, remote_port: 80}]\n"
NEW = "tproxy: [{remote_addr: 10.11.12.14, remote_port: 80}]\n"
SOURCE = Path(__file__).parents[2]

# The command tproxy of a session there: it runs this source tree.
_TPROXY = f"""#!/bin/sh
export PYTHONPATH={SOURCE} TPROXY_CONFIG=${{TPROXY_CONFIG-{CONFIG}}}
exec {sys.executable} -m tproxy "$@"
"""

_SSHD_CONFIG = f"""
Port {PORT}
HostKey /run/ssh/host_key
AuthorizedKeysFile /run/ssh/authorized_keys
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
SetEnv PATH=/run/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""

_CLIENT_CONFIG = f"""
Host *
    User root
    Port {PORT}
    IdentityFile /run/ssh/key
    IdentitiesOnly yes
    UserKnownHostsFile /run/ssh/known_hosts
    GlobalKnownHostsFile none
    StrictHostKeyChecking accept-new
    ConnectTimeout 20
"""


def require_sshd() -> None:
    """Skip the test without sshd. In CI it fails: there nobody would notice that it was skipped."""
    if shutil.which(SSHD) is None:
        reason = "needs sshd (package openssh-server)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


class Fleet:
    """A workstation, and hosts that it reaches by their addresses, which are the keys of ``hosts``."""

    def __init__(self, workstation: Hypervisor, hosts: dict[str, Hypervisor]) -> None:
        self.workstation = workstation
        self.hosts = hosts

    @property
    def addresses(self) -> list[str]:
        return list(self.hosts)

    def files(self) -> list[str]:
        """Return the content of each host's configuration file; no other file may be beside it."""
        for host in self.hosts.values():
            assert [each.name for each in host.path(CONFIG).parent.iterdir()] == [Path(CONFIG).name]
        return [host.path(CONFIG).read_text() for host in self.hosts.values()]

    def add_guest(self, address: str) -> Guest:
        """Add a guest on a bridge of that host, and the endpoints of both contents of the file."""
        host = self.hosts[address]
        host.add_bridge("br0")
        guest = host.add_guest("guest", "br0")
        host.add_endpoint("10.11.12.13", 80, "old")
        host.add_endpoint("10.11.12.14", 80, "new")
        host.tproxy("hook", "up", "--bridge", "br0", "--network", "vnet1", "--config", CONFIG)
        assert guest.get(SERVICE_ADDRESS, 80) == "old"
        return guest

    def add_map_of_another_program(self, address: str) -> None:
        """Add a bridge of that host which does not follow the configuration file."""
        self.hosts[address].ip("link add br9 type bridge", "netns add one_tproxy_br9")
        found = "map ip one_tproxy ep_br9 { type inet_service : ipv4_addr . inet_service; }"
        self.hosts[address].run("nft", f"add table ip one_tproxy; add {found}")

    def sync(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        ssh = ("--ssh", f"ssh -F {SSH_CONFIG}", "--remote-path", CONFIG)
        return self.workstation.tproxy("sync", *ssh, *arguments, check=check)


@contextmanager
def fleet(count: int) -> Iterator[Fleet]:
    """Build a workstation and ``count`` hosts; sshd listens on each."""
    require_sshd()
    with ExitStack() as stack:
        workstation = stack.enter_context(Hypervisor())
        workstation.write(SSH_CONFIG, _CLIENT_CONFIG)
        _make_key(workstation, "/run/ssh/key")
        public = workstation.path("/run/ssh/key.pub").read_text()
        hosts = {}
        for number in range(count):
            host = stack.enter_context(Hypervisor())
            address = f"10.77.{number}.2"
            workstation.add_cable(host, f"cable{number}")
            workstation.ip(f"address add 10.77.{number}.1/30 dev cable{number}")
            host.ip(f"address add {address}/30 dev cable{number}")
            _start_sshd(host, public)
            hosts[address] = host
        yield Fleet(workstation, hosts)


def _start_sshd(host: Hypervisor, public_key: str) -> None:
    _make_key(host, "/run/ssh/host_key")
    host.write("/run/ssh/authorized_keys", public_key)
    host.write("/run/ssh/sshd_config", _SSHD_CONFIG)
    host.path("/run/bin").mkdir()
    host.run("mount", "-t", "tmpfs", "tmpfs", "/run/bin")  # /run itself is mounted noexec
    host.write("/run/bin/tproxy", _TPROXY)
    host.path("/run/bin/tproxy").chmod(0o755)
    host.path("/run/sshd").mkdir()  # sshd's own chroot, empty
    host.path(CONFIG).parent.mkdir()
    # Without -D this command returns when sshd listens.
    host.run(SSHD, "-f", "/run/ssh/sshd_config", "-E", "/run/ssh/log")


def _make_key(host: Hypervisor, path: str) -> None:
    host.path(path).parent.mkdir(exist_ok=True)
    host.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tproxy tests", "-f", path)
