"""The file by which a host becomes a node: the same on all hosts, so that it can be part of an image. Pure.

gateway: gw.example.com:18000
key: ssh-ed25519 AAAA…        # the gateway's public key
token: 1a2b3c4d.…             # a join token
name: site-a                  # otherwise the host name
offer:                        # otherwise ssh and in
  ssh: 127.0.0.1:22
  api: 127.0.0.1:6443
host_keys: /etc/ssh/ssh_host_*_key.pub  # of the host's sshd, by which operators know it
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from typing import NamedTuple

import yaml

from tproxy.errors import ConfigError, TproxyError, quoted, to_ascii
from tproxy.inward.tunnel.names import IN, SSH, SSH_PORT, checked_name

FILE = "/etc/tproxy/tunnel.yaml"
PORT = 18000

HOST_KEYS = "/etc/ssh/ssh_host_*_key.pub"

_KEYS = ("gateway", "key", "token", "name", "offer", "host_keys")
_KEY = re.compile(r"(ssh-ed25519|ecdsa-sha2-nistp256|ssh-rsa) [A-Za-z0-9+/=]{40,2000}")
_HOST = re.compile(r"[A-Za-z0-9_.\-:]{1,253}")
_OFFER = re.compile(r"[a-z][a-z0-9\-]{0,31}")


class Address(NamedTuple):
    """Where to connect to. With ``path`` it is a UNIX socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Settings(NamedTuple):
    """What a node knows. The address of ``in`` may be empty: the in.sock of this host's daemon."""

    gateway: Address
    key: str
    token: str
    name: str
    offers: dict[str, Address]
    host_keys: str = HOST_KEYS  # a pattern of paths


def load(path: str) -> Settings:
    """Read the file. Raises ConfigError, with file, line, key and value."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    return parse(path, text)


def parse(path: str, text: str) -> Settings:
    """Read this text. ``path`` is for messages. For the rest see ``load``."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else path
        raise ConfigError(f"{place}: not YAML: {to_ascii(getattr(error, 'problem', error))}") from None
    fields = _mapping(path, root)
    for key, (node, line) in fields.items():
        if key not in _KEYS:
            raise ConfigError(f"{path}:{line}: {quoted(key)} is none of {', '.join(_KEYS)}")
        if key != "offer" and not isinstance(node, yaml.ScalarNode):
            raise ConfigError(f"{path}:{line}: {key} is no text")
    for key in ("gateway", "key"):
        if key not in fields:
            raise ConfigError(f"{path}: {key} is missing")

    def said(key: str) -> str:
        return str(fields[key][0].value) if key in fields else ""

    def wrong(key: str, what: str) -> ConfigError:
        return ConfigError(f"{path}:{fields[key][1]}: {key}: {quoted(said(key))} {what}")

    if not _KEY.fullmatch(" ".join(said("key").split()[:2])):
        raise wrong("key", "is not a public key of OpenSSH")
    gateway = address_of(said("gateway"), PORT)
    if gateway is None:
        raise wrong("gateway", "is not HOST or HOST:PORT")
    try:
        name = checked_name(said("name") or socket.gethostname().partition(".")[0], "a node")
    except TproxyError as error:
        raise ConfigError(f"{path}: name: {error}") from None
    return Settings(
        gateway,
        " ".join(said("key").split()[:2]),
        said("token"),
        name,
        _offers(path, fields.get("offer")),
        said("host_keys") or HOST_KEYS,
    )


def _offers(path: str, field: tuple[yaml.Node, int] | None) -> dict[str, Address]:
    if field is None:
        return {SSH: Address("127.0.0.1", SSH_PORT), IN: Address()}
    found: dict[str, Address] = {}
    for name, (node, line) in _mapping(path, field[0]).items():
        try:
            found |= offers_of({name: node.value if isinstance(node, yaml.ScalarNode) else "?"})
        except ConfigError as error:
            raise ConfigError(f"{path}:{line}: offer: {error}") from None
    return found


def offers_of(said: Mapping[str, str]) -> dict[str, Address]:
    """Return what is offered, by name, from addresses as they are written. Raises ConfigError."""
    found = {}
    for name, text in said.items():
        if not _OFFER.fullmatch(name):
            raise ConfigError(f"{quoted(name)} is not a name of small letters")
        address = Address(path=text[5:]) if text.startswith("unix:/") else address_of(text, 0)
        if name == IN and text in ("", "in.sock"):
            address = Address()
        elif address is None or not (address.path or address.port):
            raise ConfigError(f"{name}: {quoted(text)} is not HOST:PORT or unix:/PATH")
        assert address is not None
        found[name] = address
    return found


def address_of(text: str, port: int) -> Address | None:
    """Return the address that is written HOST:PORT, [IPV6]:PORT or HOST; None for anything else."""
    host, number = text, ""
    if text.startswith("["):
        host, _, number = text[1:].partition("]")
        if number and not number.startswith(":"):
            return None
        number = number[1:]
    elif text.count(":") == 1:
        host, _, number = text.partition(":")
    if not _HOST.fullmatch(host) or not re.fullmatch(r"([1-9][0-9]{0,4})?", number):
        return None
    found = int(number or port)
    return Address(host, found) if found <= 65535 else None


def _mapping(path: str, node: yaml.Node | None) -> dict[str, tuple[yaml.Node, int]]:
    """The nodes of a mapping by key, each with its line."""
    if not isinstance(node, yaml.MappingNode):
        place = f"{path}:{node.start_mark.line + 1}" if node is not None else path
        raise ConfigError(f"{place}: this is not a mapping of keys to values")
    found: dict[str, tuple[yaml.Node, int]] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        text = str(key.value)
        if text in found:
            raise ConfigError(f"{path}:{line}: {quoted(text)} is there twice")
        found[text] = (value, line)
    return found


def text_of(gateway: str, key: str, token: str) -> str:
    """Return the text of the file for nodes that come by a token."""
    return f"""\
# Makes a host a node of the gateway: `tproxy tunnel`. The same on all hosts.
gateway: {gateway}
key: {key}
token: {token}
"""
