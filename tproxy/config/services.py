"""What a configuration file says, and which services a network gets of it.

A fault of the file is a ConfigError, a fault of one entry a warning. Both are one line of ASCII
whatever the file holds, so that no value can forge a line of the log. The file's language is the
matter of ``reader``, and of it only: a hook mostly does without (``recall``).
"""

import os
import socket
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from tproxy.errors import ConfigError, quoted, to_ascii
from tproxy.model import DEFAULT_CONNECT_TIMEOUT, Endpoint, Network, Service, Settings, is_ipv4, refused
from tproxy.typed import NamedTuple

SEARCH_PATH = ("/var/tmp/one/etc/vnm/OpenNebulaNetwork.conf", "/etc/tproxy/tproxy.yaml")

MAX_BYTES = 1 << 20  # arbitrary: 100 entries are 10 KB, so what is larger is another kind of file
# Seconds that a watched bridge stays up without guests: longer than a guest takes to be moved or
# started anew, which need not cost its network the services.
DEFAULT_WATCH_GRACE = 30.0

AT_ONCE = 16  # names looked up; arbitrary

Resolver = Callable[[str], list[str]]
LastKnown = Callable[[int], Service | None]

# What getaddrinfo(3) says where it could not ask, or not understand the answer. All else is an answer.
_NO_ANSWER = frozenset({socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_MEMORY, socket.EAI_SYSTEM})


class Entry(NamedTuple):
    """One valid entry of the file; ``remote_addr`` can still be a name that does not resolve."""

    number: int
    line: int
    service_port: int
    remote_addr: str
    remote_port: int
    networks: frozenset[str] = frozenset()  # names or ids; empty is every network
    name: str = ""
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT

    def applies_to(self, network: Network) -> bool:
        return not self.networks or network.is_one_of(self.networks)


class WatchedBridge(NamedTuple):
    """Bridges that the watcher brings up for their guests; ``pattern`` is as in a shell."""

    pattern: str
    network: Network = Network()
    uplinks: frozenset[str] = frozenset()


class Config(NamedTuple):
    """What a file says, and warnings about what it says in vain."""

    path: str
    log_level: int
    entries: tuple[Entry, ...]
    warnings: tuple[str, ...]
    bridges: tuple[WatchedBridge, ...] = ()
    watch: bool = False  # whether the daemon keeps a watcher
    watch_grace: float = DEFAULT_WATCH_GRACE
    silent: bool = False  # it has not even an empty list of services: they may be in another file

    @property
    def settings(self) -> Settings:
        return Settings(self.log_level, self.watch_file)

    @property
    def watch_file(self) -> str:
        """The file, if it wants the daemon to keep a watcher; otherwise empty."""
        return os.path.abspath(self.path) if self.watch else ""


def search(explicit: str | None, environ: Mapping[str, str]) -> str | None:
    """The file to use; None when there is none.

    A file that was asked for is never replaced by another one that happens to be there.
    """
    for named, by in ((explicit, "--config"), (environ.get("TPROXY_CONFIG") or None, "$TPROXY_CONFIG")):
        if named is not None:
            if not os.path.lexists(named):
                raise ConfigError(f"{quoted(named)}: no such file (from {by})")
            return named
    return next(filter(os.path.lexists, SEARCH_PATH), None)


def required(explicit: str | None, environ: Mapping[str, str]) -> str:
    """As ``search``; raises ConfigError when there is no file."""
    path = search(explicit, environ)
    if path is None:
        raise ConfigError(f"no configuration file: give --config FILE or write {SEARCH_PATH[-1]}")
    return path


def text_of(path: str) -> str:
    """The file as it is; raises ConfigError when it cannot be read, or holds no text."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{place(path)}: {error.strerror or type(error).__name__}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{place(path)}: larger than {MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{place(path, line)}: not UTF-8") from error


def resolve_ipv4(name: str) -> list[str]:
    """The IPv4 addresses of a host name; raises OSError when there is none."""
    return [str(found[4][0]) for found in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)]


def nothing_known(port: int) -> Service | None:
    """``last_known`` of a bridge that is not up."""
    return None


def services_for(
    config: Config, network: Network, resolve: Resolver = resolve_ipv4, last_known: LastKnown = nothing_known
) -> tuple[dict[int, Service], list[str]]:
    """What a network gets, by service port, and warnings about entries for it that are left out.

    The first entry of a port wins, among those that apply to the network and can be used. While nobody
    answers for a name, its port leads to where it led, which ``last_known`` tells: guests that run shall
    not lose a service for that.
    """
    services: dict[int, Service] = {}
    winners: dict[int, Entry] = {}
    warnings: list[str] = []

    applying = [each for each in config.entries if each.applies_to(network)]
    addresses = _addresses(dict.fromkeys(each.remote_addr for each in applying), resolve)
    for entry in applying:
        said = f"{place(config.path, entry.line)}: entry {entry.number}"
        port = entry.service_port
        if port in winners:
            taken = f"entry {winners[port].number} (line {winners[port].line}) has it on this network"
            warnings.append(f"{said}: service_port {port}: {taken}: entry ignored")
            continue
        address = addresses[entry.remote_addr]
        if isinstance(address, _Unresolved):
            known = None if address.answered else last_known(port)
            if known is None or known.endpoint.port != entry.remote_port:
                warnings.append(f"{said}: {address.reason}: entry skipped")
                continue
            warnings.append(f"{said}: {address.reason}: {known.endpoint} as before")
            address = known.endpoint.address
        winners[port] = entry
        endpoint = Endpoint(address, entry.remote_port)
        services[port] = Service(port, endpoint, entry.name, entry.connect_timeout)
    return services, warnings


def place(path: str, line: int | None = None) -> str:
    """Where something is, as messages begin."""
    return to_ascii(path) + (f":{line}" if line else "")


def line_of(path: str, warning: str) -> int:
    """The line of the file that a warning is about."""
    return int(warning.removeprefix(place(path) + ":").partition(":")[0])


class _Unresolved(NamedTuple):
    """Why a ``remote_addr`` gives no address now; ``answered`` if that is for certain."""

    reason: str
    answered: bool


def _addresses(remote_addrs: Iterable[str], resolve: Resolver) -> dict[str, str | _Unresolved]:
    """The address of each. Names at once: ten must not wait ten times for a dead name server."""
    found: dict[str, str | _Unresolved] = {each: each for each in remote_addrs}
    names = [each for each in found if not is_ipv4(each)]
    if len(names) > 1:
        from concurrent.futures import ThreadPoolExecutor  # few files need it

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return found | dict(zip(names, pool.map(partial(_resolved, resolve), names), strict=True))
    return found | {name: _resolved(resolve, name) for name in names}


def _resolved(resolve: Resolver, remote_addr: str) -> str | _Unresolved:
    try:
        found = resolve(remote_addr)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        said = f"remote_addr {quoted(remote_addr)} does not resolve: {to_ascii(reason)}"
        return _Unresolved(said, _is_answer(error))
    usable = [address for address in found if is_ipv4(address) and not refused(address)]
    if not usable:
        said = f"remote_addr {quoted(remote_addr)} resolves to no address that can be used"
        return _Unresolved(said, answered=True)
    # Name servers rotate their answers. The lowest is the same at each hook, so that starting a VM
    # does not move the services of the others.
    return min(usable, key=socket.inet_aton)


def _is_answer(error: Exception) -> bool:
    # What cannot be a name at all (UnicodeError) need not be asked for.
    if isinstance(error, socket.gaierror):
        return error.errno not in _NO_ANSWER
    return isinstance(error, UnicodeError)
