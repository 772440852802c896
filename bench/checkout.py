"""A checkout of tproxy that is measured: this one, or an older one beside it (``make bench BASE=path``)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tproxy.lab.hypervisor import Hypervisor


class Checkout(NamedTuple):
    """``path`` is the folder with the package ``tproxy``; ``python`` runs it."""

    path: Path
    python: str

    def tproxy(self, host: Hypervisor, *arguments: str) -> None:
        """Run this checkout's command ``tproxy`` in a stand-in. Raises ProcessError when it fails."""
        host.run(self.python, "-m", "tproxy", *arguments, env={"PYTHONPATH": str(self.path)})

    def described(self) -> str:
        """The commit, as git describes it; the path where git knows nothing of it."""
        git = ["git", "-C", str(self.path), "describe", "--always", "--dirty"]
        done = subprocess.run(git, capture_output=True, text=True, check=False)
        return done.stdout.strip() or str(self.path)


HERE = Checkout(Path(__file__).parents[1], sys.executable)


def checkout(path: str) -> Checkout:
    """The checkout below a path, with the Python of its own virtual environment where it has one.

    Compiles it, since users have bytecode. Raises ValueError where there is no tproxy.
    """
    root = Path(path).resolve()
    if not (root / "tproxy/__main__.py").is_file():
        raise ValueError(f"{root} is not a checkout of tproxy")
    own = root / ".venv/bin/python"
    python = str(own) if own.exists() else sys.executable
    subprocess.run([python, "-m", "compileall", "-q", str(root / "tproxy")], check=True)
    return Checkout(root, python)
