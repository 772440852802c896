"""A stand-in hypervisor on which the steps of the model are done, and what its guests see there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from tests.netns.conftest import ENDPOINTS
from tests.netns.model.model import ABSENT, CLOSED, RESET, Table
from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import PATIENCE, Guest, Hypervisor

CONFIG = "/run/tproxy.yaml"
ADDRESS = "10.11.12.13"
ECHO = 7  # the service port of streams
WORKERS = 2

# The endpoints by name, with the port at ADDRESS.
ENDPOINT_PORTS = {"one": 8081, "two": 8082, "echo": 9000}

# Seconds that a guest waits for an answer which must not come. An answer that comes later is missed, which
# makes the test weaker on a busy machine, but never wrong.
SHORT = 0.3

# How a guest's system calls name what the model says.
_MEANINGS = {
    "ECONNREFUSED": CLOSED,
    "EHOSTUNREACH": ABSENT,
    "ECONNRESET": RESET,
    "EPIPE": RESET,
}


class Person:
    """A guest, and its program (tests/netns/programs/model_guest.py)."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 1}
        self._process = guest.popen(*program("model_guest", SERVICE_ADDRESS), **options)

    def tell(self, *words: object) -> None:
        assert self._process.stdin is not None
        print(json.dumps(words), file=self._process.stdin, flush=True)

    def hear(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline() or '"the guest has ended"')

    def do(self, *words: object) -> Any:
        self.tell(*words)
        return self.hear()


