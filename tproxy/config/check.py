"""The check of a configuration file: finds all problems, for whichever network a hook may name.

A hook is called for one network, and its warnings can differ from network to network: an entry is ignored
where an earlier one has its service port. So each network that the file names is tried, and one network that
it does not name. The only effect is that of the resolver, which the caller passes.
"""

from __future__ import annotations

from collections.abc import Iterator

from tproxy.config.resolver import Resolver, services_for
from tproxy.config.services import Config, Entry, Problem
from tproxy.model import Network

MAX_SHOWN = 5  # networks in a line: enough to see which ones are meant

# Stands for all host names where they cannot or need not be looked up (RFC 5737: nobody's address).
_ANY_ADDRESS = "192.0.2.1"


def all_resolve(_: str) -> list[str]:
    """A resolver for which every host name has an address."""
    return [_ANY_ADDRESS]


def problems(read: Config, resolve: Resolver) -> list[Problem]:
    """Return the warnings that any hook would give, each once, in the order of the file."""
    answers: dict[str, list[str] | OSError | UnicodeError] = {}

    def resolve_once(name: str) -> list[str]:
        if name not in answers:
            try:
                answers[name] = resolve(name)
            except (OSError, UnicodeError) as error:
                answers[name] = error
        answer = answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    anywhere = [*read.warnings, *services_for(read, Network(), resolve_once)[1]]
    elsewhere: dict[Problem, list[str]] = {}  # for each problem, the networks that have it
    said = set(anywhere)
    for name, entries in _by_network(read.entries):
        # As a name or as an id makes no difference: an entry applies by either.
        for problem in services_for(read._replace(entries=entries), Network(name), resolve_once)[1]:
            if problem not in said:
                elsewhere.setdefault(problem, []).append(name)
    some = [
        each._replace(text=f"{each.text} (networks: {_list(names)})") for each, names in elsewhere.items()
    ]
    return sorted([*anywhere, *some], key=lambda each: each.line)


def _by_network(entries: tuple[Entry, ...]) -> Iterator[tuple[str, tuple[Entry, ...]]]:
    """Yield each network that is named, with its own entries and those for all networks that share a port.

    Not with all entries: where each of 10,000 networks has an entry, that would take a minute.
    """
    general: dict[int, list[Entry]] = {}
    own: dict[str, list[Entry]] = {}
    for entry in entries:
        for name in entry.networks:
            own.setdefault(name, []).append(entry)
        if not entry.networks:
            general.setdefault(entry.service_port, []).append(entry)
    for name, found in sorted(own.items()):
        ports = {each.service_port for each in found}
        found += [each for port in ports for each in general.get(port, ())]
        yield name, tuple(sorted(found, key=lambda each: (each.origin, each.number)))


def _list(names: list[str]) -> str:
    more = len(names) - MAX_SHOWN
    return ", ".join(map(ascii, names[:MAX_SHOWN])) + (f" and {more} more" if more > 0 else "")
