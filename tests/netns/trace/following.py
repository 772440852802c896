"""A host whose guests are traced, and what a trace says of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from tests.netns.conftest import ENDPOINTS
from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import PATIENCE, Guest, Hypervisor

ENDPOINT, VOID = "10.11.12.13", "10.99.0.1"
WEB, REFUSED, SILENT, LIMITED, DNS = 5030, 5031, 5032, 5033, 53
CLOSED = 81
CONFIG = f"""
tproxy_ipv6: true
tproxy:
- {{service_port: {WEB}, remote_addr: {ENDPOINT}, remote_port: 8080}}
- {{service_port: {REFUSED}, remote_addr: {ENDPOINT}, remote_port: 1}}
- {{service_port: {SILENT}, remote_addr: {VOID}, remote_port: 80, connect_timeout: 1}}
- {{service_port: {LIMITED}, remote_addr: {ENDPOINT}, remote_port: 9000, max_connections_per_guest: 1}}
- {{service_port: {DNS}, remote_addr: {ENDPOINT}, remote_port: 5353, protocol: udp}}
"""

Line = dict[str, Any]


class Following:
    """Bridge br0 with two guests, and services of all kinds."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        host.add_bridge("br0")
        self.guest = host.add_guest("guest", "br0", "10.0.0.5/24")
        self.other = host.add_guest("other", "br0", "10.0.0.6/24")
        host.add_endpoint(ENDPOINT, 8080, "hello")
        host.add_endpoint(ENDPOINT, 9000, program=(sys.executable, str(ENDPOINTS), "echo"))
        host.add_endpoint(ENDPOINT, 5353, program=program("datagram_endpoint", "echo"))
        host.ip(
            "link add void type veth peer name nobody",
            "address add 10.99.0.254/24 dev void",
            "link set void up",
            "link set nobody up",
            f"neigh add {VOID} lladdr 02:00:00:00:00:99 dev void",
        )
        config = host.write("/run/tproxy.yaml", CONFIG)
        host.tproxy("hook", "up", "--bridge", "br0", "--config", config)

    def trace(self, *options: str) -> Trace:
        """Start a trace, and return when it follows."""
        return Trace(self.host, *options)

    def mac(self, guest: Guest) -> str:
        (link,) = json.loads(guest.run("ip", "-j", "link", "show", "eth0").stdout)
        address: str = link["address"]
        return address

    def connect(self, guest: Guest, port: int, source: int = 0) -> str:
        """Have the guest connect and wait for the end; return the name of the error, or "" for none."""
        address = (SERVICE_ADDRESS, port)
        code = (
            "import socket, sys; socket.setdefaulttimeout(20)\n"
            f"try: socket.create_connection({address}, source_address=('', {source})).recv(1)\n"
            "except OSError as error: print(type(error).__name__)"
        )
        return guest.run(sys.executable, "-c", code).stdout.strip()

    def send(self, guest: Guest, *frames: bytes) -> None:
        """Have the guest's link send these frames."""
        sender = guest.popen(*program("forger", "eth0"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        sender.communicate(json.dumps([each.hex() for each in frames]) + "\n", timeout=PATIENCE)


class Trace:
    """A running trace, and the lines that it has printed, as JSON."""

    def __init__(self, host: Hypervisor, *options: str) -> None:
        self.host = host
        self.options = options
        command = (sys.executable, "-m", "tproxy", "trace", *options, "--json")
        self.process = host.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        assert first, self.process.communicate()[1]
        self.first: Line = json.loads(first)
        assert self.first["event"] == "tracing"

    @property
    def pid(self) -> str:
        """The process id of the command, in the stand-in."""
        pattern = f"^[^ ]*python[^ ]* -m tproxy trace {' '.join(self.options)} --json"
        return self.host.run("pgrep", "-f", pattern).stdout.split()[0]

    def await_line(self, event: str) -> Line:
        """Read on until a line of this event."""
        assert self.process.stdout is not None
        for text in self.process.stdout:
            line: Line = json.loads(text)
            if line["event"] == event:
                return line
        raise AssertionError(f"no line {event!r} came")

    def end(self, number: int = signal.SIGINT) -> list[Line]:
        """End the trace by a signal, and return the lines that were not read yet."""
        self.host.run("kill", f"-{int(number)}", self.pid)
        return self.lines()

    def lines(self) -> list[Line]:
        """Wait until the trace ends, and return the lines that were not read yet."""
        out, err = self.process.communicate(timeout=PATIENCE)
        assert err == ""
        return [json.loads(each) for each in out.splitlines()]


def attempt(lines: list[Line], kind: str) -> list[Line]:
    """The lines of the only attempt of this kind, or of the last one where there are several."""
    numbers = [each["attempt"] for each in lines if each["kind"] == kind]
    assert numbers, lines
    return [each for each in lines if each["attempt"] == numbers[-1]]


def outcome(lines: list[Line], kind: str = "tcp") -> tuple[str, str]:
    """How the attempt ended."""
    last = attempt(lines, kind)[-1]
    return last["outcome"], last["text"]


def tables(host: Hypervisor) -> str:
    """The tables of traces, on the host and in the bridge's namespace."""
    listed = (host.run("nft", "list", "tables", netns=each).stdout for each in (None, "one_tproxy_br0"))
    return "".join(line for text in listed for line in text.splitlines() if "trace" in line)


def await_no_tables(host: Hypervisor) -> None:
    for _ in eventually():
        if not tables(host):
            return
