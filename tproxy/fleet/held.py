"""What a host keeps on disk, so that it needs no store: its document, what it knows of guests, its receipt.

Each file is written beside its place and then renamed, so that a crash leaves the old one or the new one.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tproxy.config import file
from tproxy.config.services import place
from tproxy.errors import TproxyError
from tproxy.fleet import document, presence
from tproxy.fleet.document import Document
from tproxy.fleet.presence import Guest


class HeldProblem(TproxyError):
    """The host's own files cannot be written or read."""


class State(NamedTuple):
    """The newest serial that the host ever had, and the guests that were there last."""

    serial: int = 0
    guests: tuple[Guest, ...] = ()


class Held:
    """The files. ``directory`` is another one only in tests and simulations."""

    def __init__(self, directory: str = os.path.dirname(file.DOCUMENT)) -> None:
        self.directory = Path(directory)
        self.path = self.directory / os.path.basename(file.DOCUMENT)
        self.receipt = self.directory / "receipt.json"
        self._state = self.directory / "state.json"

    def document(self) -> Document | None:
        """Return the last good document; None where there is none. Raises HeldProblem, Refused."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise HeldProblem(f"{place(str(self.path))}: {error}") from error
        return document.read(text, None, str(self.path))

    def store(self, found: Document) -> None:
        """Keep a document as the last good one. Raises HeldProblem."""
        write(self.path, found.text)

    def state(self) -> State:
        """What this host noted besides. Guests are those of this boot."""
        try:
            found = json.loads(self._state.read_text())
            guests = presence.from_json(found["guests"]) if found["boot"] == boot() else []
            return State(int(found["serial"]), tuple(guests))
        except (OSError, ValueError, TypeError, KeyError):  # none, or damaged
            return State()

    def note(self, state: State) -> None:
        """Note this instead of what was noted before. Raises HeldProblem."""
        guests = [each._asdict() for each in state.guests]
        write(self._state, json.dumps({"serial": state.serial, "boot": boot(), "guests": guests}))

    def keep_receipt(self, text: str) -> None:
        """Keep a copy of the last receipt, for whoever is on the host. A full disk costs the copy."""
        with suppress(HeldProblem):
            write(self.receipt, f"{text}\n", durable=False)


def boot() -> str:
    """Return what tells this boot of the machine from others."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def write(path: Path, text: str, mode: int = 0o600, *, durable: bool = True) -> None:
    """Replace a file as a whole; ``durable`` also after a loss of power. Raises HeldProblem."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o755 if mode & 0o004 else 0o700, parents=True, exist_ok=True)
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with open(fd, "w") as out:
            out.write(text)
            if durable:
                out.flush()
                os.fsync(fd)
        os.replace(unfinished, path)
        if not durable:
            return
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise HeldProblem(f"{place(str(path))}: {error.strerror}") from error
