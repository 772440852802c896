"""The program that squid asks about each request.

    python -m tproxy.egress.squid.external_acl POLICY LOG LEDGER SLOT

squid writes a line for each request (external_acl_type in squid.conf(5), with concurrency) and reads one
back. The policy is read again when its file has changed, so an edit applies to the next request, and squid is
not reconfigured. What the answer says besides OK and ERR becomes notes of the request, by which the rest of
the configuration acts (``compiler``): where it goes, and how fast.

Before the answer, the decision is in the ledger: denials, and what goes to a site; the mirror records what it
serves by itself. Requests that arrive together share one write. LOG is squid's, from which limits on
connections learn what has ended; LEDGER is the socket of the process that writes it ("-" for none, in tests
without a mirror). SLOT tells apart the squids that write one log.

Everything that goes wrong here is an answer that denies. When this process ends, squid denies as well.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, unquote

from tproxy import proxy_protocol
from tproxy.egress.ledger.chain import LedgerError
from tproxy.egress.ledger.entries import Event
from tproxy.egress.ledger.follower import BEGUN, DENIED, NOTHING
from tproxy.egress.ledger.sending import Sender
from tproxy.egress.model import Caller, Verdict
from tproxy.egress.policy import judging, places
from tproxy.egress.policy.current import Current
from tproxy.egress.policy.rules import Policy
from tproxy.egress.squid import rates
from tproxy.egress.squid.progress import Progress

# The fields of a line, in the order of FORMAT; squid percent-encodes each, and writes "-" for what is
# unknown.
FIELDS = {
    "number": "%master_xaction",
    "method": "%METHOD",
    "url": "%URI",
    "host": "%DST",
    "port": "%PORT",
    "address": "%SRC",
    "server_name": "%ssl::>sni",
    "connected": "%{clt_conn_tag}note",
    "network": f"%{{{proxy_protocol.OF_NETWORK}}}proxy_protocol::>h",
    "network_id": f"%{{{proxy_protocol.OF_NETWORK_ID}}}proxy_protocol::>h",
    "bridge": f"%{{{proxy_protocol.OF_BRIDGE}}}proxy_protocol::>h",
    "mac": f"%{{{proxy_protocol.OF_MAC}}}proxy_protocol::>h",
    "bridge_port": f"%{{{proxy_protocol.OF_PORT}}}proxy_protocol::>h",
    "hypervisor": f"%{{{proxy_protocol.OF_HYPERVISOR}}}proxy_protocol::>h",
}
FORMAT = " ".join(FIELDS.values())

# The last word of a line says what is asked, and by whom: `acl NAME external judge WORD`.
BY_HEADER, BY_CLIENTS, SPLICING = "header", "clients", "splicing"

# The note "refused" of a request that is allowed, and not now (compiler: status and page).
BUSY, UNRECORDED = "busy", "unrecorded"

_TUNNEL = "tunnel/"  # before the destination in the connection's tag


@dataclass(frozen=True)
class Decision:
    """What squid is told, and what goes into the ledger before. ``guest`` and ``most`` limit connections."""

    allowed: bool
    notes: dict[str, str] = field(default_factory=dict)
    event: Event | None = None
    guest: str = ""
    most: int = 0

    def refused(self, why: str, reason: str) -> Decision:
        """Return a refusal in the place of this decision, without its event."""
        kept = {name: text for name, text in self.notes.items() if name in _KEPT}
        return Decision(False, {"message": _message(reason), "refused": why, **kept})

    def line(self) -> str:
        return " ".join(
            ("OK" if self.allowed else "ERR", *(f"{name}={text}" for name, text in self.notes.items()))
        )


def decide(policy: Policy, said: dict[str, str], word: str) -> Decision:
    """Decide about one line."""
    if word == SPLICING:
        # A tunnel goes on only to the host that it was opened for: many sites share an address, and the
        # server name would choose among them.
        return Decision(said["connected"] == f"{_TUNNEL}{said['server_name'].lower()}:443")
    caller = _caller(policy, said, word)
    verdict = _judge(policy, caller, said)
    connecting = said["method"] == "CONNECT"
    url = f"{said['host']}:{said['port']}" if connecting else said["url"]
    notes = {"rule": _escaped(verdict.rule or "none"), **_caller_notes(caller)}

    def event(kind: str) -> Event:
        what = places.artifact_at(url, policy.upstreams)
        return Event.of(caller, what, kind, rule=verdict.rule, reason=verdict.reason, origin=url)

    if not verdict.allowed:
        return Decision(
            False, {"message": _message(verdict.reason), **notes, "recorded": DENIED}, event(DENIED)
        )
    limits = judging.limits(policy, caller)
    if limits.bytes_per_second:
        notes["rate"] = str(rates.step(limits.bytes_per_second))
    found = Decision(True, notes, guest=caller.guest, most=limits.connections)
    if connecting:
        return _connection(found, verdict, said, event)
    if _is_for_mirror(policy, said["url"]):
        return replace(found, notes={**notes, "to": "mirror", "recorded": NOTHING})
    return replace(found, notes={**notes, "recorded": BEGUN}, event=event(BEGUN))


def _connection(
    found: Decision, verdict: Verdict, said: dict[str, str], event: Callable[[str], Event]
) -> Decision:
    """Decide about a CONNECT that is allowed. Only a tunnel is more than the way for requests to come."""
    tag = f"{said['host'].lower().rstrip('.')}:{said['port']}"
    if not verdict.opaque:
        return replace(found, notes={**found.notes, "clt_conn_tag": tag, "recorded": NOTHING}, most=0)
    notes = {**found.notes, "clt_conn_tag": _TUNNEL + tag, "way": "tunnel"}
    if not said["connected"]:  # squid asks again when it has seen the server name
        return replace(found, notes={**notes, "recorded": NOTHING}, most=0)
    return replace(found, notes={**notes, "recorded": BEGUN}, event=event(BEGUN))


def _is_for_mirror(policy: Policy, url: str) -> bool:
    """Return whether the mirror answers: for official sites, and for files whose hash it has to look at."""
    if policy.mode == "sealed":
        return True
    place = places.parse(url)
    if any(places.artifacts(place, policy.upstreams)):
        return True
    return any(places.matches(file.url, place) for rule in policy.rules for file in rule.files)


def _judge(policy: Policy, caller: Caller, said: dict[str, str]) -> Verdict:
    if said["method"] == "CONNECT":
        # squid asks about a tunnel again when it has seen the server name.
        if said["connected"] and said["connected"] != f"{_TUNNEL}{said['host'].lower()}:{said['port']}":
            return Verdict(False, reason="a CONNECT inside another one is not allowed")
        port = int(said["port"]) if said["port"].isdecimal() else 0
        return judging.destination(policy, caller, said["host"], port)
    if said["connected"]:
        # The certificate that squid shows, and what the connection was allowed for, are those of this host.
        try:
            place = places.parse(said["url"])
        except places.NotClear as reason:
            return Verdict(False, reason=f"the URL {reason}")
        if place.scheme != "https" or f"{place.host}:{place.port}" != said["connected"]:
            return Verdict(False, reason="the request names another host than the connection")
    return judging.request(policy, caller, said["method"], said["url"])


def _caller(policy: Policy, said: dict[str, str], word: str) -> Caller:
    if word == BY_CLIENTS:
        return Caller(network=policy.network_of(said["address"]), address=said["address"])
    if word != BY_HEADER:
        raise ValueError(f"unknown word {word}")
    return Caller(
        said["hypervisor"],
        said["network"],
        said["network_id"],
        said["bridge"],
        said["bridge_port"],
        said["mac"],
        said["address"],
    )


def _caller_notes(caller: Caller) -> dict[str, str]:
    """Return notes that tell who called. "tag" is the guest: squid's delay pools count by it."""
    found = {**caller.as_record(), "tag": caller.guest}
    return {name: _escaped(text) for name, text in found.items() if text}


