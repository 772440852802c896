"""Starts, changes and ends the gateway of this host: HAProxy with the files that ``compile`` makes.

Files are in a directory of /run, since all of them are made anew from the configuration file. Each is written
before HAProxy hears of it, so a restart finds what was said last.
"""

from __future__ import annotations

import grp
import os
import resource
import shutil
import time
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import NamedTuple

import psutil

from tproxy.config.routes import RouteEntry
from tproxy.config.services import Config, Problem
from tproxy.errors import ProcessError
from tproxy.inward import acme, files, haproxy, maps, usage
from tproxy.inward import compile as compiled
from tproxy.inward.compile import ADMIN, CERTIFICATES, CONFIGURATION
from tproxy.inward.names.allowed import allowed
from tproxy.inward.options import Options
from tproxy.inward.runtime import Runtime
from tproxy.kernel import netns
from tproxy.process import inward_socket


class Compiled(NamedTuple):
    """What the gateway is to have: files by name, certificates by path, and routes."""

    files: dict[str, str]
    certificates: dict[str, str]
    entries: list[RouteEntry]
    problems: list[Problem]


def up(config: Config, options: Options) -> tuple[list[str], list[str]]:
    """Have the gateway serve the routes of the file.

    Return what was done, and what is wrong with some routes, in words. Does nothing where all is in order.
    Raises TproxyError: then a gateway that runs goes on as before.
    """
    folder = files.directory()
    if not haproxy.has_systemd():  # the unit has a limit of its own
        options = options._replace(most=min(options.most, _most_connections()))
    with files.locked(folder):
        wanted = _compiled(folder, config, options)
        admin = Runtime(str(folder / ADMIN))
        usage.keep(options.state, admin)  # while HAProxy has the routes that it counted for
        done = _apply(folder, config.path, options, wanted, admin)
        problems = [each.at(config.path) for each in wanted.problems]
        usage.keep(options.state, admin, wanted.entries)
        names, refused = _names(config, options, wanted, admin)
        if options.acme:
            done += acme.Issuer(options, allowed(config).by_dns).obtain(admin, folder, names)
            wanted = _compiled(folder, config, options)
            done += files.change_certificates(admin, folder, wanted.certificates, wanted.files[CERTIFICATES])
        problems += _without_nodes(wanted.entries)
        lacking = refused if options.acme else [*names, *refused]
        problems += [f"{each} has no certificate: clients of its route are refused" for each in lacking]
    return done, problems


def change_routes(config: Config) -> list[str]:
    """Have a HAProxy that runs serve the routes of the file, where names were granted or lost since.

    Return what was done; nothing where none runs. Raises TproxyError.
    """
    folder = files.directory()
    admin = Runtime(str(folder / ADMIN))
    if not admin.answers:
        return []
    with files.locked(folder):
        wanted = maps.maps(_entries(config)[0], time.time())
        before = {each.name: each.read_text() for each in folder.iterdir() if each.name in wanted}
        return _change_maps(folder, admin, compiled.changes(before, wanted))


def compile_files(config: Config, options: Options) -> None:
    """Write the files that HAProxy reads when it starts: after a boot there are none. Raises TproxyError."""
    folder = files.directory()
    with files.locked(folder):
        wanted = _compiled(folder, config, options)
        _admit(options.user)
        haproxy.check(folder, wanted.files)
        _write(folder, wanted)


def down(state: str, *, purge: bool) -> bool:
    """End the gateway; ``purge`` also removes its files. Return whether it ran.

    What was counted, and what an issuer gave, stays: it gives a name only so many certificates in a week.
    """
    folder = files.directory()
    usage.keep(state, Runtime(str(folder / ADMIN)))
    ran = haproxy.end(folder)
    if purge:
        shutil.rmtree(folder, ignore_errors=True)
        if os.path.isdir(inward_socket.directory()):
            inward_socket.admit(0)
    return ran


