"""Parsers of single values of egress.yaml, which judge a value as it is written.

Each raises Unusable with the reason.
"""

from __future__ import annotations

import re
from datetime import date
from ipaddress import ip_network

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from tproxy.config.values import BOOL, HOST_NAME, INT, STR, Unusable, written
from tproxy.egress.policy import places
from tproxy.egress.policy.rules import Image, IPNetwork, Project

_SHA256 = r"[0-9a-f]{64}"
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_MOST_BYTES = 2**31 - 1  # per second: squid's delay pools count in 32 bits


def text(node: yaml.Node) -> str:
    """Return a string without spaces and control characters."""
    found = written(node, STR, INT)
    if not found or not found.isprintable() or any(map(str.isspace, found)):
        raise Unusable("is not a word without spaces", node)
    return found


def name(node: yaml.Node) -> str:
    """Return the name of a network or hypervisor, which may hold spaces."""
    found = written(node, STR, INT)
    if not found or not found.isprintable() or found != found.strip():
        raise Unusable("is not a name: put it in quotes", node)
    return found


def whole(node: yaml.Node, least: int, most: int) -> int:
    found = written(node, INT, STR)
    if not re.fullmatch("0|[1-9][0-9]{0,9}", found) or not least <= int(found) <= most:
        raise Unusable(f"is not a whole number of {least} to {most}", node)
    return int(found)


def port(node: yaml.Node) -> int:
    return whole(node, 1, 65535)


def connections(node: yaml.Node) -> int:
    return whole(node, 1, 100_000)


def size(node: yaml.Node) -> int:
    """Return a number of bytes; k, M, G are powers of 1000, Ki, Mi, Gi of 1024."""
    found = re.fullmatch("([1-9][0-9]{0,9})(k|M|G|Ki|Mi|Gi|)", written(node, INT, STR))
    if not found or (count := int(found[1]) * _UNITS[found[2]]) > _MOST_BYTES:
        raise Unusable("is not a number of bytes, such as 500k or 10Mi, below 2Gi", node)
    return count


def day(node: yaml.Node) -> date:
    """Return a day, written as 2027-01-31."""
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    try:
        if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            raise ValueError(text)
        return date.fromisoformat(text)
    except ValueError:
        raise Unusable("is not a day such as 2027-01-31", node) from None


def flag(node: yaml.Node) -> bool:
    found = written(node, BOOL)
    if found not in ("true", "false"):
        raise Unusable("is not true or false", node)
    return found == "true"


def host(node: yaml.Node) -> str:
    """Return a host's name in lower case. Addresses are refused: a certificate names hosts."""
    found = text(node).lower().rstrip(".")
    if not re.fullmatch(HOST_NAME, found):
        raise Unusable("is not a host name", node)
    return found


def project(node: yaml.Node) -> Project:
    """Return a project with versions, written as in a requirements file: ``django>=4``. "*" means all."""
    found = written(node, STR)
    wildcard = re.fullmatch(r"[A-Za-z0-9._*-]*\*[A-Za-z0-9._*-]*", found)
    try:
        requirement = Requirement("all" if wildcard else found)
    except InvalidRequirement:
        raise Unusable("is not a project with versions, such as requests or 'django>=4'", node) from None
    if requirement.extras or requirement.url or requirement.marker:
        raise Unusable("has more than a name and versions", node)
    named = found.lower() if wildcard else canonicalize_name(requirement.name)
    return Project(named, requirement.specifier)


def image(node: yaml.Node) -> Image:
    """Return a repository with its registry, and the digest behind "@"."""
    repository, _, digest = text(node).partition("@")
    registry, _, rest = repository.partition("/")
    if not rest or not re.search(r"[.:]|^localhost$", registry) or not re.fullmatch(r"[a-z0-9._/*-]+", rest):
        raise Unusable("is not an image with its registry, such as docker.io/library/alpine", node)
    if digest and not re.fullmatch("sha256:" + _SHA256, digest):
        raise Unusable("has a digest that is not sha256: and 64 hexadecimal digits", node)
    return Image(repository.lower(), digest)


def collection(node: yaml.Node) -> str:
    """Return the name of an Ansible collection or role, ``namespace.name``; "*" for all of a namespace."""
    found = text(node)
    if not re.fullmatch(r"[a-zA-Z0-9_-]+\.([a-zA-Z0-9_-]+|\*)|\*", found):
        raise Unusable("is not a collection or role, such as community.general", node)
    return found


def url(node: yaml.Node) -> str:
    """Return a URL or a pattern of URLs. Raises Unusable for one that no request can have."""
    found = text(node)
    try:
        places.check_pattern(found)
    except places.NotClear as reason:
        raise Unusable(str(reason), node) from None
    return found


def prefix(node: yaml.Node) -> str:
    """Return a URL that ends with "/"."""
    found = url(node)
    if "*" in found or "?" in found:
        raise Unusable("is not a plain URL", node)
    return found if found.endswith("/") else found + "/"


def plain_url(node: yaml.Node) -> str:
    """Return the URL of one file."""
    found = url(node)
    if "*" in found:
        raise Unusable("is not the URL of one file", node)
    return found


def sha256(node: yaml.Node) -> str:
    found = text(node).removeprefix("sha256:")
    if not re.fullmatch(_SHA256, found):
        raise Unusable("is not a SHA-256 hash, 64 hexadecimal digits", node)
    return found


def ip_addresses(node: yaml.Node) -> IPNetwork:
    try:
        return ip_network(text(node))
    except ValueError:
        raise Unusable("is not an address or a network, such as 10.0.0.0/24", node) from None
