"""The steps that every operation on a bridge has in common. The caller holds the host's lock."""

from __future__ import annotations

from collections.abc import Callable

from tproxy.bridge import plan, plumbing
from tproxy.daemon import client
from tproxy.errors import DaemonEnded, KernelError, NftError, NotRunning, ProcessError
from tproxy.model import Settings
from tproxy.process.run_directory import Lock
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
    """Carry out what is ``planned`` for what was ``observed``; return the actions.

    Not those that have to wait until the processes know of the change (``finish``).
    """
    actions = planned(observed)
    require_host_mounts(actions)
    try:
        plumbing.carry_out(_early(actions))
    except NftError:  # other programs do not take our lock: one may have flushed nftables since the look
        actions = planned(found(bridge, plumbing.observe))
        plumbing.carry_out(_early(actions))
    return actions


def finish(planned: list[Action]) -> None:
    """Carry out what ``carry_out`` has left for later."""
    if planned:
        from tproxy.bridge import actions

        plumbing.carry_out(actions.in_two_steps(planned)[1])


def _early(planned: list[Action]) -> list[Action]:
    if not planned:
        return []
    from tproxy.bridge import actions

    return actions.in_two_steps(planned)[0]


def require_host_mounts(planned: list[Action]) -> None:
    """Raise KernelError when namespaces or links are to change, and the host would not see the change."""
    if not planned:
        return
    from tproxy.bridge import actions

    if actions.need_host_mounts(planned):
        from tproxy.daemon import host_mounts

        host_mounts.require_reach()


def apply(bridge: str, settings: Settings, lock: Lock) -> None:
    """Have a daemon, and make the bridge's map take effect; raise ProcessError when a port cannot listen.

    ``lock`` must hold the bridge's lock too. The host's lock is released as soon as the daemon has been
    told, so a bridge whose processes do not answer delays no other.
    """
    lock.take()
    client.ensure_daemon(settings, lock)
    try:
        _apply(bridge, settings, lock)
    except (DaemonEnded, NotRunning):  # it crashed, or another command ended it meanwhile
        lock.take()
        client.ensure_daemon(settings, lock)
        _apply(bridge, settings, lock)


def apply_or_queue(bridge: str, lock: Lock) -> None:
    """As ``apply``, also where no daemon answers: one that hangs looks at the map when it goes on."""
    if client.daemon_answers():
        try:
            _apply(bridge, Settings(), lock)
            return
        except (DaemonEnded, NotRunning):  # with the last bridge, or it crashed: the next one reads all maps
            lock.take()
    client.queue_apply(bridge)


def _apply(bridge: str, settings: Settings, lock: Lock) -> None:
    # The configuration file of this hook does not decide about a watcher: another file may want it.
    settings = settings._replace(watch_file=None)
    problems = client.apply([bridge], settings, lock=lock)
    if problems:
        raise ProcessError("; ".join(problems))
