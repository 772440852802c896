"""Finding the configuration file, and reading its text from the disk."""

import os
import time
from collections.abc import Mapping

from tproxy.config.services import place
from tproxy.errors import ConfigError, quoted

# The last good document of a host that follows a fleet's store (docs/contract.md, Document of a fleet). What
# it says joins the file that is used; it is the file where there is no other one.
DOCUMENT = "/var/lib/tproxy/fleet/document.yaml"

SEARCH_PATH = ("/var/tmp/one/etc/vnm/OpenNebulaNetwork.conf", "/etc/tproxy/tproxy.yaml", DOCUMENT)

# In the first line of a document: seconds since 1970 after which it does not count any more; 0 for never.
NOT_AFTER = " not_after="

MAX_BYTES = 1 << 20  # arbitrary: 100 entries are 10 KB, so a larger file is some other kind of file


def search(explicit: str | None, environ: Mapping[str, str]) -> str | None:
    """Return the path of the file to use, or None when there is none.

    ``explicit`` is the value of --config. Raises ConfigError when a file that was named is missing: another
    file that happens to exist must never replace it.
    """
    for named, by in ((explicit, "--config"), (environ.get("TPROXY_CONFIG") or None, "$TPROXY_CONFIG")):
        if named is not None:
            if not os.path.lexists(named):
                raise ConfigError(f"{quoted(named)}: no such file (from {by})")
            return named
    return next(filter(os.path.lexists, SEARCH_PATH), None)


def required(explicit: str | None, environ: Mapping[str, str]) -> str:
    """Return the path of the file to use, as ``search`` does. Raises ConfigError when there is none."""
    path = search(explicit, environ)
    if path is None:
        raise ConfigError(f"no configuration file: give --config FILE or write {SEARCH_PATH[-2]}")
    return path


def document() -> str | None:
    """Return the text of the host's document; None when it has none, or when the time of it is over.

    Raises ConfigError as ``text_of`` does: a document that cannot be read is not an empty one.
    """
    if not os.path.lexists(DOCUMENT):
        return None
    text = text_of(DOCUMENT)
    return None if is_over(text, time.time()) else text


def is_over(text: str, now: float) -> bool:
    """Whether the time of a document is over. ``now`` is in seconds since 1970."""
    digits = text.partition("\n")[0].rpartition(NOT_AFTER)[2]
    return digits.isdecimal() and 0 < int(digits) <= now


def text_of(path: str) -> str:
    """Return the text of the file. Raises ConfigError when it cannot be read, is too large or not UTF-8."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{place(path)}: {error.strerror or type(error).__name__}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{place(path)}: larger than {MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{place(path, line)}: not UTF-8") from error
