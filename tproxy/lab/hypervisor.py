"""A stand-in hypervisor: a host of its own inside this one, for the lab, the tests and the benchmark.

tproxy's names on a host are fixed, so each experiment gets a host where all of them are free: own
network, process, mount and UTS namespaces, with an empty /run and /var/log. The rest of the file
system is this machine's, so programs and the virtual environment are there.

Theory of operation. All hangs on one process, the stand-in's process 1 (``_init``). When it dies,
the kernel kills every process of its process namespace, and with the last one the namespaces, links,
tables and files are gone. It dies when its owner does: it reads from a pipe, the lifeline, of which
only the owner has the other end. (Not PR_SET_PDEATHSIG: that fires when the owner's *thread* ends.)
A line on the lifeline makes it stay.
Programs enter by nsenter(1) and die with it, so whoever kills the one kills the other.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tproxy.errors import ProcessError
from tproxy.model import SERVICE_ADDRESS

# Generous, for a loaded machine; nothing here takes a second. Under emulation some things do.
PATIENCE = float(os.environ.get("TPROXY_PATIENCE", "30"))  # seconds

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8  # <sys/mount.h>

# What the stand-in has of its own. /proc and /sys show the processes and links of the namespaces in
# which they are mounted.
_MOUNTS = (
    ("proc", "/proc", None),
    ("sysfs", "/sys", None),
    ("tmpfs", "/run", b"mode=755"),
    ("tmpfs", "/var/log", b"mode=755"),
)


class Hypervisor:
    """A stand-in host: ``start`` and ``close``, or ``with``. It goes with its creator."""

    def __init__(self) -> None:
        self._unshare: subprocess.Popen[str] | None = None
        self._programs: list[subprocess.Popen[str]] = []
        self._guests = 0
        self._kept = False
        self.pid = 0  # of its process 1, as seen from here

    def __enter__(self) -> Hypervisor:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if not self._kept:
            self.close()

    def start(self) -> Hypervisor:
        """Bring it up: no link but lo, no process but its first. Raises ProcessError."""
        unshare = ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--net", "--uts"]
        self._unshare = subprocess.Popen(
            [*unshare, *_python("init")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # the terminal's Ctrl-C is the owner's affair
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
        """Remove all of it; returns when no process is left."""
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
        """Let it outlive ``with`` and its creator, until ``close``, or ``kill`` of its ``pid``."""
        assert self._unshare is not None
        assert self._unshare.stdin is not None
        print("stay", file=self._unshare.stdin, flush=True)
        self._kept = True

    def path(self, inside: str) -> Path:
        """How a path of the stand-in is called from here."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def command(self, *argv: str, netns: str | None = None) -> list[str]:
        """The command that runs ``argv`` inside, in its namespace ``netns`` if given."""
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
        """Run a program to its end; ``env`` adds to the environment. ``check`` raises ProcessError."""
        done = subprocess.run(
            self.command(*argv, netns=netns),
            check=False,
            input=input,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # tests hand over names of any bytes
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
        """``popen`` a server, and return when it has printed ``ready``."""
        process = self.popen(*argv, netns=netns, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        _ready(process, f"{' '.join(argv)} does not start")
        return process

    def tproxy(
        self, *arguments: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command ``tproxy`` of this source tree."""
        return self.run(sys.executable, "-m", "tproxy", *arguments, check=check, env=env)

    def ip(self, *lines: str, netns: str | None = None) -> None:
        """Carry out many ``ip`` commands in one process."""
        self.run("ip", "-batch", "-", input="\n".join(lines) + "\n", netns=netns)

    def write(self, path: str, text: str) -> str:
        """Write a file below /run or /var/log, which are the stand-in's own; returns ``path``."""
        where = self.path(path)
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)
        return path

    def get(self, address: str, port: int, timeout: float = 20.0, netns: str | None = None) -> str:
        """What HTTP answers there. Raises ProcessError with the reason, such as ECONNREFUSED."""
        asked = self.run(*_python("ask", address, str(port), str(timeout)), check=False, netns=netns)
        if asked.returncode:
            raise ProcessError(asked.stderr.strip())
        return asked.stdout

    def add_bridge(self, name: str, mtu: int | None = None) -> None:
        # With "name" and "dev", a bridge may be called like one of ip's own words.
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
        """A namespace with one interface, eth0, on the bridge; ``route`` is the one guests need."""
        guest = Guest(self, name, bridge, f"vnet{self._guests}", address.partition("/")[0])
        self._guests += 1
        self.ip(
            f"netns add {name}",
            f"link add name {guest.port} type veth peer name eth0 netns {name}",
            f"link set dev {guest.port} master {bridge} up",
        )
        guest.ip("link set lo up", f"address add {address} dev eth0", "link set eth0 up")
        if route:
            guest.ip(f"route add {SERVICE_ADDRESS} dev eth0")
        if gateway:
            guest.ip(f"route add default via {gateway}")
        return guest

    def add_cable(self, other: Hypervisor, name: str) -> None:
        """A link of that name on this host and one on the other; what enters one leaves the other."""
        self._link(f"add name {name} type veth peer name {name} netns {other.pid}")
        for host in (self, other):
            host.ip(f"link set dev {name} up")

    def take_over(self, guest: Guest, origin: Hypervisor, bridge: str) -> Guest:
        """Live migration: the guest's port moves from its origin to a bridge here.

        All else of the guest stays where it is, so it runs on with what it knows.
        """
        port = f"vnet{self._guests}"
        self._guests += 1
        origin._link(f"set dev {guest.port} netns {self.pid} name {port}")
        self.ip(f"link set dev {port} master {bridge} up")
        return replace(guest, bridge=bridge, port=port)

    def _link(self, line: str) -> None:
        """``ip link`` on links of this host, with process numbers as seen from here."""
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
        """A server on an address of its own, to which no guest has a route.

        It answers HTTP with ``body``; or it is ``program``, which is given address and port, and
        prints ``ready`` when it listens.
        """
        self.ip(f"address replace {address}/32 dev lo", netns=netns)
        argv = [*program, address, str(port)] if program else _python("answer", address, str(port), body)
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

    def get(self, address: str, port: int, timeout: float = 20.0) -> str:
        return self.hypervisor.get(address, port, timeout, netns=self.name)


def kill(pid: int) -> None:
    """End a stand-in by its process 1; returns when no process is left in it."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        # Ready when process 1 has ended, which waits for all others, pid_namespaces(7).
        select.select([fd], [], [])
    finally:
        os.close(fd)


def _ready(process: subprocess.Popen[str], problem: str) -> str:
    """Wait until a program prints ``ready``; returns the rest of the line."""
    assert process.stdout is not None
    line = process.stdout.readline() if select.select([process.stdout], [], [], PATIENCE)[0] else "timeout"
    if not line.startswith("ready"):
        raise ProcessError(f"{problem}: {line.strip() or 'it said nothing'}")
    return line.removeprefix("ready").strip()


def _environment(added: Mapping[str, str] | None) -> dict[str, str]:
    # Entering a mount namespace ends in its root directory; this source tree is what is to be run.
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **(added or {})}


# What runs inside: python -m tproxy.hypervisor PROGRAM ARGUMENT...


def _python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", __spec__.name, program, *arguments]


def _init() -> None:
    """Process 1: make the host what it is, then hold it."""
    pid = os.readlink("/proc/self")  # as the process namespace of this /proc calls us
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, where, options in _MOUNTS:
        flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        if libc.mount(kind.encode(), where.encode(), kind.encode(), flags, options) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), where)
    socket.sethostname("hypervisor")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps orphans, sigaction(2)
    print("ready", pid, flush=True)
    while sys.stdin.readline():
        signal.pause()


def _answer(address: str, port: str, body: str) -> None:
    """A small HTTP server."""
    import socketserver

    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body.encode())}\r\nConnection: close\r\n\r\n"

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write((head + body).encode())

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that resets is its own affair, and nobody reads what we print."""

    with Server((address, int(port)), Answer) as server:
        print("ready", flush=True)
        server.serve_forever()


def _ask(address: str, port: str, timeout: str) -> None:
    """A small HTTP client: the body on stdout, or the reason on stderr."""
    try:
        with socket.create_connection((address, int(port)), float(timeout)) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
    except OSError as error:
        sys.exit(errno.errorcode.get(error.errno or 0, "ETIMEDOUT"))
    _, blank, body = answer.partition(b"\r\n\r\n")
    if not blank:
        sys.exit("closed without an answer")
    sys.stdout.buffer.write(body)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["init"]:
            _init()
        case ["answer", address, port, body]:
            _answer(address, port, body)
        case ["ask", address, port, timeout]:
            _ask(address, port, timeout)
