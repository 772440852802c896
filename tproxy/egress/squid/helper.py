"""The program that squid asks about each request: ``python -m tproxy.egress.squid.helper POLICY``.

squid writes a line for each request (external_acl_type in squid.conf(5), with concurrency) and reads one
back. The policy is read again when its file has changed, so an edit applies to the next request, and squid is
not reconfigured. What the answer says besides OK and ERR becomes notes of the request, by which the rest of
the configuration acts (``compiler``): where it goes, and how fast.

Everything that goes wrong here is an answer that denies. When this process ends, squid denies as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote, unquote

from tproxy import proxy_protocol
from tproxy.egress.model import Caller, Verdict
from tproxy.egress.policy import judging, places
from tproxy.egress.policy.current import Current
from tproxy.egress.policy.rules import Policy

# The fields of a line, in the order of FORMAT; squid percent-encodes each, and writes "-" for what is
# unknown.
FIELDS = {
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

_TUNNEL = "tunnel/"  # before the destination in the connection's tag


def answer(policy: Policy, said: dict[str, str], word: str) -> str:
    """Return squid's answer to one line: OK or ERR, and notes."""
    if word == SPLICING:
        # A tunnel goes on only to the host that it was opened for: many sites share an address, and the
        # server name would choose among them.
        wanted = f"{_TUNNEL}{said['server_name'].lower()}:443"
        return "OK" if said["connected"] == wanted else "ERR"
    caller = _caller(policy, said, word)
    verdict = _judge(policy, caller, said)
    if not verdict.allowed:
        return (
            f"ERR message={_message(verdict.reason)} rule={_escaped(verdict.rule or 'none')}{_notes(caller)}"
        )
    notes = f" rule={_escaped(verdict.rule)}{_notes(caller)}"
    limits = judging.limits(policy, caller)
    if limits.bytes_per_second:
        notes += f" rate={limits.bytes_per_second}"
    if said["method"] == "CONNECT":
        tag = f"{said['host'].lower().rstrip('.')}:{said['port']}"
        if verdict.opaque:
            return f"OK clt_conn_tag={_TUNNEL}{tag} way=tunnel{notes}"
        return f"OK clt_conn_tag={tag}{notes}"
    if policy.mode == "sealed" or any(places.artifacts(places.parse(said["url"]), policy.upstreams)):
        notes += " to=mirror"
    return "OK" + notes


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
        address = ip_address(said["address"])
        network = next((each.network for each in policy.clients if address in each.addresses), "")
        return Caller(network=network, address=said["address"])
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


def _notes(caller: Caller) -> str:
    """Return notes that tell who called. "tag" is the guest: squid's delay pools count by it."""
    found = {**caller.as_record(), "tag": caller.guest}
    return "".join(f" {name}={_escaped(text)}" for name, text in found.items() if text)


def _escaped(text: str) -> str:
    """Return a value as squid reads it. The log, and headers to the mirror, encode it again."""
    return quote(text, safe="/:.,-=*")


def _message(text: str) -> str:
    """Return a reason for the page that a denied client sees: nothing in it is more than text."""
    return quote("".join(each if each.isascii() and each not in "<>&\"'%" else "?" for each in text), safe="")


def serve(current: Current, lines: Iterable[str], write: Callable[[str], object]) -> None:
    """Answer each line. Say in squid's log when the policy cannot be used as it is now."""
    said_of_policy = ""
    for line in lines:
        number, _, rest = line.rstrip("\n").partition(" ")
        try:
            *values, word = rest.split(" ")
            said = {
                name: "" if value == "-" else unquote(value, errors="strict")
                for name, value in zip(FIELDS, values, strict=True)
            }
            policy = current.get()
            if current.problem != said_of_policy:
                said_of_policy = current.problem
                text = said_of_policy or "the policy is in order again"
                print(f"tproxy egress: {text}", file=sys.stderr, flush=True)
            found = answer(policy, said, word)
        except Exception as error:  # whatever it is, the request cannot be judged
            print(f"tproxy egress: cannot judge a request: {error!r}", file=sys.stderr, flush=True)
            found = "ERR message=this%20request%20cannot%20be%20judged rule=none"
        write(f"{number} {found}\n")


def main() -> None:
    """Answer squid until it closes our standard input."""
    current = Current(Path(sys.argv[1]))
    current.get()

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    serve(current, sys.stdin, write)


if __name__ == "__main__":
    main()
