"""All that is wrong with a configuration file, for whichever network a hook may ask. Pure.

A hook is told of one network. What it would warn of can differ from network to network: an entry is
ignored where an earlier one has its service port. So each network that the file names is tried, and
one that it does not name.
"""

from __future__ import annotations

from tproxy import config
from tproxy.config import Config, Resolver
from tproxy.model import Network

MAX_SHOWN = 5  # networks in a line: enough to see which

# Stands for all host names where they cannot or need not be looked up (RFC 5737: nobody's address).
_ANY_ADDRESS = "192.0.2.1"


def all_resolve(_: str) -> list[str]:
    """A resolver for which every host name has an address."""
    return [_ANY_ADDRESS]


def problems(read: Config, resolve: Resolver) -> list[str]:
    """The warnings that any hook would give, each once, in the order of the file."""
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

    anywhere = [*read.warnings, *config.services_for(read, Network(), resolve_once)[1]]
    elsewhere: dict[str, list[str]] = {}  # the networks by what is said on them only
    for name in sorted({name for entry in read.entries for name in entry.networks}):
        # As a name or as an id is the same: an entry applies by either.
        for warning in config.services_for(read, Network(name), resolve_once)[1]:
            if warning not in anywhere:
                elsewhere.setdefault(warning, []).append(name)
    found = [*anywhere, *(f"{each} (networks: {_list(names)})" for each, names in elsewhere.items())]
    return sorted(found, key=lambda each: config.line_of(read.path, each))


def _list(names: list[str]) -> str:
    more = len(names) - MAX_SHOWN
    return ", ".join(map(ascii, names[:MAX_SHOWN])) + (f" and {more} more" if more > 0 else "")
