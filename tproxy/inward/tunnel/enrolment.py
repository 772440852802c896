"""Who gets a certificate: nodes by a join token once, and then by their key; operators likewise.

Needs the extra ``inward`` (asyncssh).
"""

from __future__ import annotations

import time
from typing import NamedTuple

from tproxy.errors import TproxyError
from tproxy.inward.tunnel import records
from tproxy.inward.tunnel.authority import OPERATOR_LIFETIME, Authority, Certificate
from tproxy.inward.tunnel.names import checked_name
from tproxy.inward.tunnel.records import APPROVED, SUSPENDED, WAITING, Node, Operator, Token
from tproxy.inward.tunnel.store import Store

MOST_HOST_KEYS = 8
_MOST_KEY = 4096  # characters


class Refused(TproxyError):
    """Somebody gets no certificate, or no stream; the text says why."""


class Waiting(TproxyError):
    """A node has to wait for approval."""


class Enrolment(NamedTuple):
    """Gives certificates, and writes down which."""

    store: Store
    authority: Authority
    operator_lifetime: float = OPERATOR_LIFETIME

    def enrol(self, name: str, key: str, token: str, host_keys: list[str]) -> Node:
        """Return the node with this key, which is new if the token allows it. Raises Refused."""
        name = checked_name(name, "a node")
        with self.store.locked():
            node = self.store.find(Node, name)
            if node is not None and node.key != key:
                raise Refused(f"{name} is the name of a node with another key")
            if node is None:
                known = self._token(token)
                now = time.time()
                if fault := known.fault(name, now):
                    raise Refused(fault)
                state = APPROVED if known.approve else WAITING
                node = Node(name, key, state, now, token=known.id)
                if name not in known.used:
                    self.store.put(known._replace(used=(*known.used, name)))
            node = node._replace(host_keys=_usable(host_keys) or node.host_keys)
            self.store.put(node)
        return node

    def set_host_keys(self, name: str, key: str, host_keys: list[str]) -> None:
        """Write down with which keys a node's sshd is now known. Raises Refused."""
        with self.store.locked():
            node = self.store.find(Node, name)
            if fault := node_fault(node, name, key):
                raise Refused(fault)
            assert node is not None
            found = _usable(host_keys)
            if found and found != node.host_keys:
                self.store.put(node._replace(host_keys=found))

    def for_node(self, name: str, key: str) -> Certificate:
        """Return a new certificate for a node. Raises Refused, or Waiting."""
        with self.store.locked():
            node = self.store.find(Node, name)
            if fault := node_fault(node, name, key):
                raise (Waiting if node and node.state == WAITING and node.key == key else Refused)(fault)
            assert node is not None
            made = self.authority.for_node(node)
            self.store.put(node._replace(serials=_with(node.serials, made)))
        return made

    def for_operator(self, name: str, key: str, token: str) -> Certificate:
        """Return a certificate for an operator, whose key is the one of the first login. Raises Refused."""
        with self.store.locked():
            operator = self.store.find(Operator, name)
            if operator is None:
                raise Refused(f"there is no operator {name}")
            if operator.key != key:
                valid = operator.token_hash and records.is_token(token, operator.token_hash)
                if not valid or time.time() >= operator.token_until:
                    raise Refused(f"operator {name} has another key, and the token is not valid")
                operator = operator._replace(key=key, token_hash="")
            made = self.authority.for_operator(operator, self.operator_lifetime)
            self.store.put(operator._replace(serials=_with(operator.serials, made)))
        return made

    def _token(self, token: str) -> Token:
        found = self.store.find(Token, token.partition(".")[0]) if token.partition(".")[0].isalnum() else None
        if found is None or not records.is_token(token, found.hash):
            raise Refused("the join token is unknown")
        return found


def node_fault(node: Node | None, name: str, key: str) -> str:
    """Why a node with this name and key is not served; "" if it is."""
    if node is None:
        return f"node {name} has not enrolled, or was removed"
    if node.key != key:
        return f"{name} is the name of a node with another key"
    if node.state == WAITING:
        return f"node {name} waits for approval"
    if node.state == SUSPENDED:
        return f"node {name} is suspended: {node.reason or 'by an operator'}"
    return ""


def operator_fault(operator: Operator | None, name: str, key: str) -> str:
    """Why an operator with this name and key is not served; "" if the operator is."""
    if operator is None:
        return f"there is no operator {name}"
    return "" if operator.key == key else f"operator {name} has another key"


def _with(serials: tuple[tuple[int, float], ...], made: Certificate) -> tuple[tuple[int, float], ...]:
    now = time.time()
    return (*(each for each in serials if each[1] > now), (made.serial, made.until))


def _usable(host_keys: list[str]) -> tuple[str, ...]:
    return tuple(each for each in host_keys[:MOST_HOST_KEYS] if _is_host_key(each))


def _is_host_key(text: str) -> bool:
    words = text.split()
    return len(words) == 2 and len(text) <= _MOST_KEY and text.isascii() and text.isprintable()
