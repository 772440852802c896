"""The model of what guests must see: a host with bridges, in plain values. Performs no effect.

A caller reports what happens (``hook_up``, ``killed`` ...), and asks what a guest of a bridge may get from a
service port (``answers``). The model knows nothing of processes or links, except whether a daemon runs.

Theory of operation. A bridge has two tables, port to endpoint: ``mapped`` is what nftables holds, and
``served`` is what the processes were told last. Hooks and commands make the second one like the first one
(docs/contract.md, nftables is the database). A daemon that starts reads all maps, and nobody tells when one
starts by itself after a crash: until the next command, ports for which the two tables differ are in doubt,
and may do what either says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Table = dict[int, str]

# Answers besides the name of an endpoint.
RESET = "reset"  # the endpoint refuses, so the guest's connection is reset
CLOSED = "closed"  # nothing listens: refused, or dropped without an answer
ABSENT = "absent"  # nobody has the service address


@dataclass
class Bridge:
    built: bool = False  # it has namespace and veth pair
    mapped: Table | None = None
    served: Table | None = None
    doubtful: bool = False

    def apply(self) -> None:
        """The processes know the map as it is now."""
        self.served = dict(self.mapped) if self.mapped is not None and self.built else None
        self.doubtful = False


@dataclass
class Stream:
    """An open connection of a guest; ``worker`` is the process that carries it."""

    bridge: str
    worker: int


@dataclass
class Model:
    config: Table
    bridges: dict[str, Bridge]
    endpoints: set[str]  # those that run
    running: bool = False  # the processes were started, and not stopped since
    daemon: bool = False
    streams: dict[int, Stream] = field(default_factory=dict)  # by a number of the caller's

    # What happens

    def hook_up(self, name: str) -> None:
        bridge = self.bridges[name]
        bridge.built = True
        bridge.mapped = dict(self.config)
        self._daemon_runs()
        bridge.apply()

    def hook_down(self, name: str) -> list[int]:
        """Take a bridge down, its guests notwithstanding; returns the streams that lose their way."""
        self.bridges[name] = Bridge()
        self._look_for_the_last()
        return self._end(lambda stream: stream.bridge == name)

    def edit(self, name: str, port: int, endpoint: str | None) -> None:
        """Another program adds, changes or deletes an element of a map."""
        mapped = self.bridges[name].mapped
        assert mapped is not None
        mapped.pop(port, None)
        if endpoint is not None:
            mapped[port] = endpoint
        self._doubt()

    def delete_map(self, name: str) -> None:
        """Another program deletes a map."""
        self.bridges[name].mapped = None
        self._doubt()

    def apply_maps(self) -> list[int]:
        """``start``, ``reload``, ``restart``; returns the streams of bridges that are not served any more."""
        self.running = self.daemon = True
        for bridge in self.bridges.values():
            bridge.apply()
        self._look_for_the_last()
        return self._end(lambda stream: self.bridges[stream.bridge].served is None)

    def refresh(self) -> list[int]:
        """The same, after the configuration has been applied to the bridges that have a map."""
        for bridge in self.bridges.values():
            if bridge.mapped is not None:
                bridge.mapped = dict(self.config)
        return self.apply_maps()

    def stop(self) -> list[int]:
        """End all processes; returns the streams that must be reset."""
        self.running = self.daemon = False
        for bridge in self.bridges.values():
            bridge.served, bridge.doubtful = None, False
        return self._end(lambda _: True)

    def daemon_killed(self) -> None:
        self.daemon = False
        self._doubt()

    def worker_killed(self, worker: int) -> list[int]:
        """Returns the streams that must be reset: those that this worker carried, and no others."""
        return self._end(lambda stream: stream.worker == worker)

    # What guests see

    def answers(self, name: str, port: int) -> set[str]:
        """Return the answers that a guest may get from a port: one, unless the bridge's state is unknown."""
        bridge = self.bridges[name]
        if not bridge.built:
            return {ABSENT}
        tables = [bridge.served, *([bridge.mapped] if bridge.doubtful else [])]
        return {self._answer(table, port) for table in tables}

    def served_bridges(self) -> list[str]:
        return [name for name, bridge in self.bridges.items() if bridge.served is not None]

    # Inside

    def _answer(self, table: Table | None, port: int) -> str:
        endpoint = (table or {}).get(port)
        if endpoint is None:
            return CLOSED
        return endpoint if endpoint in self.endpoints else RESET

    def _daemon_runs(self) -> None:
        """A hook finds a daemon, or starts one, which reads all maps.

        After a crash nobody knows when the present daemon has read them: doubts remain.
        """
        if not self.running:
            for bridge in self.bridges.values():
                bridge.apply()
        self.running = self.daemon = True

    def _doubt(self) -> None:
        if self.running and not self.daemon:
            for bridge in self.bridges.values():
                bridge.doubtful = bridge.built and bridge.mapped != bridge.served

    def _look_for_the_last(self) -> None:
        """Without a map everything ends (docs/contract.md, Commands)."""
        if all(bridge.mapped is None for bridge in self.bridges.values()):
            self.running = self.daemon = False

    def _end(self, ends: Callable[[Stream], bool]) -> list[int]:
        ended = [number for number, stream in self.streams.items() if ends(stream)]
        for number in ended:
            del self.streams[number]
        return ended
