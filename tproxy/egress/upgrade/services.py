"""Lets the services of the egress run the program that was installed."""

from __future__ import annotations

import os
import subprocess
import sys

from tproxy.egress.service.systemd import HOSTS, LINK, SERVICES, UNITS
from tproxy.errors import ProcessError


def restart() -> str:
    """Start the services of systemd again, with the new units, and return a line to show.

    Raises ProcessError. What runs in a terminal is for its operator.
    """
    names = [name for name in (*SERVICES, HOSTS, LINK) if (UNITS / name).exists()]
    if not os.path.isdir("/run/systemd/system") or not names:
        return "no services of systemd run here: start again what runs in a terminal"
    before = {name: _since(name) for name in names}
    if SERVICES[0] in names:
        _run(sys.executable, "-m", "tproxy", "egress", "up")  # the new program writes its own units
    # What that has started again already is not started twice.
    if left := [name for name in names if _since(name) == before[name]]:
        _run("systemctl", "try-restart", *left)
    return f"started again: {', '.join(names)}"


def _since(name: str) -> str:
    return _run("systemctl", "show", "--property=ActiveEnterTimestampMonotonic", name)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise ProcessError(
            f"installed, but the services did not start again: {(lines or ['no reason given'])[-1]}"
        )
    return done.stdout
