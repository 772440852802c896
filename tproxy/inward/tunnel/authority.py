"""The gateway's keys, and the certificates of nodes and operators. Needs the extra ``inward`` (asyncssh).

There are two authorities, so that no certificate of a node can be one of an operator. Nodes' sshd trust the
operators' one. A certificate is for one connection's user name (``node:NAME``, ``operator:NAME``).
"""

from __future__ import annotations

import secrets
import time
from typing import NamedTuple

import asyncssh

from tproxy.errors import TproxyError
from tproxy.inward.tunnel.records import Node, Operator
from tproxy.inward.tunnel.store import Store

NODE, OPERATOR, JOIN = "node:", "operator:", "join"

HOST_KEY, NODES, OPERATORS = "host_key", "nodes_ca", "operators_ca"

# Seconds that certificates are valid. A node renews its one after a half of that.
NODE_LIFETIME = 24 * 3600.0
OPERATOR_LIFETIME = 12 * 3600.0
# A clock may be that much behind the gateway's.
BACKDATED = 300


class Certificate(NamedTuple):
    """A certificate as OpenSSH writes it, its serial, and until when it is valid, in seconds since 1970."""

    text: str
    serial: int
    until: float


class Authority:
    """The keys of a gateway, made where they are missing."""

    def __init__(self, store: Store, node_lifetime: float = NODE_LIFETIME) -> None:
        with store.locked():
            self.host_key, self._nodes, self._operators = (
                _key(store, each) for each in (HOST_KEY, NODES, OPERATORS)
            )
        self.node_lifetime = node_lifetime

    @property
    def public_key(self) -> str:
        """The gateway's public key, by which nodes and operators know it."""
        return public_text(self.host_key)

    @property
    def operators_key(self) -> str:
        """The public key of the authority for operators, which nodes' sshd trust."""
        return public_text(self._operators)

    def is_nodes(self, key: asyncssh.SSHKey) -> bool:
        return key.public_data == self._nodes.public_data

    def is_operators(self, key: asyncssh.SSHKey) -> bool:
        return key.public_data == self._operators.public_data

    def for_node(self, node: Node) -> Certificate:
        """Return a certificate that allows a node to make its offers, and nothing at an sshd."""
        return self._sign(self._nodes, node.key, [NODE + node.name], self.node_lifetime)

    def for_operator(self, operator: Operator, lifetime: float = OPERATOR_LIFETIME) -> Certificate:
        """Return a certificate for the gateway, and for the operator's user at nodes."""
        principals = [OPERATOR + operator.name, operator.login]
        return self._sign(self._operators, operator.key, principals, lifetime)

    def _sign(
        self, authority: asyncssh.SSHKey, key: str, principals: list[str], lifetime: float
    ) -> Certificate:
        serial = secrets.randbits(63)
        now = int(time.time())
        signed = authority.generate_user_certificate(
            key_of(key),
            key_id=principals[0],
            serial=serial,
            principals=principals,
            valid_after=now - BACKDATED,
            valid_before=now + max(int(lifetime), 1),
            permit_x11_forwarding=False,
            permit_agent_forwarding=False,
            permit_user_rc=False,
        )
        return Certificate(signed.export_certificate().decode().strip(), serial, now + lifetime)


def key_of(text: str) -> asyncssh.SSHKey:
    """Return the public key that OpenSSH writes like this. Raises TproxyError."""
    try:
        return asyncssh.import_public_key(text)
    except (asyncssh.KeyImportError, ValueError) as error:
        raise TproxyError(f"this is no public key: {error}") from None


def public_text(key: asyncssh.SSHKey) -> str:
    """Return a public key as OpenSSH writes it, without a comment."""
    return " ".join(key.export_public_key().decode().split()[:2])


def _key(store: Store, name: str) -> asyncssh.SSHKey:
    text = store.text(name)
    if text is not None:
        return asyncssh.import_private_key(text)
    key = asyncssh.generate_private_key("ssh-ed25519")
    store.write_text(name, key.export_private_key().decode())
    store.write_text(f"{name}.pub", public_text(key) + "\n")
    return key
