"""Run ``tproxy`` as on a kernel without nftables bridge tables: ``hook_without_bridge_tables.py ARGUMENT...``

Such a kernel lacks CONFIG_NF_TABLES_BRIDGE. libnftables refuses to add a table or chain of the family bridge,
as it does there (nft_supported_family in its source), and with it the whole transaction.
"""

from __future__ import annotations

from typing import Any

import nftables

from tproxy.cli import main as command

REFUSAL = (1, "", "Error: Could not process rule: Operation not supported")


def main() -> None:
    real = nftables.Nftables.cmd

    def cmd(library: Any, text: str) -> Any:
        if "add table bridge" in text or "add chain bridge" in text:
            return REFUSAL
        return real(library, text)

    nftables.Nftables.cmd = cmd
    command.run()


main()
