"""A stand-in hypervisor with a watcher, and what tests ask of the two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from tests.netns.program import program
from tests.netns.ruleset import lasting
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest, Hypervisor

CONFIG = "/run/tproxy.yaml"
ENDPOINT = "10.11.12.13"
LOG = "/var/log/one_tproxy.log"


class Host:
    """A stand-in with one endpoint, and a configuration in which the watcher brings up the bridges br*."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.hypervisor = hypervisor
        hypervisor.add_endpoint(ENDPOINT, 8080, "one")
        self.configure()

    def configure(
        self, grace: float = 0.5, port: int = 5030, remote_port: int = 8080, more: str = ""
    ) -> None:
        self.hypervisor.write(
            CONFIG,
            f"tproxy_watch_grace: {grace}\n"
            "tproxy_bridges: [{bridge: 'br*', network: blue, uplinks: [up0]}]\n"
            "tproxy:\n"
            f"- {{service_port: {port}, remote_addr: {ENDPOINT}, remote_port: {remote_port}}}\n{more}",
        )

    def watch(self, *by: str, config: str = CONFIG) -> int:
        """Start a watcher; return its pid as soon as it watches. ``by``: a command that runs the watcher."""
        self.program = self.hypervisor.popen(*by, sys.executable, "-m", "tproxy", "watch", "--config", config)
        self.watcher = int(self.wait_for_line("watching bridges").split()[1])
        return self.watcher

    def watch_with_clock(self, clock: str = "running") -> int:
        """As ``watch``, with a clock that ``pass_time`` puts forward.

        A "standing" clock does not go on by itself, a "running" one does.
        """
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 1}
        self.program = self.hypervisor.popen(*program("watcher_with_clock", clock, CONFIG), **pipes)
        self.watcher = int(self.wait_for_line("watching bridges").split()[1])
        return self.watcher

    def pass_time(self, seconds: float) -> None:
        """Let so much time pass for the watcher; return when it has done everything that was due in it."""
        assert self.program.stdin
        assert self.program.stdout
        # The notes of hooks' calls must be older, too.
        for note in self.hypervisor.path("/run/tproxy").glob("*/used/*"):
            with suppress(FileNotFoundError):  # the bridge is being taken down
                called = note.stat().st_mtime
                os.utime(note, (called - seconds, called - seconds))
        print(seconds, file=self.program.stdin, flush=True)
        assert self.program.stdout.readline() == "done\n"

    def watched_file(self) -> str:
        """Return the configuration file for which the daemon keeps a watcher; empty when it keeps none."""
        ask = "from tproxy.daemon import client; print((client.ping() or {}).get('watch', ''))"
        return self.hypervisor.run(sys.executable, "-c", ask).stdout.strip()

    def signal(self, name: str, pid: int) -> None:
        self.hypervisor.run("kill", f"-{name}", str(pid))

    def has_ended(self, pid: int) -> bool:
        """Whether the process has ended. It may still be a zombie, which nsenter(1) reaps later."""
        status = self.hypervisor.path(f"/proc/{pid}/status")
        try:
            return "\nState:\tZ" in status.read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    @contextmanager
    def paused(self, pid: int) -> Iterator[None]:
        """Stop the watcher for the time of the ``with`` block."""
        self.signal("STOP", pid)
        try:
            yield
        finally:
            # nsenter stops itself when the watcher stops, and continues the watcher when it is continued.
            for _ in eventually():
                if psutil.Process(self.program.pid).status() == psutil.STATUS_STOPPED:
                    break
            self.program.send_signal(signal.SIGCONT)

    def wait_for_line(self, what: str, times: int = 1) -> str:
        """Wait until the log has so many lines with this text; return the last of them."""
        lines: list[str] = []
        for _ in eventually():
            lines = [line for line in self.log().splitlines() if what in line]
            if len(lines) >= times:
                break
        return lines[-1]

    def wait_for_repair(self, bridge: str, what: str) -> None:
        """Wait until the log has a line about this repair of the bridge."""
        for _ in eventually():
            lines = self.log().split(f"bridge {bridge} was broken; repaired: ")[1:]
            if any(what in line.splitlines()[0] for line in lines):
                break

    def wait_until_watched(self, *bridges: str) -> None:
        """Wait until the watcher knows these bridges in good order, and no others."""
        # When it has seen a bridge in good order, it opens sysctl files of the bridge's namespace (probe).
        files = [f"/proc/sys/net/ipv4/conf/{bridge}a/arp_ignore" for bridge in sorted(bridges)]
        folder = self.hypervisor.path(f"/proc/{self.watcher}/fd")
        for _ in eventually():
            with suppress(FileNotFoundError):  # it has just closed one
                held = [os.readlink(each) for each in folder.iterdir()]
                if sorted(each for each in held if each.endswith("a/arp_ignore")) == files:
                    break

    def log(self) -> str:
        path = self.hypervisor.path(LOG)
        return path.read_text() if path.exists() else ""

    def hook(self, *arguments: str) -> None:
        self.hypervisor.tproxy("hook", *arguments, "--config", CONFIG)

    def nft(self, command: str) -> str:
        return self.hypervisor.run("nft", command).stdout

    def ruleset(self) -> str:
        """Return all tables as text, the lines sorted, because their order does not matter."""
        lines = lasting(self.nft("list ruleset")).splitlines()
        return "\n".join(sorted(line.strip() for line in lines))

    def is_up(self, bridge: str) -> bool:
        return f"ep_{bridge}" in self.hypervisor.run("nft", "list", "maps", "ip").stdout.split()

    def wait_up(self, bridge: str) -> None:
        for _ in eventually():
            if self.is_up(bridge) and f"one_tproxy_{bridge}" in self.pids():
                break

    def wait_down(self, bridge: str) -> None:
        for _ in eventually():
            if not self.is_up(bridge):
                break
        for _ in eventually():
            if f"one_tproxy_{bridge}" not in self.hypervisor.run("ip", "netns", "list").stdout.split():
                break

    def wait_served(self, guest: Guest, port: int = 5030) -> None:
        """Wait until the guest reaches the endpoint."""
        for _ in eventually():
            with suppress(ProcessError):
                if guest.get(SERVICE_ADDRESS, port, timeout=5) == "one":  # a change may cut one connection
                    break

    def pids(self) -> dict[str, int]:
        lines = self.hypervisor.tproxy("status").stdout.splitlines()
        return {title: int(pid) for title, pid in (line.split(": ") for line in lines)}

    def descriptors(self, pid: int) -> int:
        """Return how many descriptors the process has open."""
        return len(list(self.hypervisor.path(f"/proc/{pid}/fd").iterdir()))


def listen(host: Host, port: int) -> subprocess.Popen[str]:
    """Let another program listen at the port in br0's namespace."""
    program = f"import socket; s = socket.create_server(('', {port})); print('ready', flush=True); s.accept()"
    return host.hypervisor.serve(sys.executable, "-c", program, netns="one_tproxy_br0")
