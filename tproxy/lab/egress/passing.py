"""A directory that is gone when its owner is, however the owner ends."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Reads until the owner's end of the pipe is closed. Programs that still end may write a last file meanwhile.
_REMOVE = 'cat >/dev/null; until rm -rf "$1"; do sleep 0.1; done'


@contextmanager
def folder(prefix: str) -> Iterator[Path]:
    """Yield a new directory, which all users of this host may look into. Its end waits until it is gone."""
    made = Path(tempfile.mkdtemp(prefix=prefix))
    made.chmod(0o755)
    remover = subprocess.Popen(
        ["sh", "-c", _REMOVE, "remover", str(made)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C must not end it
    )
    with remover:  # whose end closes the pipe, and waits
        yield made
