"""The loop of `tproxy names run`: passes until a signal ends it; and its unit for systemd."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType

from tproxy.errors import ProcessError, TproxyError
from tproxy.inward.names.keeper import Keeper

UNIT = "tproxy-names.service"
UNITS = "/etc/systemd/system"

# While servers do not answer, the pause doubles up to this many seconds.
LONGEST_PAUSE = 60.0


def run(keeper: Keeper, every: float) -> None:
    """Make passes, ``every`` seconds apart. Returns when the process is told to end."""
    ending = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ending.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, end)

    def prove() -> None:
        while not ending.wait(every):
            with suppress(TproxyError):  # the pass says it
                keeper.prove()

    # Resolvers that are silent must not hold up what others wait for.
    threading.Thread(target=prove, daemon=True).start()
    pause = every
    while not ending.is_set():
        try:
            worked = keeper.once()
            keeper.tell("pass", "")
        except TproxyError as error:  # such as a file that cannot be used: all stays as it is
            worked = False
            keeper.tell("pass", f"{error}: nothing changes")
        pause = every if worked else min(2 * pause, max(LONGEST_PAUSE, every))
        ending.wait(pause)


def up(options: list[str]) -> list[str]:
    """Install and start the unit, with these options of `tproxy names run`; return what was done.

    Raises ProcessError, also where systemd does not run the host.
    """
    if not os.path.isdir("/run/systemd/system"):
        raise ProcessError("systemd does not run this host: start `tproxy names run` by its service manager")
    place = Path(UNITS) / UNIT
    text = unit(options)
    if place.exists() and place.read_text() == text:
        _systemctl("start", UNIT)
        return []
    place.write_text(text)
    _systemctl("daemon-reload")
    _systemctl("enable", UNIT)
    _systemctl("restart", UNIT)
    return [f"{UNIT} runs"]


def down() -> list[str]:
    """End and remove the unit; return what was done. Raises ProcessError."""
    place = Path(UNITS) / UNIT
    if not place.exists():
        return []
    _systemctl("disable", "--now", UNIT)
    place.unlink()
    _systemctl("daemon-reload")
    return [f"{UNIT} has ended"]


def unit(options: list[str]) -> str:
    """Return the text of the unit."""
    command = shlex.join([sys.executable, "-m", "tproxy", "names", "run", *options]).replace("%", "%%")
    text = (Path(__file__).parents[2] / "drivers" / "gateway" / UNIT).read_text()
    return text.replace("@RUN@", command)


def _systemctl(*arguments: str) -> None:
    done = subprocess.run(["systemctl", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise ProcessError(f"systemctl {' '.join(arguments)}: {done.stderr.strip()}")
