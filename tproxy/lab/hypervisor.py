"""A stand-in hypervisor: a host inside this one, for the lab, the tests and the benchmark.

tproxy's names on a host are fixed, so each experiment gets a host where all of them are free. It has network,
process, mount and UTS namespaces of its own, with an empty /run and /var/log. The rest of the file system is
this machine's, so programs and the virtual environment are there.

Theory of operation. The stand-in lives as long as one process, its process 1 (``inside.init``). When that
ends, the kernel kills every process of its process namespace, and with the last of them the namespaces,
links, tables and files disappear. Process 1 ends when its owner does: it reads from a pipe, the lifeline, and
only the owner has the other end. (Not PR_SET_PDEATHSIG: that fires when the owner's *thread* ends.) A line on
the lifeline makes it stay.

Programs enter with nsenter(1), and the kernel kills them when their nsenter is killed.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab import asking

# Seconds to wait for what takes less than a second on an idle machine. Emulation takes longer.
PATIENCE = float(os.environ.get("TPROXY_PATIENCE", "30"))


class Hypervisor:
    """A stand-in host, from ``start`` to ``close``, or for a ``with`` block. It ends with its creator."""

    def __init__(self) -> None:
        self._unshare: subprocess.Popen[str] | None = None
        self._programs: list[subprocess.Popen[str]] = []
        self._guests = 0
        self._kept = False
        self.pid = 0  # of its process 1, in this process namespace

    def __enter__(self) -> Hypervisor:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if not self._kept:
            self.close()

    def start(self) -> Hypervisor:
        """Start the stand-in, with the link lo and one process. Raises ProcessError."""
        unshare = ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--net", "--uts"]
        self._unshare = subprocess.Popen(
            [*unshare, *_program("init")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C on the terminal must reach the owner only
            cwd="/",
            env=_environment(None),
        )
        try:
            self.pid = int(_ready(self._unshare, "cannot build a stand-in hypervisor"))
            self.ip("link set lo up")
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Remove the stand-in; return when it has no process left."""
        if self.pid:
            kill(self.pid)
            self.pid = 0
        for process in [*self._programs, *filter(None, [self._unshare])]:
            process.kill()
            with process:  # closes the pipes and waits
                pass
        self._programs.clear()
        self._unshare = None

    def keep(self) -> None:
        """Make the stand-in outlive ``with`` and its creator, until ``close``, or ``kill`` of its ``pid``."""
        assert self._unshare is not None
        assert self._unshare.stdin is not None
        print("stay", file=self._unshare.stdin, flush=True)
        self._kept = True

    def path(self, inside: str) -> Path:
        """Return the path by which this host reaches a path of the stand-in."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def command(self, *argv: str, netns: str | None = None) -> list[str]:
        """Return the command that runs ``argv`` in the stand-in, and in its namespace ``netns`` if given."""
        net = f"={self.path('/run/netns')}/{netns}" if netns else ""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--uts", f"--net{net}"]
        return [*enter, "setpriv", "--pdeathsig=KILL", *argv]

    def run(
        self,
        *argv: str,
        check: bool = True,
        input: str = "",  # noqa: A002 - as subprocess.run calls it
        timeout: float = PATIENCE,
        netns: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program and wait for its end; ``env`` adds to the environment.

        With ``check``, raises ProcessError when the exit code is not 0.
        """
        done = subprocess.run(
            self.command(*argv, netns=netns),
            check=False,
            input=input,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # tests use names of any bytes
            timeout=timeout,
            env=_environment(env),
        )
        if check and done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise ProcessError(f"{' '.join(argv)} ended with {done.returncode}: {said}")
        return done

    def popen(
        self, *argv: str, netns: str | None = None, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start a program that runs until it is killed, or until the stand-in ends."""
        options = {"stdin": subprocess.DEVNULL, "text": True, "start_new_session": True} | options
        process = subprocess.Popen(self.command(*argv, netns=netns), env=_environment(env), **options)
        self._programs.append(process)
        return process

    def serve(
        self, *argv: str, netns: str | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a server with ``popen``, and return when it has printed ``ready``."""
        process = self.popen(*argv, netns=netns, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        _ready(process, f"{' '.join(argv)} does not start")
        return process

    def tproxy(
        self, *arguments: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command ``tproxy`` of this source tree."""
        return self.run(sys.executable, "-m", "tproxy", *arguments, check=check, env=env)

    def ip(self, *lines: str, netns: str | None = None) -> None:
        """Run many ``ip`` commands in one process."""
        self.run("ip", "-batch", "-", input="\n".join(lines) + "\n", netns=netns)

    def write(self, path: str, text: str) -> str:
        """Write a file below /run or /var/log, which the stand-in does not share; return ``path``."""
        where = self.path(path)
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)
        return path

    def get(self, address: str, port: int, timeout: float = PATIENCE, netns: str | None = None) -> str:
        """Return the body of an HTTP answer. Raises ProcessError with the reason, such as ECONNREFUSED."""
        # This thread asks, which takes a hundredth of the time of a program that does.
        namespace = self.path(f"/run/netns/{netns}") if netns else Path(f"/proc/{self.pid}/ns/net")
        with asking.inside(namespace):
            return asking.ask(address, port, timeout).decode(errors="surrogateescape")

    def add_bridge(self, name: str, mtu: int | None = None) -> None:
        # With "name" and "dev", a bridge can have a name that is a keyword of ip.
        self.ip(f"link add name {name} {f'mtu {mtu}' if mtu else ''} type bridge", f"link set dev {name} up")

    def add_guest(
        self,
        name: str,
        bridge: str,
        address: str = "10.0.0.5/24",
        *,
        route: bool = True,
        gateway: str | None = None,
    ) -> Guest:
        """Make a namespace with one interface, eth0, on the bridge, and the ``route`` that guests need."""
        guest = Guest(self, name, bridge, f"vnet{self._guests}", address.partition("/")[0])
        self._guests += 1
        self.ip(
            f"netns add {name}",
            f"link add name {guest.port} type veth peer name eth0 netns {name}",
            f"link set dev {guest.port} master {bridge} up",
        )
        lines = ["link set lo up", f"address add {address} dev eth0", "link set eth0 up"]
        if route:
            lines.append(f"route add {SERVICE_ADDRESS} dev eth0")
        if gateway:
            lines.append(f"route add default via {gateway}")
        guest.ip(*lines)
        return guest

    def add_cable(self, other: Hypervisor, name: str) -> None:
        """Connect this host and the other by a veth pair whose ends both have this name."""
        self._link(f"add name {name} type veth peer name {name} netns {other.pid}")
        for host in (self, other):
            host.ip(f"link set dev {name} up")

    def take_over(self, guest: Guest, origin: Hypervisor, bridge: str) -> Guest:
        """Migrate a guest live: its port moves from the origin to a bridge of this host.

        Everything else of the guest stays where it is, so its ARP cache and connections go on.
        """
        port = f"vnet{self._guests}"
        self._guests += 1
        origin._link(f"set dev {guest.port} netns {self.pid} name {port}")
        self.ip(f"link set dev {port} master {bridge} up")
        return replace(guest, bridge=bridge, port=port)

    def _link(self, line: str) -> None:
        """Run ``ip link`` on the links of the stand-in, with process ids of this process namespace."""
        command = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", "link", *line.split()]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise ProcessError(f"ip link {line} ended with {done.returncode}: {done.stderr.strip()}")

    def add_endpoint(
        self,
        address: str,
        port: int,
        body: str = "hello\n",
        *,
        program: tuple[str, ...] = (),
        netns: str | None = None,
    ) -> subprocess.Popen[str]:
        """Start a server on an address of its own, to which no guest has a route.

        It answers HTTP with ``body``. Or it is ``program``, which gets address and port as its last
        arguments, and prints ``ready`` when it listens.
        """
        self.ip(f"address replace {address}/32 dev lo", netns=netns)
        argv = [*program, address, str(port)] if program else _program("answer", address, str(port), body)
        return self.serve(*argv, netns=netns)


@dataclass(frozen=True)
class Guest:
    """A network namespace of the stand-in that plays a virtual machine."""

    hypervisor: Hypervisor
    name: str
    bridge: str
    port: str
    address: str

    def ip(self, *lines: str) -> None:
        self.hypervisor.ip(*lines, netns=self.name)

    def run(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.hypervisor.run(*argv, netns=self.name, **options)

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        return self.hypervisor.popen(*argv, netns=self.name, **options)

    def get(self, address: str, port: int, timeout: float = PATIENCE) -> str:
        return self.hypervisor.get(address, port, timeout, netns=self.name)


def kill(pid: int) -> None:
    """End a stand-in by its process 1; return when it has no process left."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        # The descriptor is readable when process 1 has ended, which waits for all others, pid_namespaces(7).
        select.select([fd], [], [])
    finally:
        os.close(fd)


def _ready(process: subprocess.Popen[str], problem: str) -> str:
    """Wait until a program prints ``ready``; return the rest of the line."""
    assert process.stdout is not None
    line = process.stdout.readline() if select.select([process.stdout], [], [], PATIENCE)[0] else "timeout"
    if not line.startswith("ready"):
        raise ProcessError(f"{problem}: {line.strip() or 'it printed nothing'}")
    return line.removeprefix("ready").strip()


def _environment(added: Mapping[str, str] | None) -> dict[str, str]:
    # Entering a mount namespace changes to its root directory, and the stand-in must run this source tree. It
    # shares /var/lib, so what would be there is in its own /run.
    ours = {"PYTHONPATH": str(Path(__file__).parents[2]), "TPROXY_GATEWAY_STATE": "/run/gateway-state"}
    return {**os.environ, **ours, **(added or {})}


def _program(name: str, *arguments: str) -> list[str]:
    """Return the command of a program of ``inside``."""
    return [sys.executable, "-m", "tproxy.lab.inside", name, *arguments]
