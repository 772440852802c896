"""The parts of a node that this package runs: squid, and the front with resolver and setup server."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from tproxy.addresses import SERVICE_ADDRESS
from tproxy.egress import front, resolver
from tproxy.egress.clients.server import Server
from tproxy.egress.layout import Layout
from tproxy.egress.mirror.site_key import SiteKey
from tproxy.egress.policy import judging
from tproxy.egress.policy.current import Current
from tproxy.egress.policy.reader import load
from tproxy.egress.policy.rules import Policy
from tproxy.egress.service import guard, handover, links, preparation
from tproxy.egress.squid.authority import Authority
from tproxy.egress.squid.compiler import Surroundings
from tproxy.errors import ProcessError
from tproxy.kernel.privileges import uid_of
from tproxy.log.lazy import logger
from tproxy.process.service_manager import report_ready
from tproxy.typed import NoReturn

log = logger(__name__)


def surroundings(root: Path | None) -> Surroundings:
    """Return what a node is like; for tests, below ``root``, where a file "hosts" names upstreams."""
    if root is None:
        return Surroundings(Layout())
    hosts = root / "hosts"
    return Surroundings(Layout.below(root), hosts_file=str(hosts) if hosts.exists() else "/etc/hosts")


def run_squid(node: Surroundings) -> NoReturn:
    """Prepare everything, show the authority, and become squid. Raises TproxyError."""
    policy = load(node.layout.policy)
    for line in preparation.prepare(policy, node):
        print(line, flush=True)
    preparation.check(node)
    guard.load(policy, node.user)
    handover.take(node)
    command = preparation.squid_command(node)
    os.execvp(command[0], command)


def run_front(node: Surroundings) -> None:
    """Run the front, the resolver and the setup server until SIGTERM or SIGINT."""
    asyncio.run(_front(node))


async def _front(node: Surroundings) -> None:
    current = Current(node.layout.policy)
    listen = current.get().listen
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    proxy = (listen.address, listen.proxy[0])
    tls = await front.start(
        listen.address,
        listen.transparent,
        proxy,
        lambda caller: judging.limits(current.get(), caller).connections,
    )
    names, names_tcp = await resolver.start(listen.address, listen.resolver, current.get)
    scripts = Server(
        listen.address,
        listen.setup,
        Authority(node.layout.authority).trusted,
        SiteKey(node.layout.store).public,
        f"{SERVICE_ADDRESS}:{listen.proxy[0]}",
    )
    gate = await links.start_gate(node, listen) if listen.hosts else None
    _give_up_root()
    report_ready()
    print("tproxy: the front listens", file=sys.stderr, flush=True)
    await stop.wait()
    scripts.close()
    names.close()
    names_tcp.close()
    tls.close()
    if gate is not None:
        gate.close()


def _give_up_root() -> None:
    """Become a user of our own, as workers do: guests' bytes are read from here on. The ports are bound."""
    if os.geteuid() == 0:
        own = uid_of(os.getpid())
        os.setgroups([])
        os.setresgid(own, own, own)
        os.setresuid(own, own, own)


def reload_squid(node: Surroundings, policy: Policy) -> bool:
    """Have squid take changed ports and inner addresses. Downloads go on, and new connections wait.

    Return False when there was nothing to change, as after a change of rules. Raises TproxyError, with the
    old configuration in place, when squid would refuse the new one.
    """
    node = handover.current(node)
    path = preparation.configuration(node)
    if not path.exists():
        raise ProcessError("squid has not been started here: tproxy egress up")
    old, new = path.read_text(), preparation.text(policy, node)
    if old == new:
        return False
    path.write_text(new)
    try:
        preparation.check(node)
    except ProcessError:
        path.write_text(old)
        raise
    guard.load(policy, node.user)
    handover.reconfigure(policy, node)
    return True
