"""The step: a thing that a guest does on its way to a service, how long it took, what came of it. Pure."""

from __future__ import annotations

from tproxy.doctor.finding import BAD, GOOD, WARNING
from tproxy.errors import to_ascii
from tproxy.typed import NamedTuple

# How a guest knows where to send what is for the service address: by a route, by its default gateway, or,
# where the bridge has IPv6, because the address is one of its link.
ROUTE, GATEWAY, IPV6 = "route", "gateway", "ipv6"


class Step(NamedTuple):
    """``way`` is "" for what all ways have in common; ``port`` is 0 where no service port is concerned."""

    name: str
    level: str
    seconds: float
    text: str
    repair: str = ""
    way: str = ""
    port: int = 0

    def __str__(self) -> str:
        repair = f"; repair: {self.repair}" if self.repair else ""
        where = " ".join(filter(None, (self.way, self.name)))
        line = f"{self.level:8} {self.seconds * 1000:9.1f} ms  {where}: {self.text}{repair}"
        return to_ascii(line)

    def as_json(self) -> dict[str, object]:
        found: dict[str, object] = {**self._asdict(), "milliseconds": round(self.seconds * 1000, 1)}
        del found["seconds"]
        return found


def good(name: str, seconds: float, text: str) -> Step:
    return Step(name, GOOD, seconds, text)


def warning(name: str, seconds: float, text: str, repair: str) -> Step:
    return Step(name, WARNING, seconds, text, repair)


def bad(name: str, seconds: float, text: str, repair: str) -> Step:
    return Step(name, BAD, seconds, text, repair)
