"""Judges the configuration file and its host names, and whether a bridge has what the file says."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterable, Mapping, Set

from tproxy.bridge import comments, members
from tproxy.config.services import NoAddress
from tproxy.config.union import Offer, in_words
from tproxy.doctor.finding import Finding, bad, good, warning
from tproxy.doctor.look.configuration import Configuration
from tproxy.model import Network, Service, ServiceKey, ServiceMap


def of_file(found: Configuration) -> list[Finding]:
    """The file itself, and its names."""
    check = shlex.join(["tproxy", "check", *([found.path] if found.named and found.path else [])])
    if found.unusable:
        return [bad("configuration", f"{found.unusable}: hooks fail", check)]
    if found.path is None or found.read is None:
        text = "there is no configuration file: hooks fail, and maps that others loaded are served"
        return [warning("configuration", text, "install -D -m 644 etc/tproxy.yaml /etc/tproxy/tproxy.yaml")]
    return [_entries(found, check), _names(found)]


def _entries(found: Configuration, check: str) -> Finding:
    if found.read is not None and found.read.silent:
        text = f"{found.path} has no key tproxy: `tproxy refresh` refuses it, and hooks serve nothing"
        return bad("configuration", text, check)
    if found.problems:
        first, *others = found.problems
        more = f" (and {len(others)} more)" if others else ""
        return bad("configuration", f"{first.at(found.path or '')}{more}", check)
    if found.read is not None and not found.read.entries:
        return warning("configuration", f"{found.path} has no services", check)
    count = len(found.read.entries) if found.read is not None else 0
    return good("configuration", f"{found.path}: in order, {count} {'entry' if count == 1 else 'entries'}")


def _names(found: Configuration) -> Finding:
    for name, address in sorted(found.addresses.items()):
        if isinstance(address, NoAddress):
            reason = address.reason if "remote_addr" in address.reason else f"{name!a} {address.reason}"
            kept = "guests reach its old address" if not address.certain else "its entry is ignored"
            return bad("names", f"{reason}: {kept}", shlex.join(["getent", "ahostsv4", name]))
    count = len(found.addresses)
    return good("names", f"{count} host names resolve" if count else "the file has no host names")


def of_bridge(found: Configuration, loaded: ServiceMap, gone: Set[str]) -> list[Finding]:
    """Whether the map is what the file says for the bridge's networks, and what these share.

    ``gone`` are members that are not to be seen at any port.
    """
    read = found.read
    if read is None or read.silent:
        return []
    refresh = shlex.join(["tproxy", "refresh", *(["--config", read.path] if found.named else [])])
    offer = Offer(read, lambda name: _resolved(found, name))
    offer.look_up(loaded.networks)
    union = offer.union(loaded.orders, loaded)
    findings = [_networks(loaded, gone, divided=union.divided)]
    wanted = comments.storable(loaded._replace(services=union.services)).services
    keys = sorted(loaded.services.keys() | wanted.keys())
    wrong = [key for key in keys if loaded.services.get(key) != wanted.get(key)]
    if wrong:
        text = _difference(wrong[0], loaded.services, wanted)
        more = f", and {len(wrong) - 1} other ports differ" if len(wrong) > 1 else ""
        return [*findings, bad("file", f"{text}{more}", refresh)]
    return [*findings, good("file", f"the map is what {read.path} says")]


def _difference(
    key: ServiceKey, loaded: Mapping[ServiceKey, Service], wanted: Mapping[ServiceKey, Service]
) -> str:
    now, then = (each[key].leads_to if key in each else "nothing" for each in (loaded, wanted))
    if now == then:
        return f"port {key.in_words} has other options than the file says"
    return f"port {key.in_words} leads to {now}, and the file says {then}"


def _networks(loaded: ServiceMap, gone: Set[str], *, divided: bool) -> Finding:
    for network in loaded.networks if len(loaded.networks) > 1 else ():
        macs = sorted(mac for mac, each in (loaded.members or {}).items() if each.network == network)
        if macs and gone >= set(macs):
            text = f"{in_words(network)} has its services here, and none of its {len(macs)} guests is seen"
            repair = shlex.join(["tproxy", "hook", "down", "--bridge", loaded.bridge, "--mac", macs[0]])
            return warning("networks", text, repair)
    names = _names_of(loaded.networks)
    unnamed = members.unnamed(loaded) if divided else []
    if unnamed:
        text = (
            f"its networks have different services ({names}), and no hook named MAC or port of guests of "
            f"{_names_of(unnamed)}: they get only the services that all networks have"
        )
        return warning("networks", text, "tproxy status --verbose")
    if divided:
        return good("networks", f"each of its networks has services of its own: {names}")
    return good("networks", f"the bridge has network {names}" if names != "none" else "no network is named")


def _names_of(networks: Iterable[Network]) -> str:
    return ", ".join(each.name or each.id or "none" for each in networks)


def _resolved(found: Configuration, name: str) -> list[str]:
    known = found.addresses.get(name)
    if known is not None and not isinstance(known, NoAddress):
        return [*known]
    certain = known is not None and known.certain
    raise socket.gaierror(socket.EAI_NONAME if certain else socket.EAI_AGAIN, "is not known")
