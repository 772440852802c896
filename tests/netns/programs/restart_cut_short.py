"""``tproxy restart`` as if it had been killed when the new daemon was there, and knew of no map yet."""

from __future__ import annotations

import sys

from tproxy.cli import main
from tproxy.model import Settings
from tproxy.operations import life


def cut_short(settings: Settings, *, reopen_logs: bool) -> list[str]:
    return []


life._apply_all = cut_short
sys.argv[1:] = ["restart"]
main.main()
