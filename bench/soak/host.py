"""The host of a soak: bridges, guests with traffic, endpoints; what can be done to it, and its figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench import costs
from bench.soak.judgement import MEMORY, PIPES, Connection, Event, Loss, Sample
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import PATIENCE, Guest, Hypervisor

CONFIG = "/run/soak.yaml"
ENDPOINT = "10.11.12.13"
STEADY, FICKLE, SPARE = 7001, 7002, 7003  # ports, of services and of their endpoints
WORKERS = 2

# Bridges with their numbers of guests. The last one is taken down and up again.
BRIDGES = {"br0": 2, "br1": 1, "br2": 1}
FICKLE_BRIDGE = "br2"

DAEMON, WORKER, SPAWNER, WATCHER = "one_tproxy", "tproxy-worker", "tproxy-spawner", "tproxy-watch"
DRAINING = "tproxy-draining"


class Traffic:
    """The traffic of one guest (guest.py), and the losses that it tells of."""

    def __init__(self, guest: Guest, calm: float) -> None:
        self.guest = guest
        self.losses: list[Loss] = []
        self.counts: Counter[str] = Counter()
        options = str(calm), SERVICE_ADDRESS, str(STEADY), str(FICKLE)
        argv = (sys.executable, "-m", "bench.soak.guest", *options)
        self._process = guest.popen(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if "ready" in said:
                self._ready.set()
                continue
            if "counts" in said:
                self.counts.update(said["counts"])
                continue
            loss = said["loss"]
            connection = Connection(self.guest.bridge, self.guest.address, loss.pop("local"))
            self.losses.append(Loss(connection=connection, **loss))

    def await_ready(self) -> None:
        """Wait until there is traffic of all kinds. Raises ProcessError."""
        if not self._ready.wait(PATIENCE):
            raise ProcessError(f"{self.guest.name} does not get its connections")

    def end(self) -> None:
        """Let all finish; raises ProcessError when the guest's program has failed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.wait(PATIENCE * 3):
            raise ProcessError(f"the traffic of {self.guest.name} ended with {self._process.returncode}")
        self._reader.join()


