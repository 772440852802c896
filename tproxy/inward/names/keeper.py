"""Keeps zones in step with the configuration, with health and with proofs: one pass after another.

A pass reads what is there, decides (``claims``, ``plan``), and writes. What cannot be read changes nothing: a
fault of the file ends the pass, and a server that is down is tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tproxy.config.routes import RouteEntry
from tproxy.config.services import Config
from tproxy.inward import gateway as front
from tproxy.inward.names import health, ledger, plan, proof, reader, servers, wishes
from tproxy.inward.names.claims import Claim, Ledger, Verdict, after_look, judge, next_look
from tproxy.inward.names.health import Seen
from tproxy.inward.names.markers import heartbeats
from tproxy.inward.names.model import Record, Records, Server, Zone
from tproxy.inward.names.servers import Changed, ServerError, ZoneMissing

# Times that a zone is read again because another gateway was quicker.
ATTEMPTS = 5

# Seconds after which a zone is read again, to find what others changed.
READ_AGAIN = 60.0

# Looks for proofs in one pass, so that a resolver that is silent holds nothing up for long.
MOST_LOOKS, LOOKS_AT_ONCE = 32, 16

Say = Callable[[str], None]

_KNOWN = Claim(answered=True)


class State(NamedTuple):
    """What the file and the ledger say."""

    config: Config
    zones: tuple[Zone, ...]
    ledger: Ledger
    verdict: Verdict
    tokens: Mapping[str, str]

    @property
    def routes(self) -> tuple[RouteEntry, ...]:
        """The routes of the file."""
        return self.config.routes

    @property
    def claims(self) -> dict[Zone, Claim]:
        """The claims of all zones that have owners."""
        known = self.ledger.claims
        return {each: known.get((each.domain, each.owner), Claim()) for each in self.zones if each.owner}

    def nameservers(self, zone: Zone) -> tuple[str, ...]:
        """The names of the zone's name servers, as its parent should have them."""
        return wishes.unique_nameservers(zone, self.tokens.get(zone.owner, ""))


def state(path: str, folder: Path, now: float) -> State:
    """Read the file and the ledger. Raises ConfigError, LedgerError."""
    config, zones = reader.load(path)
    known = ledger.load(folder)
    tokens = {each.owner: ledger.token(folder, each.owner) for each in zones if each.owner}
    return State(config, zones, known, judge(zones, config.routes, known, now), tokens)


def prove(path: str, folder: Path, *, every: bool = False, only: str = "") -> dict[tuple[str, str], Claim]:
    """Look for the proofs that are due, or for all; return the claims that were looked at.

    ``only`` is a domain. Raises ConfigError, LedgerError.
    """
    known = state(path, folder, time.time())
    due: list[tuple[float, Zone]] = []
    for zone in known.zones:
        at = next_look(known.ledger.claims.get((zone.domain, zone.owner), Claim()))
        if zone.owner and only in ("", zone.domain) and (every or at <= time.time()):
            due.append((at, zone))
    due.sort(key=lambda each: each[0])
    zones = [zone for _, zone in (due if every else due[:MOST_LOOKS])]
    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
        found = pool.map(lambda each: proof.look(each, known.tokens[each.owner]), zones)
        looked = {(zone.domain, zone.owner): each for zone, each in zip(zones, found, strict=True)}
    with ledger.locked(folder):
        before = ledger.load(folder)
        claims = {**before.claims}
        now = time.time()
        for key, (by, said) in looked.items():
            claims[key] = after_look(claims.get(key, Claim()), by, said, now)
        wanted = {(each.domain, each.owner) for each in known.zones}
        claims = {key: each for key, each in claims.items() if key in wanted}
        verdict = judge(known.zones, known.routes, Ledger(claims, before.holders), now)
        after = Ledger(claims, verdict.holders)
        if after != before:
            ledger.save(folder, after)
    return {key: claims[key] for key in looked}


