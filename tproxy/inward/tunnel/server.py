"""The gateway's side of SSH: who may log in, and what a connection may ask for.

Needs the extra ``inward`` (asyncssh), which speaks SSH; nothing of it is done here.

There are three kinds of user names. ``join`` has any key, no certificate, and may only run the commands by
which nodes and operators get their certificates (``commands``). ``node:NAME`` has a certificate of the nodes'
authority, and makes offers: it asks to listen at ``/tunnel/NAME/OFFER``, where nothing is made in the file
system. ``operator:NAME`` has one of the operators' authority, and asks for connections to ``NODE:PORT`` or
``/tunnel/NODE/OFFER``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

import asyncssh
from asyncssh.public_key import SSHOpenSSHCertificate, decode_ssh_certificate, decode_ssh_public_key

from tproxy.inward.tunnel.authority import JOIN, NODE, OPERATOR, Authority, public_text
from tproxy.inward.tunnel.enrolment import Refused
from tproxy.inward.tunnel.hub import Caller, Hub
from tproxy.inward.tunnel.names import Target, target_of
from tproxy.inward.tunnel.records import Operator
from tproxy.inward.tunnel.streams import WINDOW, End

# Seconds that a connection without certificate may last, and how many of them there may be.
JOINING = 30.0
MOST_JOINING = 500
# Connections that have not logged in. They end after LOGIN seconds; more are refused.
MOST_PENDING = 2000
LOGIN = 20

ENDED = asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED


class Commands(Protocol):
    """What runs the commands of connections (``commands``)."""

    async def run(self, front: Front, stdin: Any, stdout: Any, stderr: Any) -> None: ...


class Front(asyncssh.SSHServer):
    """One connection to the gateway."""

    joining = 0  # connections of ``join``, of all fronts
    pending = 0  # connections that have not logged in

    def __init__(self, hub: Hub, authority: Authority, commands: Commands) -> None:
        self._hub, self._authority, self._commands = hub, authority, commands
        self.user = ""
        self.key = ""  # the public key that has logged in
        self.caller: Caller | None = None
        self._refusals: set[str] = set()
        self._counted = False
        self._pending = False

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        peer = conn.get_extra_info("peername") or ("?", 0)
        self.address = f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
        Front.pending += 1
        self._pending = True
        if Front.pending > MOST_PENDING:
            conn.abort()
            return
        # asyncssh tells its server which authority signed a certificate, but not its serial and key.
        self._validate = conn.validate_public_key
        setattr(conn, "validate_public_key", self._judged)  # noqa: B010 - for mypy it is a method

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_settled()
        if self._counted:
            Front.joining -= 1
        if self.caller is not None:
            self._hub.detach(self.caller)

    def _is_settled(self) -> None:
        if self._pending:
            self._pending = False
            Front.pending -= 1

    # Log in

    def begin_auth(self, username: str) -> bool:
        self.user = username
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == JOIN and Front.joining < MOST_JOINING

    def validate_ca_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        if username.startswith(NODE):
            return self._authority.is_nodes(key)
        return username.startswith(OPERATOR) and self._authority.is_operators(key)

    async def _judged(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        """Judge a key or certificate as asyncssh does, and by the state; write a refusal down."""
        certificate = _certificate(key_data)
        accepted = await self._validate(username, key_data, msg, signature)
        if username == JOIN:
            if accepted and msg:
                self.key = public_text(decode_ssh_public_key(key_data))
            return accepted
        if not accepted or certificate is None:
            self._refuse(username, self._why(username, certificate), certificate)
            return False
        _, _, name = username.partition(":")
        caller = Caller(username, name, public_text(certificate.key), self.address, self._connection)
        caller.serial, caller.until = certificate._serial, certificate._valid_before
        if fault := self._hub.fault(caller):
            self._refuse(username, fault, certificate)
            if msg:  # whoever has the key may know why
                self._connection.send_auth_banner(f"{fault}\r\n")
            return False
        if msg:  # without, the client asks whether to sign
            self.key = caller.key
            self.caller = caller
        return True

    def _why(self, username: str, certificate: SSHOpenSSHCertificate | None) -> str:
        """Why asyncssh refuses it."""
        if not username.startswith((NODE, OPERATOR)):
            return "unknown user"
        if certificate is None:
            return "no certificate"
        if not self.validate_ca_key(username, certificate.signing_key):
            return "a certificate of another authority"
        if username not in certificate.principals:
            return f"a certificate for {', '.join(certificate.principals)}"
        now = time.time()
        if now >= certificate._valid_before:
            return "the certificate has expired"
        if now < certificate._valid_after:
            return "the certificate is not valid yet"
        return "a wrong signature"

    def _refuse(self, username: str, reason: str, certificate: SSHOpenSSHCertificate | None) -> None:
        if reason not in self._refusals:  # a client asks twice: with and without a signature
            self._refusals.add(reason)
            serial = str(certificate._serial) if certificate is not None else ""
            self._hub.audit.write(
                "refused", who=username[:100], address=self.address, reason=reason, serial=serial
            )

    def auth_completed(self) -> None:
        self._is_settled()
        if self.user == JOIN:
            self.caller = None
            self._counted = True
            Front.joining += 1
            asyncio.get_running_loop().call_later(JOINING, self._connection.abort)
        elif self.caller is not None:
            self._hub.attach(self.caller)

    # What it may ask for

    def session_requested(self) -> Any:
        """Commands of the gateway; there is no shell."""
        return (
            self._connection.create_server_channel(encoding=None, window=64 * 1024),
            lambda stdin, stdout, stderr: self._commands.run(self, stdin, stdout, stderr),
        )

    def unix_server_requested(self, listen_path: str) -> Any:
        """A node makes an offer."""
        caller, target = self.caller, target_of(listen_path)
        if caller is None or not caller.who.startswith(NODE):
            return False
        if target is None or target.node != caller.name:
            self._hub.refuse(caller, f"it may not offer {listen_path[:100]!a}")
            return False
        if not self._hub.policy().may_offer(target.node, target.offer):
            self._hub.refuse(caller, f"the policy does not allow it to offer {target.offer}")
            return False
        caller.asked.add(target.offer)
        caller.offers.add(target.offer)

        def withdraw() -> None:
            caller.asked.discard(target.offer)
            caller.offers.discard(target.offer)

        return _Offer(withdraw)

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        return False

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        """An operator asks for a port of a node."""
        node = dest_host.lower()
        offer = self._hub.policy().offer_at(node, dest_port)
        target = Target(node, offer) if offer else None
        channel = self._connection.create_tcp_channel(window=WINDOW)
        return channel, self._opened(target, f"{node[:100]}:{dest_port}")

    def unix_connection_requested(self, dest_path: str) -> Any:
        """An operator asks for an offer by its path."""
        channel = self._connection.create_unix_channel(window=WINDOW)
        return channel, self._opened(target_of(dest_path), dest_path[:100])

    async def _opened(self, target: Target | None, shown: str) -> End:
        try:
            return await self._hub.open(*self._judged_target(target, shown))
        except Refused as refusal:
            raise asyncssh.ChannelOpenError(ENDED, str(refusal)) from None

    def _judged_target(self, target: Target | None, shown: str) -> tuple[Caller, Target]:
        """Return who asks for what. Raises Refused."""
        caller = self.caller
        if caller is None:
            raise Refused("only operators use nodes")
        if not caller.who.startswith(OPERATOR):
            raise self._hub.refuse(caller, "only operators use nodes", target=shown)
        if time.time() >= caller.until:
            raise self._hub.refuse(caller, "the certificate has expired", target=shown)
        operator = self._hub.store.find(Operator, caller.name)
        if target is None or operator is None:
            raise self._hub.refuse(caller, f"nothing is offered at {shown}", target=shown)
        if fault := self._hub.policy().fault_of(operator, target.node, target.offer):
            raise self._hub.refuse(caller, fault, node=target.node, offer=target.offer)
        return caller, target


class _Offer(asyncssh.SSHListener):
    """Stands for a socket that listens: what a node has asked for."""

    def __init__(self, withdraw: Callable[[], None]) -> None:
        super().__init__()
        self._withdraw = withdraw

    def close(self) -> None:
        self._withdraw()

    async def wait_closed(self) -> None:
        pass


def _certificate(key_data: bytes) -> SSHOpenSSHCertificate | None:
    try:
        found = decode_ssh_certificate(key_data)
    except asyncssh.KeyImportError:
        return None
    return found if isinstance(found, SSHOpenSSHCertificate) else None


async def listen(hub: Hub, authority: Authority, commands: Commands, sock: Any) -> asyncssh.SSHAcceptor:
    """Accept connections at a listening socket."""
    return await asyncssh.listen(
        sock=sock,
        backlog=1024,
        server_factory=lambda: Front(hub, authority, commands),
        server_host_keys=[authority.host_key],
        server_version="tproxy",
        login_timeout=LOGIN,
        keepalive_interval=2,
        keepalive_count_max=2,
        password_auth=False,
        kbdint_auth=False,
        host_based_auth=False,
        gss_host=None,
        x11_forwarding=False,
        agent_forwarding=False,
        allow_pty=False,
        line_editor=False,
        compression_algs=None,
        tcp_keepalive=True,
    )
