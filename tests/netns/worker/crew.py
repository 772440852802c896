"""A host with some workers, and guests of one bridge, each with an address of its own, and so its worker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from tests.netns.conftest import ENDPOINTS
from tests.netns.daemonless import kill_daemon
from tests.netns.program import program
from tests.netns.waiting import await_equal, eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import PATIENCE, Guest, Hypervisor

ENDPOINT = "10.11.12.13"
ECHO = 7  # a service port; behind it an endpoint echoes
HTTP = 80  # a service port; behind it an endpoint answers ``hello``
CONFIG = "/run/tproxy.yaml"

# A guest of a storm has more connections open than one may have by default, when the endpoint is slow.
NO_LIMIT = "tproxy_max_connections_per_guest: 0\n"
NETNS = "one_tproxy_br0"

WORKER = "tproxy-worker"
DRAINING = "tproxy-draining"
SPAWNER = "tproxy-spawner"


class Crew:
    """Bridge br0 and its guests. Commands read the configuration, so that the number of workers stays."""

    def __init__(self, host: Hypervisor, workers: int = 2, guests: int = 2) -> None:
        self.host = host
        self._services = {
            ECHO: self.add_endpoint(9000, "echo"),
            HTTP: f"{ENDPOINT}, remote_port: 8080",
        }
        host.add_endpoint(ENDPOINT, 8080, "hello")
        self.configure(workers)
        self.add_bridge("br0")
        self.guests = [
            host.add_guest(f"guest{number}", "br0", f"10.0.0.{10 + number}/24") for number in range(guests)
        ]

    # What a test changes

    def add_endpoint(self, port: int, behaviour: str, *options: str) -> str:
        """Start an endpoint of tests/netns/programs/endpoints.py; return how the configuration names it."""
        argv = (sys.executable, str(ENDPOINTS), behaviour, *options)
        self.last_endpoint = self.host.add_endpoint(ENDPOINT, port, program=argv)
        return f"{ENDPOINT}, remote_port: {port}"

    def serve(self, port: int, behaviour: str, *options: str) -> subprocess.Popen[str]:
        """Add a service port, and an endpoint behind it."""
        self._services[port] = self.add_endpoint(10_000 + port, behaviour, *options)
        self.configure(self.count)
        self.hook_up()
        return self.last_endpoint

    def dial(self, port: int, endpoint: str) -> None:
        """Let a service port lead somewhere, from the next hook on."""
        self._services[port] = endpoint
        self.configure(self.count)

    def configure(self, workers: int) -> None:
        """Write the configuration file, which nobody has read yet."""
        self.count = workers
        services = "".join(
            f"- {{service_port: {port}, remote_addr: {endpoint}}}\n"
            for port, endpoint in self._services.items()
        )
        self.host.write(CONFIG, f"tproxy_workers: {workers}\n{NO_LIMIT}tproxy:\n{services}")

    def add_bridge(self, bridge: str) -> None:
        self.host.add_bridge(bridge)
        self.hook_up(bridge)

    def hook_up(self, bridge: str = "br0") -> None:
        self.host.tproxy("hook", "up", "--bridge", bridge, "--config", CONFIG)

    def tproxy(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.host.tproxy(*arguments, check=check, env={"TPROXY_CONFIG": CONFIG})

    def start_tproxy(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command as ``tproxy`` runs it, and go on."""
        argv = (sys.executable, "-m", "tproxy", *arguments)
        return self.host.popen(*argv, env={"TPROXY_CONFIG": CONFIG})

    def await_relay(self, bridge: str = "br0") -> None:
        """Wait until the bridge's relay has met another daemon than the first one."""
        log = self.host.path(f"/var/log/one_tproxy_{bridge}.log")
        for _ in eventually():
            if "daemon lost: a new one has come" in log.read_text():
                return

    def signal(self, name: str, *pids: int) -> None:
        self.host.run("kill", f"-{name}", *map(str, pids))

    def kill(self, *pids: int) -> None:
        """Kill processes, and return when they have ended."""
        self.signal("KILL", *pids)
        for _ in eventually():
            if not set(pids) & set(self.processes()):
                return

    def kill_daemon(self) -> None:
        """Kill the daemon, so that it does not come back by itself; return when it has ended."""
        kill_daemon(self.host)

    def change_workers(self, count: int) -> None:
        self.configure(count)
        self.tproxy("reload")

    # What a test sees

    def processes(self, title: str = "") -> dict[int, str]:
        """Return the processes of tproxy, or those with this title, by process id. It asks no daemon."""
        lines = self.host.run("ps", "-eo", "pid,args").stdout.splitlines()[1:]
        found = {int(pid): args.strip() for pid, args in (line.split(maxsplit=1) for line in lines)}
        return {
            pid: args
            for pid, args in found.items()
            if args.startswith(("one_tproxy", "tproxy-")) and title in ("", args)
        }

    def pids(self, title: str) -> list[int]:
        return sorted(self.processes(title))

    @property
    def daemon(self) -> int:
        (pid,) = self.processes("one_tproxy")
        return pid

    @property
    def relay(self) -> int:
        (pid,) = self.processes("one_tproxy_br0")
        return pid

    def await_workers(self, count: int, *gone: int) -> list[int]:
        """Wait until so many workers run, and the ``gone`` ones do not."""
        for _ in eventually():
            found = self.pids(WORKER)
            if len(found) == count and not set(found) & set(gone):
                break
        return found

    def worker_of(self, guest: Guest) -> int:
        """Return the worker that serves a guest which has an open connection."""
        for _ in eventually():  # the relay may have one that has just come
            found = {pid for pid, _ in self.connections(guest)} & set(self.pids(WORKER))
            if len(found) == 1:
                break
        return found.pop()

    def connections(self, guest: Guest) -> list[tuple[int, int]]:
        """Return process id and service port of each connection of the guest that was accepted."""
        shown = self.host.run("ss", "-Htnp", "dst", guest.address, netns=NETNS).stdout
        return [
            (int(pid), int(port))
            for port, pid in re.findall(rf"{SERVICE_ADDRESS}:(\d+) .*?,pid=(\d+),", shown)
        ]

    def await_draining(self, *pids: int) -> None:
        """Wait until these old workers only finish their connections, and no others are left."""
        await_equal(lambda: self.pids(DRAINING), sorted(pids))

    def await_listening(self) -> None:
        """Wait until a guest is served: some process is starting."""
        for _ in eventually():
            with suppress(ProcessError):
                if self.guests[0].get(SERVICE_ADDRESS, HTTP) == "hello":
                    return

    def await_connected(self, count: int) -> None:
        """Wait until so many connections are established; some may wait in the backlog of a listener."""
        for _ in eventually():
            established = ("ss", "-Htn", "state", "established", "src", SERVICE_ADDRESS)
            if len(self.host.run(*established, netns=NETNS).stdout.splitlines()) >= count:
                return

    def await_accepted(self, count: int) -> None:
        """Wait until so many connections are established, and none waits in the backlog of a listener."""
        for _ in eventually():
            shown = self.host.run("ss", "-Htan", "src", SERVICE_ADDRESS, netns=NETNS).stdout.splitlines()
            states = [line.split()[:2] for line in shown]
            waiting = sum(int(queue) for state, queue in states if state == "LISTEN")
            if sum(state == "ESTAB" for state, _ in states) >= count and not waiting:
                return

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.tproxy("status", "--json").stdout)["daemon"]
        return found

    def service(self, port: int) -> dict[str, Any]:
        services = self.status()["bridges"]["br0"]["services"]
        return next(each for each in services if each["port"] == port)

    def log(self) -> str:
        return self.host.path("/var/log/one_tproxy.log").read_text()

    def await_in_log(self, text: str, times: int = 1) -> None:
        for _ in eventually():
            if self.log().count(text) >= times:
                return


