"""What every command needs at the terminal: exit codes, one-line messages, and the check for root."""

import os
import sys
from collections.abc import Iterable
from contextlib import suppress

from tproxy.errors import TproxyError

EXIT_FAILURE = 1
EXIT_USAGE = 2  # as click has it
EXIT_INTERNAL = 70  # EX_SOFTWARE, sysexits.h(3head): please report it
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def require_root() -> None:
    """Raise TproxyError unless the process runs as root."""
    if os.geteuid() != 0:
        raise TproxyError("must be run as root")


def say(line: str) -> None:
    """Print one line on stderr, prefixed with the program's name.

    A stderr that is closed or full is ignored: the exit code still tells.
    """
    if sys.stderr is None:  # closed; print() would take None for stdout
        return
    with suppress(OSError):
        print(f"tproxy: {' '.join(line.split())}", file=sys.stderr)


def in_utf8(words: Iterable[str]) -> list[str]:
    """Arguments of the process read in UTF-8, as names in files are, whatever the caller's locale."""
    return [os.fsencode(word).decode(errors="surrogateescape") for word in words]