_KEPT = ("rule", "tag", *Caller.__dataclass_fields__)


def _escaped(text: str) -> str:
    """Return a value as squid reads it. The log, and headers to the mirror, encode it again."""
    return quote(text, safe="/:.,-=*")


def _message(text: str) -> str:
    """Return a reason for the page that a denied client sees: nothing in it is more than text."""
    return quote("".join(each if each.isascii() and each not in "<>&\"'%" else "?" for each in text), safe="")


class Helper:
    """Answers lines. ``record`` writes events to the ledger, or raises LedgerError; None records nothing."""

    def __init__(
        self,
        current: Current,
        progress: Progress,
        record: Callable[[Sequence[Event]], object] | None,
        complain: Callable[[str], object],
    ) -> None:
        self._current, self._progress, self._record, self._complain = current, progress, record, complain
        self._problem = ""  # of the policy, as it was said last

    def answers(self, lines: Sequence[str]) -> list[str]:
        """Return squid's answers to these lines, in order. All their events are on the disk by then."""
        asked = [line.rstrip("\n").partition(" ") for line in lines]
        decisions = [self._decided(rest) for _, _, rest in asked]
        if any(each.most for _, each in decisions):
            self._progress.look()
            decisions = [(number, self._limited(number, each)) for number, each in decisions]
        found = self._recorded([each for _, each in decisions])
        for (number, before), after in zip(decisions, found, strict=True):
            if before.allowed and not after.allowed:
                self._progress.end(number)
        return [f"{channel} {each.line()}\n" for (channel, _, _), each in zip(asked, found, strict=True)]

    def _decided(self, rest: str) -> tuple[str, Decision]:
        """Return the number of a request, and what is decided. Whatever goes wrong denies."""
        try:
            *values, word = rest.split(" ")
            said = {
                name: "" if value == "-" else unquote(value, errors="strict")
                for name, value in zip(FIELDS, values, strict=True)
            }
            return said["number"], decide(self._policy(), said, word)
        except Exception as error:  # whatever it is, the request cannot be judged
            self._complain(f"cannot judge a request: {error!r}")
            return "", Decision(False, {"message": _message("this request cannot be judged"), "rule": "none"})

    def _policy(self) -> Policy:
        policy = self._current.get()
        if self._current.problem != self._problem:
            self._problem = self._current.problem
            self._complain(self._problem or "the policy is in order again")
        return policy

    def _limited(self, number: str, decision: Decision) -> Decision:
        if not (decision.allowed and decision.most):
            return decision
        if self._progress.count(decision.guest) >= decision.most:
            return decision.refused(
                BUSY, f"this guest has {decision.most} connections already, as many as it may"
            )
        self._progress.begin(number, decision.guest)
        return decision

    def _recorded(self, decisions: list[Decision]) -> list[Decision]:
        """Return the decisions, when their events are in the ledger; refusals where they are not."""
        events = [each.event for each in decisions if each.event]
        if not events or self._record is None:
            return decisions
        try:
            self._record(events)
            return decisions
        except LedgerError as error:
            self._complain(f"nothing is served, because nothing can be recorded: {error}")
            reason = "this cannot be recorded now, so it is not served"
            return [each.refused(UNRECORDED, reason) if each.event else each for each in decisions]


def batches(descriptor: int) -> Iterator[list[str]]:
    """Yield the lines that have arrived, all that are there each time, until the end."""
    rest = b""
    while data := os.read(descriptor, 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        if lines:
            yield [line.decode("utf-8", "surrogateescape") for line in lines]


def main() -> None:
    """Answer squid until it closes our standard input."""
    policy, log, ledger, slot = sys.argv[1:5]

    def complain(text: str) -> None:
        print(f"tproxy egress: {text}", file=sys.stderr, flush=True)

    current = Current(Path(policy))
    current.get()
    record = None if ledger == "-" else Sender(Path(ledger)).record
    helper = Helper(current, Progress(Path(log), slot), record, complain)
    for lines in batches(0):
        sys.stdout.write("".join(helper.answers(lines)))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
