"""What workers are told of the names of networks and services, which only lines of the log show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from tproxy.model import ServiceMap
from tproxy.worker import orders

# Services in one message, with names of at most 32 characters.
AT_ONCE = 1000


class Labels:
    """``tell`` sends a message to all workers."""

    def __init__(self, tell: Callable[[orders.Message], None]) -> None:
        self._tell = tell
        self._said: dict[str, list[orders.Labels]] = {}

    def serve(self, maps: Iterable[ServiceMap]) -> None:
        """Take over the maps of all bridges as they are now."""
        before = self._said
        self._said = {each.bridge: [*_labels(each)] for each in maps}
        for bridge, labels in self._said.items():
            if bridge in before and labels != before[bridge]:
                for message in labels:
                    self._tell(message)

    def messages(self, bridge: str) -> Iterable[orders.Message]:
        """Return what a worker is told before it hears of the bridge's services."""
        return self._said.get(bridge, ())


def _labels(found: ServiceMap) -> Iterator[orders.Labels]:
    network = _readable(found.networks[0].name or found.networks[0].id)
    names = [(key, _readable(each.name)) for key, each in sorted(found.services.items()) if each.name]
    for start in range(0, len(names) or 1, AT_ONCE):
        yield orders.Labels(found.bridge, start == 0, network, tuple(names[start : start + AT_ONCE]))


def _readable(text: str) -> str:
    """The text, with what is not UTF-8 (PEP 383) escaped."""
    return text.encode(errors="backslashreplace").decode()
