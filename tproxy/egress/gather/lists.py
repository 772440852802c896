"""Lists of what is to be gathered: plain text, want lists, and SBOMs in CycloneDX's JSON. Pure.

A line of plain text is KIND NAME: ``pypi django>=4``, ``deb curl``, ``oci docker.io/library/alpine:3``,
``galaxy community.general:9.0.0``, ``role owner.name:1.0``, ``file URL SHA256``. "#" begins a comment.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement

from tproxy.egress.model import Artifact
from tproxy.egress.purls import artifact_of, is_role
from tproxy.errors import TproxyError, quoted

KINDS = ("pypi", "deb", "oci", "galaxy", "role", "file")

# None may begin with "-": these become arguments of programs.
_RULES = {
    "deb": re.compile(r"[a-z0-9][a-z0-9.+-]+(=[A-Za-z0-9.+:~-]+)?"),
    "oci": re.compile(r"[a-z0-9][a-z0-9.:-]*(/[a-z0-9._-]+)+(:[\w][\w.-]*|@sha256:[0-9a-f]{64})?"),
    "galaxy": re.compile(r"\w+\.\w+(:[\w.+*<>=!,-]+)?"),
    "role": re.compile(r"[\w-]+\.[\w-]+(:[\w.+-]+)?"),
    "file": re.compile(r"https?://\S+ [0-9a-f]{64}"),
}


class ListError(TproxyError):
    """A list cannot be read."""


class Item(NamedTuple):
    """One thing to gather, as a line has it."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Targets(NamedTuple):
    """For which machines things are gathered. The defaults are those of Debian 12 on amd64."""

    pythons: tuple[str, ...] = ("3.11",)
    platforms: tuple[str, ...] = ("manylinux_2_36_x86_64",)  # its C library's version
    suites: tuple[str, ...] = ("bookworm",)
    components: tuple[str, ...] = ("main",)
    architectures: tuple[str, ...] = ("amd64",)
    images: tuple[str, ...] = ("linux/amd64",)


def check(kind: str, name: str) -> Item:
    """Return the item, if it can be one. Raises ListError."""
    if kind not in KINDS:
        raise ListError(f"{quoted(kind)} is no kind: one of {', '.join(KINDS)}")
    if kind == "pypi":
        try:
            found = Requirement(name)
        except InvalidRequirement as error:
            raise ListError(f"{quoted(name)} is no requirement such as django>=4") from error
        if found.url:
            raise ListError(f"{quoted(name)} names an address; use a line that begins with file")
    elif not _RULES[kind].fullmatch(name):
        raise ListError(f"{quoted(name)} is no name for {kind}")
    return Item(kind, name)


def read(text: str, where: str = "list") -> list[Item]:
    """Return what a list names, each thing once. Raises ListError, which names the line."""
    stripped = text.lstrip()
    if stripped.startswith("{") and '"bomFormat"' in stripped:
        found = _from_sbom(stripped, where)
    elif stripped.startswith("["):
        found = _from_wants(stripped, where)
    else:
        found = []
        for number, line in enumerate(text.splitlines(), 1):
            words = re.sub(r"(^|\s)#.*", "", line).strip()
            if not words:
                continue
            kind, _, name = words.partition(" ")
            try:
                found.append(check(kind, " ".join(name.split())))
            except ListError as error:
                raise ListError(f"{where}:{number}: {error}") from error
    return list(dict.fromkeys(found))


def _from_wants(text: str, where: str) -> list[Item]:
    """Read what ``tproxy egress mirror wanted --json`` prints."""
    try:
        return [check(*_words(each["kind"], each["name"], each["version"])) for each in json.loads(text)]
    except (ValueError, KeyError, TypeError) as error:
        raise ListError(f"{where}: this is no want list: {error}") from error


def _from_sbom(text: str, where: str) -> list[Item]:
    found = []
    try:
        for component in json.loads(text).get("components", []):
            artifact = artifact_of(str(component["purl"])) if component.get("purl") else None
            if artifact is not None:
                found.append(check(*_words(*want_of(artifact))))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ListError(f"{where}: this is no SBOM in CycloneDX's JSON: {error}") from error
    return found


def want_of(artifact: Artifact) -> tuple[str, str, str]:
    """Return kind, name and version of an artifact as want lists have them. That of a file is its hash."""
    if artifact.kind == "file":
        return "file", artifact.url, artifact.sha256
    return "role" if is_role(artifact) else artifact.kind, artifact.name, artifact.version


def can_be_wanted(artifact: Artifact) -> bool:
    """Tell whether a list can name it. It cannot name an index, or a file of which nobody knows the hash."""
    try:
        check(*_words(*want_of(artifact)))
    except ListError:
        return False
    return True


def _words(kind: str, name: str, version: str) -> tuple[str, str]:
    """Return kind and name as a line has them."""
    between = {"pypi": "==", "deb": "=", "oci": "@" if version.startswith("sha256:") else ":", "file": " "}
    return kind, f"{name}{between.get(kind, ':')}{version}" if version else name
