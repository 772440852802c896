"""What a node is like now: facts of its parts, and what follows from them. Only ``look`` is not pure."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tproxy.egress.layout import Layout
from tproxy.egress.ledger import heads
from tproxy.egress.policy.current import Current
from tproxy.egress.service import ports
from tproxy.egress.squid.authority import Authority, fingerprint
from tproxy.errors import TproxyError

_PATIENCE = 5.0  # seconds for the mirror's answer


@dataclass(frozen=True)
class State:
    """The facts. What could not be read is None or empty."""

    policy: str
    problem: str = ""  # why the policy cannot be used
    mode: str = ""
    rules: int = 0
    squid: int | None = None  # its process
    mirror: dict[str, Any] | None = None  # what its control socket says
    silent: tuple[str, ...] = ()  # ports on which nobody listens
    fingerprint: str = ""
    valid_until: str = ""
    rotating: bool = False
    warning: str = ""  # about the authority
    signed: int | None = None  # seconds since the ledger's head was signed
    parts: dict[str, bool] = field(default_factory=dict)


def look(layout: Layout) -> State:
    """Read what there is. Raises nothing for what is missing: that is a fact too."""
    current = Current(layout.policy)
    policy = current.get()
    silent = tuple(
        f"{what} {address}:{port}"
        for what, address, port in ports.needed(policy)
        if ports.is_free(address, port)
    )
    squid, mirror = _squid(layout), _mirror(layout.mirror_socket)
    front = not any(each.split()[0] in ("transparent", "setup", "resolver") for each in silent)
    authority = Authority(layout.authority)
    found = State(
        str(layout.policy),
        current.problem,
        policy.mode,
        len(policy.rules),
        squid,
        mirror,
        silent,
        signed=_signed(layout),
        parts={"squid": squid is not None, "mirror": mirror is not None, "front": front},
    )
    try:
        certificate = authority.load()
    except TproxyError:
        return found
    return State(
        **{
            **{name: getattr(found, name) for name in State.__dataclass_fields__},
            "fingerprint": fingerprint(certificate),
            "valid_until": f"{certificate.not_valid_after_utc:%Y-%m-%d}",
            "rotating": authority.rotating,
            "warning": authority.warning(),
        }
    )


def findings(state: State) -> list[str]:
    """Return what is wrong, a line each with what to do; nothing for a node in order."""
    found = []
    if state.problem:
        found.append(f"the policy is not used: {state.problem}; see tproxy egress check")
    for name, runs in state.parts.items():
        if not runs:
            found.append(f"{name} does not run: see journalctl -u 'tproxy-egress-{name}*'")
    if all(state.parts.values()):
        found += [f"nobody listens on {each}: tproxy egress reload" for each in state.silent]
    if not state.fingerprint:
        found.append("there is no authority: tproxy egress up makes one")
    if state.warning:
        found.append(state.warning)
    if state.mirror is not None:
        if state.mirror.get("mode") != state.mode:
            found.append(
                f"the mirror is in mode {state.mirror.get('mode')}, and the policy says {state.mode}"
            )
        if state.mirror.get("room", 1) <= 0:
            found.append("the store is full: make room on its disk, raise --quota, or keep less in advance")
        if state.signed is None or state.signed > 2 * heads.EVERY:
            found.append(
                "the ledger's head was not signed for two hours: see journalctl -u tproxy-egress-mirror"
            )
    return found


def as_document(state: State) -> str:
    """Return the facts and the findings as JSON."""
    return json.dumps({"version": 1, **asdict(state), "findings": findings(state)}, indent=2)


def as_text(state: State) -> list[str]:
    """Return lines for a terminal."""
    lines = [f"policy: {state.policy}, mode {state.mode}, {state.rules} rules"]
    lines += [f"{name}: {'runs' if runs else 'does not run'}" for name, runs in state.parts.items()]
    if state.fingerprint:
        more = ", and the one before it" if state.rotating else ""
        lines.append(f"authority: {state.fingerprint}, valid until {state.valid_until}{more}")
    if state.mirror is not None:
        told = state.mirror
        limit = f" of {told['quota']:,}" if told.get("quota") else ""
        lines.append(
            f"store: {told['bytes']:,}{limit} bytes, bundle {told['serial'] or 'none'}, "
            f"{told['kept']} kept in advance, {told['wanted']} wanted"
        )
        counts = ("hits", "misses", "denied", "missing", "failed")
        lines.append("mirror: " + ", ".join(f"{told[name]} {name}" for name in counts))
    if state.signed is not None:
        lines.append(f"ledger: head signed {state.signed // 60} minutes ago")
    return [*lines, *(f"wrong: {each}" for each in findings(state))]


_GAUGES = {
    "bytes": ("store_bytes", "Bytes in the store."),
    "quota": ("store_quota_bytes", "The most that the store may hold."),
    "room": ("store_room_bytes", "What may be added before something has to go."),
    "serial": ("bundle_serial", "The active bundle; 0 without one."),
    "kept": ("kept", "Things that are kept in advance."),
    "wanted": ("wanted", "Things that were asked for and are not here."),
}
_COUNTERS = {
    "hits": ("hits_total", "Files that the store had."),
    "misses": ("misses_total", "Files that were fetched."),
    "denied": ("denied_total", "Requests that the mirror denied."),
    "missing": ("missing_total", "Requests for what is not there."),
    "failed": ("failed_total", "Requests that a site or the store failed."),
    "served_bytes": ("served_bytes_total", "Bytes of files that were served."),
}


def metrics(state: State) -> str:
    """Return the facts in the text format of Prometheus."""
    lines: list[str] = []

    def family(name: str, kind: str, about: str, *samples: tuple[str, float]) -> None:
        full = f"tproxy_egress_{name}"
        lines.extend((f"# HELP {full} {about}", f"# TYPE {full} {kind}"))
        lines.extend(
            f"{full}{labels} {value:g}" if value < 1e6 else f"{full}{labels} {value:.0f}"
            for labels, value in samples
        )

    up = ((f'{{part="{name}"}}', float(runs)) for name, runs in state.parts.items())
    family("up", "gauge", "Whether a part of the node runs.", *up)
    family("findings", "gauge", "What tproxy egress status finds wrong.", ("", len(findings(state))))
    family("policy_usable", "gauge", "Whether the policy can be used.", ("", not state.problem))
    if state.signed is not None:
        family(
            "ledger_head_age_seconds", "gauge", "Time since the ledger's head was signed.", ("", state.signed)
        )
    for names, kind in ((_GAUGES, "gauge"), (_COUNTERS, "counter")):
        for key, (name, about) in names.items():
            value = (state.mirror or {}).get(key)
            if value is not None:
                family(name, kind, about, ("", float(value)))
    return "\n".join(lines) + "\n"


def _squid(layout: Layout) -> int | None:
    try:
        pid = int((layout.run / "squid.pid").read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid


class _Control(http.client.HTTPConnection):
    """A connection to a UNIX socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("mirror", timeout=_PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_PATIENCE)
        self.sock.connect(str(self._path))


def _mirror(path: Path) -> dict[str, Any] | None:
    with closing(_Control(path)) as control:
        try:
            control.request("GET", "/status")
            found = json.loads(control.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
    return found if isinstance(found, dict) else None


def _signed(layout: Layout) -> int | None:
    try:
        return max(0, int(time.time() - (layout.ledger / heads.FILE).stat().st_mtime))
    except OSError:
        return None
