"""Applies a changed configuration file to the bridges that are up, without a VM start.

A hook call names the bridge's network, and the hook keeps it in the comment of the service map
(docs/contract.md, nftables is the database). So the same comparison can run again for that network. A hook
that was told no network leaves no comment. Its note in the run directory, or the bridge's guards, tell its
map from one that another program loaded. The file says nothing about such a map, so it is skipped.
"""

from __future__ import annotations

from typing import NamedTuple

from tproxy.bridge import guards, nftables
from tproxy.config.services import Config, Problem
from tproxy.config.union import Offer
from tproxy.errors import TproxyError
from tproxy.model import Network, ServiceMap
from tproxy.operations import life, lost_table, reconcile
from tproxy.process import run_directory

NOT_BY_A_HOOK = "its map names no network, and no hook brought the bridge up"


class Outcome(NamedTuple):
    """The result for one bridge: whether it changed, why that failed, or why the bridge was skipped."""

    bridge: str
    changed: bool = False
    problem: str = ""
    skipped: str = ""


class Applied(NamedTuple):
    """What came of a configuration: for each bridge, warnings about the file, and what the processes lack."""

    outcomes: list[Outcome]
    warnings: list[Problem]
    problems: list[str]

    @property
    def failures(self) -> list[str]:
        """A line for each thing that failed."""
        failed = [f"{each.bridge}: {each.problem}" for each in self.outcomes if each.problem]
        return [*dict.fromkeys([*failed, *self.problems])]

    @property
    def counts(self) -> dict[str, int]:
        """How many bridges changed, did not, failed and were skipped."""
        changed = sum(each.changed for each in self.outcomes)
        failed = sum(bool(each.problem) for each in self.outcomes)
        skipped = sum(bool(each.skipped) for each in self.outcomes)
        unchanged = len(self.outcomes) - changed - failed - skipped
        return {"changed": changed, "unchanged": unchanged, "failed": failed, "skipped": skipped}


def apply(read: Config) -> Applied:
    """Bring bridges and processes to what the configuration says. Raises TproxyError, having changed none."""
    with run_directory.lock():
        lost_table.require_table()
    outcomes, warnings = refresh(read)
    with run_directory.lock(run_directory.ALL_BRIDGES) as lock:
        # This applies the log level and starts or ends a watcher. A watcher that runs reads the file again.
        problems = life.start(life.settings_from(read), lock, reopen_logs=True)
    return Applied(outcomes, warnings, problems)


def refresh(read: Config) -> tuple[list[Outcome], list[Problem]]:
    """Bring all bridges that hooks brought up to what the file says; return the outcomes and the warnings.

    Each warning is returned once. A bridge for which this fails stays as it was, and the others are still
    refreshed. Where no entry applies any more, the map stays, but empty: an entry may come back. Raises
    NftError when maps or guards cannot be read.
    """
    maps = sorted(nftables.read_maps(), key=lambda each: each.bridge)
    ours = following(maps)
    outcomes = [Outcome(each.bridge, skipped=NOT_BY_A_HOOK) for each in maps if each not in ours]
    warnings = dict.fromkeys(read.warnings)
    # All host names are resolved here: before anything changes, and without holding the host's lock.
    offer = Offer(read)
    offer.look_up(network for each in ours for network in each.networks)
    for found in ours:
        union = offer.union(found.orders, found)
        warnings |= dict.fromkeys(union.problems)
        reconcile.warn_of_unnamed(None, found._replace(services=union.services), union)
        try:
            outcomes.append(Outcome(found.bridge, reconcile.refresh(found, union, read.settings)))
        except TproxyError as error:
            outcomes.append(Outcome(found.bridge, problem=str(error)))
    return outcomes, list(warnings)


def following(maps: list[ServiceMap]) -> list[ServiceMap]:
    """Return those of the maps that follow the configuration file. Raises NftError."""
    if all(each.network != Network() for each in maps):
        return maps
    hooked = {*run_directory.used()}
    hooked |= {bridge for bridge, found in nftables.read_guards().items() if found.own(guards.VETHS)}
    return [each for each in maps if each.network != Network() or each.bridge in hooked]