class Load:
    """Connections of a guest that go on while a test does (tests/netns/programs/load.py)."""

    def __init__(self, guest: Guest, callers: int = 4, streams: int = 2) -> None:
        """Start, and return when each caller and each stream was served."""
        self.guest = guest
        argv = program("load", SERVICE_ADDRESS, str(ECHO), str(callers), str(streams))
        self._process = guest.popen(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1)
        self.go_on(1)

    def go_on(self, count: int = 10) -> None:
        """Return when each caller and each stream was served so many times more."""
        least = self.look()["least"]
        for _ in eventually():
            now = self.look()
            if now["least"] >= least + count:
                return
            assert now["streams"] == [], "a stream has ended"

    def look(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._report()

    def end(self) -> dict[str, Any]:
        """Let all finish what they have begun; return the last report."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        report = self._report()
        self._process.wait(PATIENCE)
        return report

    def _report(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        report: dict[str, Any] = json.loads(self._process.stdout.readline())
        return report


def start_asking(guest: Guest) -> subprocess.Popen[str]:
    """Start to ask the endpoint behind HTTP; the program prints its answer."""
    argv = (sys.executable, "-m", "tproxy.lab.inside", "ask", SERVICE_ADDRESS, str(HTTP), str(PATIENCE))
    return guest.popen(*argv, stdout=subprocess.PIPE)


def whole(loads: list[Load]) -> Iterator[dict[str, Any]]:
    """End the loads, none of which may have lost a connection; yield their reports."""
    for load in loads:
        report = load.end()
        assert report["failed"] == [], report
        assert set(report["streams"]) <= {"whole"}
        yield report