class World:
    """The host, its bridges, guests and endpoints."""

    def __init__(self, guests: Mapping[str, int]) -> None:
        """Build the host; ``guests`` has the number of guests of each bridge."""
        self.host = Hypervisor().start()
        try:
            self._endpoints: dict[str, subprocess.Popen[str]] = {}
            self.people: dict[str, list[Person]] = {}
            for bridge, count in guests.items():
                self.host.add_bridge(bridge)
                self.people[bridge] = [
                    Person(self.host.add_guest(f"{bridge}-{n}", bridge, f"10.0.0.{5 + n}/24"))
                    for n in range(count)
                ]
        except BaseException:
            self.host.close()
            raise

    def close(self) -> None:
        self.host.close()

    # What is done

    def configure(self, config: Table) -> None:
        services = "".join(
            f"- {{service_port: {port}, remote_addr: {ADDRESS}, remote_port: {ENDPOINT_PORTS[endpoint]}}}\n"
            for port, endpoint in config.items()
        )
        _tell("configuration", config)
        self.host.write(CONFIG, f"tproxy_workers: {WORKERS}\ntproxy:\n{services}")

    def hook(self, verb: str, bridge: str, *options: str, check: bool = True) -> int:
        _tell("hook", verb, bridge, *options)
        done = self.host.tproxy(
            *("hook", verb, "--bridge", bridge, "--config", CONFIG, *options), check=check
        )
        return done.returncode

    def command(self, name: str, check: bool = True) -> int:
        _tell(name)
        return self.host.tproxy(name, check=check, env={"TPROXY_CONFIG": CONFIG}).returncode

    def edit(self, bridge: str, port: int, endpoint: str | None, mapped: Table) -> None:
        lines = []
        if port in mapped:
            lines.append(f"delete element ip one_tproxy ep_{bridge} {{ {port} }}")
        if endpoint is not None:
            place = f"{ADDRESS} . {ENDPOINT_PORTS[endpoint]}"
            lines.append(f"add element ip one_tproxy ep_{bridge} {{ {port} : {place} }}")
        if lines:
            _tell("nft", *lines)
            self.host.run("nft", "; ".join(lines))

    def delete_map(self, bridge: str) -> None:
        _tell("delete map", bridge)
        self.host.run("nft", f"delete map ip one_tproxy ep_{bridge}")

    def start_endpoint(self, name: str) -> None:
        _tell("start endpoint", name)
        argv = (sys.executable, str(ENDPOINTS), "echo") if name == "echo" else ()
        self._endpoints[name] = self.host.add_endpoint(ADDRESS, ENDPOINT_PORTS[name], name, program=argv)

    def kill_endpoint(self, name: str) -> None:
        _tell("kill endpoint", name)
        process = self._endpoints.pop(name)
        process.kill()
        process.wait()
        # The program ends when its parent has: wait until nothing listens.
        for _ in eventually():
            if not self.host.run("ss", "-Hltn", "sport", f"= :{ENDPOINT_PORTS[name]}").stdout:
                return

    def kill(self, *pids: int) -> None:
        """Kill processes, and return when they have ended."""
        found = self.processes()
        _tell("kill", {pid: found.get(pid) for pid in pids})
        # Some may have ended because of the others.
        self.host.run("kill", "-KILL", *map(str, pids), check=False)
        for _ in eventually():
            if not set(pids) & set(self.processes()):
                return

    def await_successor(self, title: str, gone: Iterable[int]) -> None:
        for _ in eventually():
            if set(self.pids(title)) - set(gone):
                return

    # What is seen

    def processes(self) -> dict[int, str]:
        lines = self.host.run("ps", "-eo", "pid,args").stdout.splitlines()[1:]
        found = {int(pid): args.strip() for pid, args in (line.split(maxsplit=1) for line in lines)}
        return {pid: args for pid, args in found.items() if args.startswith(("one_tproxy", "tproxy-"))}

    def pids(self, *titles: str) -> list[int]:
        return sorted(pid for pid, title in self.processes().items() if title in titles)

    def ask(self, wanted: Mapping[str, Mapping[int, set[str]]]) -> dict[str, list[dict[int, str]]]:
        """Ask all ports from all guests; ``wanted`` says what each bridge's guests may get."""
        for bridge, ports in wanted.items():
            for person in self.people[bridge]:
                person.tell("ask", {port: _patience(answers) for port, answers in ports.items()})
        return {
            bridge: [
                {int(port): _meaning(said, wanted[bridge][int(port)]) for port, said in person.hear().items()}
                for person in self.people[bridge]
            ]
            for bridge in wanted
        }

    def open_stream(self, bridge: str, guest: int, number: int) -> int:
        """Open a connection that stays, and return the worker that carries it."""
        _tell("open stream", number, "of guest", guest, "of", bridge)
        person = self.people[bridge][guest]
        local = person.do("open", number, ECHO)
        workers = set(self.pids("tproxy-worker"))
        where = ("dst", person.guest.address, "and", "dport", "=", f":{local}")
        for _ in eventually():  # the relay may not have closed its own descriptor yet
            shown = self.host.run("ss", "-Htnp", *where, netns=f"one_tproxy_{bridge}").stdout
            holders = {int(pid) for pid in re.findall(r"pid=(\d+),", shown)} & workers
            if len(holders) == 1:
                return holders.pop()
        raise AssertionError

    def use_streams(self, numbers: Mapping[tuple[str, int], list[int]]) -> dict[int, str]:
        """Use open connections, by bridge and guest; ``alive``, or how they ended."""
        for (bridge, guest), some in numbers.items():
            self.people[bridge][guest].tell("use", some)
        return {
            int(number): _MEANINGS.get(said, said)
            for bridge, guest in numbers
            for number, said in self.people[bridge][guest].hear().items()
        }

    def close_streams(self, bridge: str, guest: int, numbers: list[int]) -> None:
        self.people[bridge][guest].do("close", numbers)


def _tell(*words: object) -> None:
    """Print a step: pytest shows it with a failure, also where hypothesis cannot repeat that."""
    print(*words, flush=True)


def _meaning(said: str, wanted: set[str]) -> str:
    """Return the meaning of an answer. A guest that has our MAC in its cache gets a time-out."""
    if said == "timeout" and wanted & {CLOSED, ABSENT}:
        return ABSENT if ABSENT in wanted else CLOSED
    return _MEANINGS.get(said, said)


def _patience(answers: set[str]) -> float:
    return SHORT if answers & {CLOSED, ABSENT} else PATIENCE