class Host:
    """A host whose guests load it fully, or less the more ``calm`` they are (guest.py)."""

    def __init__(self, hypervisor: Hypervisor, calm: float = 1.0) -> None:
        self._host = hypervisor
        self.calm = calm
        self._endpoints: dict[int, subprocess.Popen[str]] = {}
        for port in (STEADY, FICKLE):
            self.start_endpoint(port)
        services = "".join(
            f"- {{service_port: {port}, remote_addr: {ENDPOINT}, remote_port: {port}}}\n"
            for port in (STEADY, FICKLE)
        )
        hypervisor.write(CONFIG, f"tproxy_workers: {WORKERS}\ntproxy_watch: true\ntproxy:\n{services}")
        self.guests = []
        for bridge, count in BRIDGES.items():
            hypervisor.add_bridge(bridge)
            self.hook("up", bridge)
            for number in range(count):
                guest = hypervisor.add_guest(f"{bridge}-{number}", bridge, f"10.0.0.{5 + number}/24")
                self.guests.append(guest)

    # What is done to it: each call returns what happened

    def actions(self) -> Mapping[str, Callable[[], Event]]:
        return {
            "reload": lambda: self._command("reload"),
            "restart": lambda: self._command("restart"),
            "refresh": lambda: self._command("refresh"),
            "map changes": self.change_map,
            "warm hook": lambda: self._timed("warm hook", lambda: self.hook("up", "br0")),
            "bridge down and up": self.bridge_down_and_up,
            "endpoint away": self.endpoint_away,
            "kill worker": self.kill_worker,
            "kill daemon": lambda: self._kill(DAEMON),
            "kill spawner": lambda: self._kill(SPAWNER),
            "kill watcher": lambda: self._kill(WATCHER),
            "kill relay": lambda: self._kill("one_tproxy_br0", "kill relay"),
        }

    def hook(self, verb: str, bridge: str, *options: str) -> None:
        self._host.tproxy("hook", verb, "--bridge", bridge, "--config", CONFIG, *options)

    def start_endpoint(self, port: int) -> None:
        argv = (sys.executable, "-m", "bench.soak.endpoint")
        self._endpoints[port] = self._host.add_endpoint(ENDPOINT, port, program=argv)

    def change_map(self) -> Event:
        """Another program adds a service, and moves it, and removes it again."""

        def change() -> None:
            place = f"element ip one_tproxy ep_br0 {{ {SPARE} : {ENDPOINT}"
            for command in (
                f"add {place} . {STEADY} }}",
                f"delete {place} . {STEADY} }}; add {place} . {FICKLE} }}",
                f"delete {place} . {FICKLE} }}",
            ):
                self._host.run("nft", command)
                self._host.tproxy("reload", env={"TPROXY_CONFIG": CONFIG})

        return self._timed("map changes", change)

    def bridge_down_and_up(self) -> Event:
        def both() -> None:
            self.hook("down", FICKLE_BRIDGE, "--force")
            self.hook("up", FICKLE_BRIDGE)

        event = self._timed("bridge down and up", both)
        return Event(event.name, event.begin, event.end, bridge=FICKLE_BRIDGE)

    def endpoint_away(self) -> Event:
        def away() -> None:
            process = self._endpoints.pop(FICKLE)
            process.kill()
            process.wait()
            self._await(lambda: not self._host.run("ss", "-Hltn", "sport", f"= :{FICKLE}").stdout)
            self.start_endpoint(FICKLE)

        event = self._timed("endpoint away", away)
        return Event(event.name, event.begin, event.end, service=FICKLE)

    def kill_worker(self) -> Event:
        """Kill a worker, and note the connections that it carries: it is stopped meanwhile."""
        pid = self.pids(WORKER)[0]
        self._host.run("kill", "-STOP", str(pid))
        self._await(lambda: " T " in self._host.run("ps", "-o", "pid,s,pid", "-p", str(pid)).stdout)
        carried = frozenset(self._connections(pid))

        def kill() -> None:
            self._host.run("kill", "-KILL", str(pid))
            self._await(lambda: pid not in (now := self.pids(WORKER)) and len(now) == WORKERS)

        event = self._timed("kill worker", kill)
        # A worker without connections explains nothing.
        nobody = Connection("", "", 0)
        return Event(event.name, event.begin, event.end, connections=carried or frozenset([nobody]))

    def _kill(self, title: str, name: str = "") -> Event:
        pids = self.pids(title)

        def kill() -> None:
            self._host.run("kill", "-KILL", *map(str, pids))
            self._await(lambda: bool(set(self.pids(title)) - set(pids)))

        names = {DAEMON: "kill daemon", SPAWNER: "kill spawner", WATCHER: "kill watcher"}
        if not pids:
            raise ProcessError(f"no process {title}")
        return self._timed(name or names[title], kill)

    def _command(self, name: str) -> Event:
        return self._timed(name, lambda: self._host.tproxy(name, env={"TPROXY_CONFIG": CONFIG}))

    def _timed(self, name: str, action: Callable[[], object]) -> Event:
        begin = time.monotonic()
        action()
        return Event(name, begin, time.monotonic())

    def _await(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happened():
            if time.monotonic() > deadline:
                there = ", ".join(f"{pid} {title}" for pid, title in self.processes().items())
                raise ProcessError(f"a successor did not come, or something did not end: {there}")
            time.sleep(0.02)

    # What is seen

    def processes(self) -> dict[int, str]:
        lines = self._host.run("ps", "-eo", "pid,args").stdout.splitlines()[1:]
        found = {int(pid): args.strip() for pid, args in (line.split(maxsplit=1) for line in lines)}
        return {pid: args for pid, args in found.items() if args.startswith(("one_tproxy", "tproxy-"))}

    def pids(self, title: str) -> list[int]:
        return sorted(pid for pid, found in self.processes().items() if found == title)

    def settled(self) -> bool:
        """Nothing drains, and each process that should be there is there once."""
        wanted = Counter({DAEMON: 1, SPAWNER: 1, WATCHER: 1, WORKER: WORKERS})
        wanted.update(f"one_tproxy_{bridge}" for bridge in BRIDGES)
        return Counter(self.processes().values()) == wanted

    def await_settled(self) -> None:
        self._await(self.settled)

    def sample(self) -> Sample:
        """Figures of all processes by their titles, and of what else the host has of ours."""
        figures: defaultdict[str, float] = defaultdict(float)
        processes = self.processes()
        for pid, title in processes.items():
            try:
                targets = self._targets(pid)
            except OSError:
                continue  # it has ended meanwhile
            figures[f"processes: {title}"] += 1
            kinds = Counter(map(_kind, targets))
            figures[f"{PIPES}: {title}"] += kinds.pop("pipe", 0) / 2
            for kind, count in kinds.items():
                figures[f"descriptors, {kind}: {title}"] += count
        found: dict[str, float] = {**figures, **self._objects()}
        for title in {DAEMON, WORKER, SPAWNER, WATCHER, "one_tproxy_br0"}:
            pids = [pid for pid, of in processes.items() if of == title]
            try:
                found[f"{MEMORY}, MB: {title}"] = costs.memory(self._host, pids).private / 1e6
            except (OSError, ProcessError):
                continue
        return Sample(time.monotonic(), found)

    def _objects(self) -> dict[str, int]:
        listed = json.loads(self._host.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
        names = self._host.run("find", "/run/tproxy", "/run/netns", "-printf", "%y %p\n").stdout.splitlines()
        return {
            "nftables objects and elements": sum(_objects(item) for item in listed),
            "namespaces": len(self._host.run("ls", "/run/netns").stdout.split()),
            "links": len(self._host.run("ip", "-br", "link").stdout.splitlines()),
            "files in /run/tproxy": sum(" /run/tproxy" in name for name in names),
        }

    def _targets(self, pid: int) -> list[str]:
        folder = self._host.path(f"/proc/{pid}/fd")
        return [str(each.readlink()) for each in folder.iterdir()]

    def _connections(self, pid: int) -> Iterator[Connection]:
        for bridge in BRIDGES:
            shown = self._host.run("ss", "-Htnap", netns=f"one_tproxy_{bridge}", check=False).stdout
            for line in shown.splitlines():
                if f"pid={pid}," in line and (found := re.search(r" ([\d.]+):(\d+) +users:", line)):
                    yield Connection(bridge, found[1], int(found[2]))


def _objects(item: Mapping[str, Any]) -> int:
    """The object, and its elements, unless these come and go with the traffic."""
    ((_, found),) = item.items()
    return 1 + (0 if "timeout" in found else len(found.get("elem", [])))


def _kind(target: str) -> str:
    """The kind of what a descriptor leads to, by the name of its link in /proc/PID/fd (proc(5))."""
    if target.startswith("/"):
        return "files"
    name, _, rest = target.partition(":")
    return rest.strip("[]") if name == "anon_inode" else name
