"""Host names of the configuration, looked up with the system's resolver.

The only part of this package that asks the network. ``services_for`` is the whole way from a configuration
to the services of a network: the names are looked up here, and ``services.choose`` decides.
"""

import socket
from collections.abc import Callable, Iterable
from functools import partial

from tproxy.addresses import is_address, refused
from tproxy.config.services import (
    Config,
    LastKnown,
    NoAddress,
    Problem,
    choose,
    host_names,
    nothing_known,
)
from tproxy.errors import quoted, to_ascii
from tproxy.model import Network, Service, ServiceKey

AT_ONCE = 16  # names that are looked up at the same time; arbitrary

Resolver = Callable[[str], list[str]]

# The errors of getaddrinfo(3) that mean "nobody could be asked" or "the answer was not understood".
# All other errors are an answer.
_NO_ANSWER = frozenset({socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_MEMORY, socket.EAI_SYSTEM})


def addresses_of(name: str) -> list[str]:
    """Return the addresses of a host name. Raises OSError or UnicodeError when there is none."""
    return [str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]


def services_for(
    config: Config, network: Network, resolve: Resolver = addresses_of, last_known: LastKnown = nothing_known
) -> tuple[dict[ServiceKey, Service], list[Problem]]:
    """Look up the host names that a network needs, and choose its services; see ``services.choose``."""
    return choose(config, network, addresses(host_names(config, network), resolve), last_known)


def addresses(names: Iterable[str], resolve: Resolver = addresses_of) -> dict[str, list[str] | NoAddress]:
    """Return the addresses of each host name, or the reason for having none.

    All names are looked up at the same time: ten names must not wait ten times for a dead name server.
    """
    asked = list(names)
    if len(asked) > 1:
        from concurrent.futures import ThreadPoolExecutor  # few files need it

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(zip(asked, pool.map(partial(_address, resolve), asked), strict=True))
    return {name: _address(resolve, name) for name in asked}


def _address(resolve: Resolver, name: str) -> list[str] | NoAddress:
    try:
        found = resolve(name)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        text = f"remote_addr {quoted(name)} does not resolve: {to_ascii(reason)}"
        return NoAddress(text, _is_answer(error))
    if candidates := usable(found):
        return candidates
    return NoAddress(f"remote_addr {quoted(name)} resolves to no address that can be used", certain=True)


def usable(found: Iterable[str]) -> list[str]:
    """Return those of the addresses that an endpoint can have, each once: IPv4 first, and the lowest first.

    Name servers rotate their answers. The order is the same at each hook, so that starting a guest does not
    move the services of the others.
    """
    good = {each for each in found if is_address(each) and not refused(each)}
    return sorted(good, key=lambda each: (":" in each, _packed(each)))


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _is_answer(error: Exception) -> bool:
    # A name that cannot exist (UnicodeError) need not be asked for.
    if isinstance(error, socket.gaierror):
        return error.errno not in _NO_ANSWER
    return isinstance(error, UnicodeError)
