"""The node: keeps a link to the gateway for ever, and leads streams to what it offers.

Needs the extra ``inward`` (asyncssh). The gateway's address is resolved anew for each try. A node that does
not know whether the gateway is there finds out within seconds, by keepalives.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import asyncssh

from tproxy.errors import TproxyError
from tproxy.inward.tunnel.authority import JOIN, NODE
from tproxy.inward.tunnel.backoff import Backoff
from tproxy.inward.tunnel.identity import CERTIFICATE, OPERATORS, Identity, host_keys, remaining
from tproxy.inward.tunnel.names import Target
from tproxy.inward.tunnel.settings import Address, Settings
from tproxy.inward.tunnel.streams import WINDOW, End, join
from tproxy.process import inward_socket

# Seconds for a connection to the gateway, for an answer of it, and for what is offered to accept.
CONNECTING, ANSWERING, DIALLING = 15.0, 20.0, 8.0
# Before it ends, a certificate is renewed at this part of its time; at the latest every hour it is looked at.
_RENEW_AT = 0.5
_LOOK = 3600.0

_log = logging.getLogger("tproxy.tunnel")


class NotYet(TproxyError):
    """There is no link for now; the text says why."""


class TunnelNode:
    """One node."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.settings = settings
        self.identity = Identity(directory)
        self._said = ""  # the last line of the log: one that repeats itself is not written again

    async def run(self, up: Callable[[], None] = lambda: None) -> None:
        """Keep the link, for ever. ``up`` is called whenever there is one."""
        backoff = Backoff(random.random)
        while True:
            begun = time.monotonic()
            try:
                await self._link(up)
            except (asyncssh.Error, OSError, asyncio.TimeoutError, TproxyError) as error:
                self._say(f"no tunnel to {self.settings.gateway}: {_reason(error)}")
            seconds = backoff.wait(time.monotonic() - begun)
            await asyncio.sleep(seconds)

    async def _link(self, up: Callable[[], None]) -> None:
        key = self.identity.prepare()
        certificate = self.identity.certificate()
        if certificate is None or remaining(certificate)[0] < 60:
            certificate = await self.enrol(key)
        try:
            connection = await self._connect(NODE + self.settings.name, [(key, certificate)])
        except asyncssh.PermissionDenied as error:
            # It may be revoked, or the node was removed, or the clock is wrong: the gateway says when asked.
            self.identity.forget_certificate()
            raise NotYet(f"the gateway refuses the certificate: {error.reason}") from None
        async with connection:
            refused = await self._make_offers(connection, [*self.settings.offers])
            offered = [each for each in self.settings.offers if each not in refused]
            self._say(f"tunnel to {self.settings.gateway} as {self.settings.name}: {', '.join(offered)}")
            up()
            if keys := host_keys(self.settings.host_keys):
                await self._ask(connection, "host-keys", "\n".join(keys) + "\n")
            beside = [
                asyncio.ensure_future(each)
                for each in (self._renew(connection), self._offer_again(connection, refused))
            ]
            try:
                await connection.wait_closed()
            finally:
                for each in beside:
                    each.cancel()
        raise NotYet("the connection has ended")

    async def _connect(self, user: str, keys: list[Any]) -> asyncssh.SSHClientConnection:
        gateway = self.settings.gateway
        connecting = asyncssh.connect(
            gateway.host,
            gateway.port,
            username=user,
            client_keys=keys,
            known_hosts=([asyncssh.import_public_key(self.settings.key)], [], []),
            agent_path=None,
            config=None,
            keepalive_interval=2,
            keepalive_count_max=2,
            login_timeout=CONNECTING,
            preferred_auth="publickey",
            compression_algs=None,
        )
        return await asyncio.wait_for(connecting, CONNECTING)

    # Certificates

    async def enrol(self, key: asyncssh.SSHKey) -> asyncssh.SSHCertificate:
        """Get a certificate by the key; a key that the gateway does not know is shown with the join token."""
        async with await self._connect(JOIN, [key]) as connection:
            name = self.settings.name
            done = await self._ask(connection, f"certificate {name}")
            if done.exit_status == 77 and self.settings.token:
                lines = [self.settings.token, *host_keys(self.settings.host_keys)]
                done = await self._ask(connection, f"enrol {name}", "\n".join(lines) + "\n")
            certificate = self._take(done)
            operators = await self._ask(connection, "operators-ca")
            if operators.exit_status == 0:
                self.identity.write(OPERATORS, str(operators.stdout))
        return certificate

    def _take(self, done: asyncssh.SSHCompletedProcess) -> asyncssh.SSHCertificate:
        if done.exit_status != 0:
            raise NotYet(str(done.stderr or done.stdout or "the gateway gives no answer").strip())
        text = str(done.stdout)
        certificate = asyncssh.import_certificate(text)
        self.identity.write(CERTIFICATE, text)
        return certificate

    @staticmethod
    async def _ask(
        connection: asyncssh.SSHClientConnection, command: str, text: str = ""
    ) -> asyncssh.SSHCompletedProcess:
        return await asyncio.wait_for(connection.run(command, input=text), ANSWERING)

    async def _renew(self, connection: asyncssh.SSHClientConnection) -> None:
        """Renew the certificate through the tunnel, as long as there is one."""
        while True:
            left, whole = remaining(self.identity.certificate())
            await asyncio.sleep(min(max(left - whole * _RENEW_AT, 1.0), _LOOK))
            left, whole = remaining(self.identity.certificate())
            if left > whole * _RENEW_AT:
                continue
            try:
                self._take(await self._ask(connection, f"certificate {self.settings.name}"))
            except (asyncssh.Error, OSError, asyncio.TimeoutError, TproxyError) as error:
                self._say(f"the certificate is not renewed: {_reason(error)}")
                await asyncio.sleep(random.uniform(5, 15))

    # Offers

    async def _make_offers(self, connection: asyncssh.SSHClientConnection, names: list[str]) -> list[str]:
        """Make these offers; return those that the gateway refuses."""
        refused = []
        for name in names:
            dial = partial(self._dial, self.settings.offers[name])
            path = Target(self.settings.name, name).path
            try:
                await connection.create_unix_server(dial, path, window=WINDOW)
            except asyncssh.ChannelListenError:
                self._say(f"the gateway's policy does not allow to offer {name}")
                refused.append(name)
        return refused

    async def _offer_again(self, connection: asyncssh.SSHClientConnection, refused: list[str]) -> None:
        """Make the offers that were refused again and again: the policy can change."""
        while refused:
            await asyncio.sleep(random.uniform(20, 40))
            refused = await self._make_offers(connection, refused)

    async def _dial(self, address: Address) -> Any:
        """Return the end of a stream whose other end is connected to what is offered."""
        loop = asyncio.get_running_loop()
        far = End()
        path = address.path or ("" if address.host else inward_socket.path())
        dialling: Any = (
            loop.create_unix_connection(lambda: far, path)
            if path
            else loop.create_connection(lambda: far, address.host, address.port)
        )
        try:
            await asyncio.wait_for(dialling, DIALLING)
        except asyncio.TimeoutError:
            reason = f"{path or address} does not answer"
        except OSError as error:
            reason = f"{path or address}: {error.strerror or error}"
        else:
            near: Any = End()
            join(near, far)
            return near
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, reason)

    def _say(self, line: str) -> None:
        if line != self._said:
            self._said = line
            _log.info("%s", line)


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "it does not answer"
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return "it has another key than the one of the configuration"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


async def run(settings: Settings, directory: Path, up: Callable[[], None]) -> None:
    """Keep the node's link until the process is told to end."""
    with suppress(asyncio.CancelledError):
        await TunnelNode(settings, directory).run(up)
