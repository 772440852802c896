"""The terminal: exit codes, messages of one line, and the check for root."""

import os
import sys
from collections.abc import Iterable
from contextlib import suppress

from tproxy.errors import TproxyError

EXIT_FAILURE = 1
EXIT_USAGE = 2  # the same as click's
EXIT_INTERNAL = 70  # EX_SOFTWARE, sysexits.h(3head): please report it
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def require_root() -> None:
    """Raise TproxyError unless the process runs as root."""
    if os.geteuid() != 0:
        raise TproxyError("must be run as root")


def say(line: str) -> None:
    """Print one line on stderr, prefixed with the program's name.

    If stderr is closed or full, nothing is printed: the exit code still tells of the failure.
    """
    if sys.stderr is None:  # closed; print() would take None for stdout
        return
    with suppress(OSError):
        print(f"tproxy: {' '.join(line.split())}", file=sys.stderr)


def in_utf8(words: Iterable[str]) -> list[str]:
    """Return arguments of the process decoded as UTF-8, like names in files, in any locale of the caller.

    Bytes that are not UTF-8 become surrogate escapes.
    """
    return [os.fsencode(word).decode(errors="surrogateescape") for word in words]
