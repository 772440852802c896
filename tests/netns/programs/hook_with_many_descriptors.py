"""Run ``tproxy`` with 200 open descriptors: ``hook_with_many_descriptors.py ARGUMENT...``.

A watcher of many bridges has as many when it starts a daemon.
"""

from __future__ import annotations

import os

from tproxy.cli import main as command


def main() -> None:
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(200)]
    command.run()
    del held


main()
