"""The steps that every operation on a bridge has in common. The caller holds the host's lock."""

from __future__ import annotations

from collections.abc import Callable

from tproxy.bridge import plan, plumbing
from tproxy.daemon import client
from tproxy.errors import KernelError, NftError, ProcessError
from tproxy.model import Settings
from tproxy.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from tproxy.bridge.actions import Action


def found(bridge: str, look: Callable[[str], plan.Observed]) -> plan.Observed:
    """What a ``look`` finds of the bridge, once maps are restored that somebody deleted with all others."""
    try:
        seen = look(bridge)
    except KernelError:
        from tproxy.daemon import host_mounts

        host_mounts.require_reach()  # that is the reason then
        raise
    if seen.map is None:
        from tproxy.operations import lost_table

        if lost_table.restore():
            seen = look(bridge)
    return seen


def carry_out(
    bridge: str, observed: plan.Observed, planned: Callable[[plan.Observed], list[Action]]
) -> list[Action]:
    """Carry out what is ``planned`` for what was ``observed``; return the actions."""
    actions = planned(observed)
    require_host_mounts(actions)
    try:
        plumbing.carry_out(actions)
    except NftError:  # other programs do not take our lock: one may have flushed nftables since the look
        actions = planned(found(bridge, plumbing.observe))
        plumbing.carry_out(actions)
    return actions


def require_host_mounts(planned: list[Action]) -> None:
    """Raise KernelError when namespaces or links are to change, and the host would not see the change."""
    if not planned:
        return
    from tproxy.bridge import actions

    if actions.need_host_mounts(planned):
        from tproxy.daemon import host_mounts

        host_mounts.require_reach()


def apply(bridge: str, settings: Settings) -> None:
    """Make the bridge's map take effect; raise ProcessError when a port cannot listen."""
    # The configuration file of this hook does not decide about a watcher: another file may want it.
    problems = client.apply([bridge], settings._replace(watch_file=None))
    if problems:
        raise ProcessError("; ".join(problems))


def apply_or_queue(bridge: str) -> None:
    """As ``apply``, also where no daemon answers: one that hangs looks at the map when it goes on."""
    if client.daemon_answers():
        apply(bridge, Settings())
    else:
        client.queue_apply(bridge)
