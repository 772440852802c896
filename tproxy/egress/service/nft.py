"""Loads rulesets of the packet filter by nft(8)."""

from __future__ import annotations

import subprocess

from tproxy.errors import NftError


def load(text: str) -> None:
    """Load this text as one transaction. Raises NftError."""
    try:
        done = subprocess.run(["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NftError("the program nft is missing: apt install nftables") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise NftError(f"nft refused the rules of the egress: {lines[0]}")


def remove(table: str) -> None:
    """Remove a table of the family inet, if it is there. Raises NftError."""
    load(f"table inet {table}\ndelete table inet {table}\n")
