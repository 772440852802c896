"""Proposes rules from the log of the proxy: what a network fetched while it learned. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote

from tproxy.egress.policy import judging, places
from tproxy.egress.policy.rules import Upstreams

METHODS = ("GET", "HEAD")


@dataclass
class Fetched:
    """What one network fetched, by kind."""

    pypi: set[str] = field(default_factory=set)
    suites: set[str] = field(default_factory=set)
    packages: set[str] = field(default_factory=set)
    oci: set[str] = field(default_factory=set)
    galaxy: set[str] = field(default_factory=set)
    get: set[str] = field(default_factory=set)


def read(lines: Iterable[str], upstreams: Upstreams) -> dict[str, Fetched]:
    """Return what each network fetched that only ``learn`` allowed, from lines of access.json."""
    found: dict[str, Fetched] = {}
    for line in lines:
        try:
            entry = {name: unquote(str(text)) for name, text in json.loads(line).items()}
            if entry["rule"] != judging.LEARNING or entry["method"] not in METHODS:
                continue
            if not entry["status"].startswith(("2", "3")):
                continue
            place = places.parse(entry["url"])
        except (ValueError, KeyError, AttributeError):
            continue
        _note(found.setdefault(entry["network"], Fetched()), place, upstreams)
    return found


def _note(fetched: Fetched, place: places.Place, upstreams: Upstreams) -> None:
    artifacts = list(places.artifacts(place, upstreams))
    for each in artifacts:
        match each.kind:
            case "pypi":
                fetched.pypi.add(each.name)
            case "deb" if each.name:
                fetched.packages.add(each.name)
            case "deb":
                fetched.suites.add(each.version)
            case "oci" if not each.name.endswith("/"):
                fetched.oci.add(each.name)
            case "galaxy" if each.name:
                fetched.galaxy.add(each.name)
    if not artifacts:
        fetched.get.add(place.address)


def rules(found: dict[str, Fetched]) -> str:
    """Return rules for egress.yaml; "" where nothing was fetched. Texts are JSON, which YAML reads."""
    text = ""
    for network, each in sorted(found.items()):
        lists = {"pypi": each.pypi, "oci": each.oci, "galaxy": each.galaxy, "get": each.get}
        text += f"  - networks: {json.dumps([network])}\n"
        for name, values in lists.items():
            if values:
                text += f"    {name}:\n" + "".join(
                    f"      - {json.dumps(value)}\n" for value in sorted(values)
                )
        if each.suites:
            packages = f", packages: {json.dumps(sorted(each.packages))}" if each.packages else ""
            text += f"    deb: {{suites: {json.dumps(sorted(each.suites))}{packages}}}\n"
    return text
