"""Run ``tproxy`` as on a kernel without nft_limit: ``hook_without_limits.py ARGUMENT...``

Such a kernel lacks CONFIG_NFT_LIMIT. It refuses a rule with an expression that it does not know with ENOENT
(nft_expr_type_get), and with the rule the whole transaction.
"""

from __future__ import annotations

from typing import Any

import nftables

from tproxy.cli import main as command

REFUSAL = (1, "", "Error: Could not process rule: No such file or directory")


def main() -> None:
    real = nftables.Nftables.cmd

    def cmd(library: Any, text: str) -> Any:
        return REFUSAL if "limit rate" in text else real(library, text)

    nftables.Nftables.cmd = cmd
    command.run()


main()