class Keeper:
    """Makes passes for one gateway, ``gateway``; "" for a host that has none."""

    def __init__(self, path: str, folder: Path, gateway: str, say: Say) -> None:
        self._path = path
        self._folder = folder
        self._gateway = gateway
        self._say = say
        self._looking = health.Looking()
        self._health: dict[str, Seen] = {}
        self._heard: dict[tuple[Server, str], tuple[str, float]] = {}
        self._kept: dict[Zone, tuple[dict[str, bool], set[str], float]] = {}  # for what, and when
        self._silent: set[str] = set()
        self._said: dict[str, str] = {}

    def prove(self) -> None:
        """Look for the proofs that are due. Raises ConfigError, LedgerError."""
        prove(self._path, self._folder)

    def once(self, *, write: bool = True) -> bool:
        """Make one pass; return whether all of it worked. Raises ConfigError, LedgerError.

        Without ``write``, only says what it would do.
        """
        known = state(self._path, self._folder, time.time())
        if self._gateway and not any(each.gateway(self._gateway) for each in known.zones):
            self.tell("gateway", f"{self._gateway} is no gateway of tproxy_zones: only others are withdrawn")
        for key, reason in known.verdict.waiting.items():
            self.tell(f"zone {key}", reason)
        for id_, reason in known.verdict.refused.items():
            self.tell(f"route {id_}", f"route {id_}: {reason}")
        if write and all(each.looked for each in known.claims.values()):
            for line in front.change_routes(known.config):
                self._say(f"HAProxy: {line}")
        healthy = self._look(known)
        wanted = {each: self._wanted(known, each, healthy) for each in known.zones}
        due = [each for each in known.zones if not write or self._is_due(known, each, wanted[each])]
        found, worked = self._read(known, due, write=write)
        dead = self._dead(found)
        for zone, records in found.items():
            tag = f"server {zone.domain}"
            try:
                self._keep(known, zone, records, wanted[zone], dead[zone], write=write)
                self._kept[zone] = wanted[zone], {*self._silent}, time.monotonic()
                self.tell(tag, "")
            except ServerError as error:
                worked = False
                self.tell(tag, f"{error}: tried again later")
        return worked

    def tell(self, about: str, text: str) -> None:
        """Say something once, until it changes."""
        if self._said.get(about, "") != text:
            self._said[about] = text
            if text:
                self._say(text)

    def _look(self, known: State) -> dict[str, bool]:
        """Return which routes of this gateway are healthy, by id."""
        routes = {each.id: each for each in known.routes}
        asked = []
        for id_, (_, zone) in known.verdict.granted.items():
            if zone is not None and zone.gateway(self._gateway) is not None:
                asked.append(health.tried(routes[id_]))
        found = self._looking.look(asked)
        self._health = health.settled(self._health, found, time.monotonic())
        for id_, seen in self._health.items():
            name = known.verdict.granted[id_][0]
            self.tell(
                f"health {id_}", "" if seen.healthy else f"{name}: withdrawn: route {id_}: {seen.reason}"
            )
        return {id_: each.healthy for id_, each in self._health.items()}

    def _wanted(self, known: State, zone: Zone, healthy: Mapping[str, bool]) -> dict[str, bool]:
        """Return the names of a zone that lead to this gateway, and whether each is healthy."""
        wanted = wishes.of_routes(known.verdict, zone, healthy)
        return wanted | wishes.of_nameservers(zone, known.zones, self._gateway, known.tokens)

    def _is_due(self, known: State, zone: Zone, wanted: dict[str, bool]) -> bool:
        """Whether a zone is to be read: where gateways show that they live, always; others now and then."""
        if len(zone.gateways) > 1 and wishes.beats(zone, known.verdict.zones, self._gateway):
            return True
        before, silent, at = self._kept.get(zone, ({}, set(), -READ_AGAIN))
        return before != wanted or silent != self._silent or time.monotonic() >= at + READ_AGAIN

    def _read(self, known: State, zones: Iterable[Zone], *, write: bool) -> tuple[dict[Zone, Records], bool]:
        """Return the records of each of these zones that can be read, and whether all could be."""
        found: dict[Zone, Records] = {}
        worked = True
        served = {each.domain for each in known.verdict.zones}
        for zone in zones:
            counts = zone in known.verdict.zones
            # A zone that does not count any more has names to withdraw.
            if zone.server is None or (not counts and zone.domain in served):
                continue
            is_unknown = known.claims.get(zone, _KNOWN).is_unknown
            try:
                client = servers.client(zone.server)
                try:
                    found[zone] = client.read(zone)
                except ZoneMissing:
                    if not counts and not wishes.may_be_made(zone, known.zones):
                        continue
                    if not write:
                        self._say(f"{zone.domain}: would be made at {zone.server}")
                        continue
                    client.create(zone, known.nameservers(zone))
                    self._say(f"{zone.domain}: made at {zone.server}")
                    found[zone] = client.read(zone)
            except ServerError as error:
                worked = False
                self.tell(f"server {zone.domain}", f"{error}: tried again later")
                continue
            if is_unknown:
                found.pop(zone, None)
        return found, worked

    def _dead(self, found: Mapping[Zone, Records]) -> dict[Zone, set[str]]:
        """Return the gateways of each zone that have not shown for its lease that they live.

        By the clock of this process alone: a clock that is wrong withdraws nobody.
        """
        now = time.monotonic()
        newest: dict[tuple[Server, str], str] = {}
        for zone, records in found.items():
            assert zone.server is not None
            for gateway, said in heartbeats(records).items():
                key = zone.server, gateway
                newest[key] = max(newest.get(key, ""), said)
        for key, said in newest.items():
            if self._heard.get(key, ("", 0.0))[0] != said:
                self._heard[key] = said, now
        dead: dict[Zone, set[str]] = {zone: set() for zone in found}
        for zone in found:
            assert zone.server is not None
            others = [each.name for each in zone.gateways if each.name != self._gateway]
            for other in others if zone.lease and len(zone.gateways) > 1 else ():
                _, since = self._heard.setdefault((zone.server, other), ("", now))
                if now >= since + zone.lease:
                    dead[zone].add(other)
        silent = {each for some in dead.values() for each in some}
        for each in silent - self._silent:
            self._say(f"gateway {each} has been silent for its lease: others withdraw it")
        for each in self._silent - silent:
            self._say(f"gateway {each} lives again")
        self._silent = silent
        return dead

    def _keep(
        self,
        known: State,
        zone: Zone,
        records: Records,
        wanted: Mapping[str, bool],
        dead: set[str],
        *,
        write: bool,
    ) -> None:
        """Write what a zone lacks. Raises ServerError."""
        assert zone.server is not None
        client = servers.client(zone.server)
        beating = wishes.beats(zone, known.verdict.zones, self._gateway)
        for attempt in range(ATTEMPTS):
            made = plan.plan(zone, records, self._gateway, wanted, dead, time.time(), beating=beating)
            for each in made.notes:
                self.tell(f"note {each.partition(':')[0]}", each)
            if write and made.changes:
                try:
                    client.change(zone, records, made.changes)
                except Changed:
                    if attempt == ATTEMPTS - 1:
                        raise
                    records = client.read(zone)
                    continue
            break
        there = records.get((zone.domain, "NS"))
        wished = {f"{each}." for each in known.nameservers(zone)}
        differ = there is not None and wished and wished != set(there.values)
        said = f"{zone.domain}: NS {' '.join(there.values)} is there, which tproxy leaves" if there else ""
        self.tell(f"NS {zone.domain}", f"{said}: the file says {' '.join(sorted(wished))}" if differ else "")
        for record in made.changes:
            if record.type != "TXT":
                self._say(_shown(record))
        self._sign(zone, client, write=write)

    def _sign(self, zone: Zone, client: servers.Client, *, write: bool) -> None:
        """Have the zone signed or not, as the file says. Raises ServerError."""
        if zone.dnssec is None or not write:
            return
        if not zone.dnssec and client.ds(zone):
            try:
                led = proof.ds_at_parent(zone)
            except proof.Unknown as reason:
                raise ServerError(
                    f"{zone.domain} stays signed: whether its parent has a DS is unknown ({reason})"
                ) from None
            if led:
                raise ServerError(
                    f"{zone.domain} stays signed while its parent has a DS record: remove that first"
                )
        if client.sign(zone, signed=zone.dnssec):
            self._say(f"{zone.domain}: {'is signed' if zone.dnssec else 'is no longer signed'}")


def _shown(record: Record) -> str:
    return f"{record.name}: {record.type} {' '.join(record.values) or 'none'}"
