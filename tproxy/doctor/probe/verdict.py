"""Says of what a guest met whether it is good. Pure. ``look`` is the command that finds out more."""

from __future__ import annotations

from tproxy.addresses import SERVICE_ADDRESS
from tproxy.doctor.look.dial import Dialled, command
from tproxy.doctor.probe.arp import Answers
from tproxy.doctor.probe.ping import PATIENCE
from tproxy.doctor.probe.step import Step, bad, good, warning
from tproxy.doctor.probe.visit import Visit
from tproxy.model import UDP, Service


def of_arp(found: Answers, expected: str, look: str, address: str = SERVICE_ADDRESS) -> Step:
    """Who answers for the service address; ``expected`` is the MAC of the namespace's link."""
    step, how = ("neighbour", "neighbour solicitations") if ":" in address else ("arp", "ARP")
    if not found.macs:
        return bad(step, found.seconds, f"nobody answers {how} for {address}", look)
    strangers = [mac for mac in found.macs if mac != expected]
    if strangers:
        text = f"another machine, {strangers[0]}, answers {how} for {address}"
        return bad(step, found.seconds, text, look)
    return good(step, found.seconds, f"{address} is at {found.macs[0]}")


def of_gateway(address: str, found: Answers) -> Step:
    """Whether a guest with only a default route has an address to send to."""
    if not found.macs:
        text = f"the gateway {address} does not answer ARP: a guest with only a default route sends nothing"
        return bad("gateway", found.seconds, text, f"ip route add {SERVICE_ADDRESS} dev eth0  # in the guest")
    return good("gateway", found.seconds, f"{address} is at {found.macs[0]}")


def of_ping(seconds: float | None, look: str, address: str = SERVICE_ADDRESS) -> Step:
    if seconds is None:
        text = f"{address} does not answer: something drops packets, or ICMP alone"
        return warning("ping", PATIENCE, text, look)
    return good("ping", seconds, f"{address} answers")


def of_endpoint(service: Service, found: Dialled | None) -> Step:
    """Whether this host reaches the endpoint, without any guest."""
    if found is None or found.problem:
        problem = found.problem if found is not None else "was not dialled"
        repair = command(service.endpoint, udp=service.key.protocol == UDP)
        text = f"endpoint {service.endpoint} {problem}"
        return bad("endpoint", found.seconds if found is not None else 0.0, text, repair)
    if service.key.protocol == UDP:
        return good("endpoint", found.seconds, f"{service.endpoint} does not refuse datagrams of this host")
    return good("endpoint", found.seconds, f"this host reaches {service.endpoint}")


def of_connection(visit: Visit, look: str) -> Step:
    """Whether there was a connection."""
    if visit.refusal == "Connection refused":
        return bad("connect", visit.connecting, "connection refused: nothing listens on the port", look)
    if visit.refusal:
        text = f"{visit.refusal}: something drops TCP that lets ARP and ping pass, or nobody accepts"
        return bad("connect", visit.connecting, text, look)
    return good("connect", visit.connecting, "connected")


def of_datagram(visit: Visit, look: str, *, taken: bool | None) -> Step:
    """What came of a datagram. ``taken`` is as in ``of_end``."""
    if visit.refusal:
        return bad("datagram", visit.connecting, f"{visit.refusal}: no datagram leaves the guest", look)
    if visit.end == "refused":
        text = "refused by ICMP: nothing listens on the port, or no endpoint can be reached"
        return bad("datagram", visit.ending, text, look)
    if visit.end == "data":
        return good("datagram", visit.ending, "the endpoint answers")
    if taken:
        text = "a worker passed it on; the endpoint says nothing to one without content"
        return good("datagram", visit.ending, text)
    if taken is None:
        text = "no answer, and no daemon tells whether a worker has passed it on"
        return warning("datagram", visit.ending, text, look)
    return bad("datagram", visit.ending, "no worker took the datagram: something drops it on the way", look)


def of_end(visit: Visit, look: str, *, taken: bool | None, last_error: str) -> Step:
    """What came of the connection. ``taken``: by the counters, a worker has it; None where nobody tells."""
    if visit.end == "reset":
        reason = last_error or "the worker could not reach the endpoint, or a limit was reached"
        return bad("answer", visit.ending, f"reset: {reason}", look)
    if visit.end in ("ended", "data"):
        text = "the endpoint answers" if visit.end == "data" else "the endpoint ended the connection in turn"
        return good("answer", visit.ending, text)
    if taken:
        return good("answer", visit.ending, "the endpoint keeps the connection open, and waits for a request")
    if taken is None:
        return warning("answer", visit.ending, "no answer, and no daemon tells whether a worker has it", look)
    return bad("answer", visit.ending, "no worker took the connection: guests wait", look)
