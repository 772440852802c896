"""Run ``tproxy`` and flush nftables right before its N-th transaction: ``hook_with_flush.py N ARGUMENT...``.

Prints ``flushed`` when that was done.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

from tproxy.bridge import nftables
from tproxy.cli import main as command


def main() -> None:
    left = int(sys.argv.pop(1))
    transaction = nftables.transaction

    def flushing(commands: Iterable[str]) -> None:
        nonlocal left
        prepared = list(commands)  # what they are made of is read before the flush
        left -= 1
        if left == 0:
            subprocess.run(["nft", "flush", "ruleset"], check=True)
            print("flushed")
        transaction(prepared)

    nftables.transaction = flushing
    command.run()


main()
