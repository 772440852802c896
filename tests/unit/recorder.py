"""A log that keeps its lines in memory, for tests of code that relays and workers run."""

from __future__ import annotations

from tproxy.log.file import WARNING, Log
from tproxy.log.lines import Fields


class Recorder(Log):
    """Keeps the messages of ``level`` and above: all in ``messages``, warnings and errors in ``warnings``."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.warnings: list[str] = []

    def _write(self, level: int, message: str, words: tuple[object, ...], fields: Fields | None) -> None:
        if level >= self.level:
            self.messages.append(message % words)
            if level >= WARNING:
                self.warnings.append(message % words)
