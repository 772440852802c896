"""A guest with files of its own and no route but that to the service address, which runs shell commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tproxy.errors import ProcessError
from tproxy.lab import hypervisor
from tproxy.lab.hypervisor import PATIENCE, Hypervisor

CONFIG = "/run/tproxy.yaml"

# What docs/egress.md tells to offer to guests.
SERVICES = """\
tproxy_hypervisor_name: hv1
tproxy:
- {service_port: 3128, remote_addr: 127.0.0.1, remote_port: 3128, proxy_protocol: v2}
- {service_port: 8443, remote_addr: 127.0.0.1, remote_port: 8443, proxy_protocol: v2}
- {service_port: 443, remote_addr: 127.0.0.1, remote_port: 443, proxy_protocol: v2}
- {service_port: 8480, remote_addr: 127.0.0.1, remote_port: 8480}
- {service_port: 53, remote_addr: 127.0.0.1, remote_port: 5353, protocol: [tcp, udp]}
"""

# Of all guests: each is in a network of its own.
ADDRESS = "10.0.0.5/24"

_FILES = Path(__file__).with_name("guest.sh")

# Directories that a guest sees as they are: pip, uv and ansible-galaxy are where this Python is.
_SHARED = tuple(dict.fromkeys((str(Path(__file__).parents[3]), sys.prefix)))
_BIN = Path(sys.executable).parent


class Guest:
    """A guest of a network, on a bridge of its own. In ``folder`` it has a directory to work in."""

    def __init__(self, host: Hypervisor, folder: Path, name: str, network: str) -> None:
        bridge = f"br-{name}"
        host.add_bridge(bridge)
        self.host, self.name = host, name
        self.machine = host.add_guest(name, bridge, ADDRESS)
        host.tproxy("hook", "up", "--bridge", bridge, "--network", network, "--config", CONFIG)
        work = folder / name
        work.mkdir()
        program = ("unshare", "--mount", "--uts", "sh", str(_FILES), str(work), name, *_SHARED)
        holder = host.popen(*program, netns=name, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._pid = hypervisor._ready(holder, "cannot give a guest its files")

    @property
    def mac(self) -> str:
        shown = self.machine.run("ip", "-o", "link", "show", "eth0").stdout
        return shown.partition("link/ether ")[2].split()[0]

    def sh(self, script: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a script as root in a login shell; with ``check``, raise ProcessError when it fails.

        Programs of this Python's environment are found behind the system's.
        """
        enter = ("nsenter", "--target", self._pid, "--mount", "--uts", "--net", "--root", "--wd")
        clean = ("env", "-i", "HOME=/root", "LC_ALL=C.UTF-8", "ANSIBLE_NOCOLOR=1")
        done = subprocess.run(
            self.host.command(*enter, *clean, "sh", "-lc", f"PATH=$PATH:{_BIN}; {script}"),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE * 3,
            check=False,
        )
        if check and done.returncode:
            raise ProcessError(f"guest {self.name}: {script}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def set_up(self) -> None:
        """Do what docs/egress.md tells guests to do."""
        self.sh("curl -sSf http://169.254.16.9:8480/setup >/root/setup && sh /root/setup")

    def use_debian(self, source: str, key: str = "") -> None:
        """Know one Debian repository, by its line of sources.list, and nothing of this machine's set-up."""
        self.sh(
            "rm -rf /etc/pip.conf /var/lib/apt/lists/*; cd /etc/apt; "
            "rm -rf sources.list.d/* preferences.d/* apt.conf.d/*; "
            f"cat >/root/debian.asc <<'END'\n{key}\nEND\n"
            f"cat >/etc/apt/sources.list <<'END'\n{source}\nEND\n"
            'echo \'APT::Sandbox::User "root"; Acquire::Languages "none"; Acquire::Retries "0";\' '
            ">/etc/apt/apt.conf.d/99lab"
        )