def _apply(folder: Path, path: str, options: Options, wanted: Compiled, admin: Runtime) -> list[str]:
    before = {each.name: each.read_text() for each in folder.iterdir() if each.name in wanted.files}
    changed = compiled.changes(before, wanted.files)
    running = admin.answers
    _admit(options.user)
    if not running or CONFIGURATION in changed:
        haproxy.check(folder, wanted.files)
        if not running:
            haproxy.refuse_taken(options)
        _write(folder, wanted)
        if running:
            haproxy.reload(folder)
        else:
            haproxy.start(folder, path, options)
        return ["HAProxy goes on with another configuration" if running else "HAProxy started"]
    done = _change_maps(folder, admin, {file: changed[file] for file in changed if file != CERTIFICATES})
    return done + files.change_certificates(admin, folder, wanted.certificates, wanted.files[CERTIFICATES])


def _change_maps(folder: Path, admin: Runtime, changed: dict[str, str]) -> list[str]:
    done = []
    for file, text in sorted(changed.items()):
        files.write(folder, {file: text})
        admin.set_map(str(folder / file), text)
        done.append(f"{file}: {text.count(chr(10))} lines")
    return done


def _entries(config: Config) -> tuple[list[RouteEntry], list[Problem]]:
    """Return the routes to serve, and what is wrong with others."""
    named = allowed(config)
    entries, problems = maps.within(named.routes, config.gateway_ranges, _own_addresses())
    return entries, [*named.problems, *problems]


def _compiled(folder: Path, config: Config, options: Options) -> Compiled:
    entries, problems = _entries(config)
    problems += maps.shared(entries)
    wanted = maps.maps(entries, time.time())
    wanted[maps.CHALLENGES] = ""
    name = f"tproxy-gateway-{netns.current().inode}"
    wanted[CONFIGURATION] = compiled.configuration(options, str(folder), inward_socket.directory(), name)
    certificates = _own_certificates(options)
    if options.acme:
        issued = {each.domain.lower() for each in entries}
        certificates |= acme.Issuer(options).have(issued)
    wanted[CERTIFICATES] = compiled.certificates(certificates)
    return Compiled(wanted, certificates, entries, problems)


def _names(config: Config, options: Options, wanted: Compiled, admin: Runtime) -> tuple[list[str], list[str]]:
    """Return names without a certificate of the operator: those for which an issuer may be asked, others."""
    found = [admin.certificate(each) for each in _own_certificates(options)]
    known = [name for each in found if each for name in each.names]
    may = (*config.gateway_domains, *allowed(config).domains)
    return acme.wanted(wanted.entries, may, known, time.time())


def _without_nodes(entries: list[RouteEntry]) -> list[str]:
    """Say which routes lead to nodes, where nothing accepts nodes."""
    if os.path.exists(f"{inward_socket.directory()}/{inward_socket.NODES}"):
        return []
    return [
        f"route {each.id}: leads to node {each.node}, and no process accepts nodes"
        for each in entries
        if each.node
    ]


def _own_certificates(options: Options) -> dict[str, str]:
    """The operator's certificates by path. Raises ProcessError."""
    if not options.certificates:
        return {}
    found = {str(each): each.read_text() for each in sorted(Path(options.certificates).glob("*.pem"))}
    if not found:
        raise ProcessError(f"{options.certificates} has no certificate (*.pem, with its key)")
    return found


def _write(folder: Path, wanted: Compiled) -> None:
    files.write(folder, wanted.files)
    files.write_copies(folder, wanted.certificates)


def _admit(user: str) -> None:
    """Let the gateway's group connect to in.sock. Raises ProcessError."""
    try:
        group = grp.getgrnam(user).gr_gid
    except KeyError:
        raise ProcessError(f"there is no group {user}") from None
    inward_socket.admit(group)


def _own_addresses() -> list[str]:
    """The addresses of this host."""
    found = [each for some in psutil.net_if_addrs().values() for each in some]
    return [each.address.partition("%")[0] for each in found if each.family in (AF_INET, AF_INET6)]


def _most_connections() -> int:
    """How many connections the limit of descriptors allows: each takes two, and HAProxy some more."""
    return max((resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 200) // 2, 100)
