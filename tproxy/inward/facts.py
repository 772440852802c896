"""What `tproxy gateway status` shows: of HAProxy as it is now, and of the issuer."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from tproxy.errors import ProcessError, to_ascii
from tproxy.inward import acme, files, maps
from tproxy.inward.compile import ADMIN, CERTIFICATES, NO_NAME, NO_ROUTE, TOO_MANY
from tproxy.inward.options import Options
from tproxy.inward.runtime import Runtime

# Of the JSON document, as in ``cli.route``.
VERSION = 1

_SAID = {
    NO_NAME: "no TLS, or no name in the first record of the ClientHello",
    NO_ROUTE: "name or port without a route",
    TOO_MANY: "too many connections of one client",
}


def facts(state: str) -> dict[str, Any]:
    """Return the JSON document; ``state`` is the directory of what an issuer gave. Raises ProcessError."""
    folder = files.directory()
    admin = Runtime(str(folder / ADMIN))
    if not admin.answers:
        raise ProcessError("HAProxy does not run: tproxy gateway up")
    refused = admin.refusals()
    paths = (folder / CERTIFICATES).read_text().split()
    found = {path: admin.certificate(path) for path in paths}
    failures = acme.Issuer(Options(state=state)).failures()
    return {
        "version": VERSION,
        "process": int(admin.worker),
        "names": _count(folder / "host.map") + _count(folder / "host.wild.map"),
        "ports": _count(folder / maps.BY_PORT),
        "certificates": [
            {"path": path, "names": each.names, "until": each.until} for path, each in found.items() if each
        ],
        "failures": [
            {"name": name, "times": each.times, "why": each.why, "again": each.again}
            for name, each in failures.items()
        ],
        "refused": {reason: refused.get(reason, 0) for reason in _SAID},
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Return the same as lines of text."""
    shown = [f"HAProxy: process {found['process']}, {found['names']} names, {found['ports']} ports"]
    shown += [
        f"certificate {each['path']}: {', '.join(each['names'])}; until {_moment(each['until'])}"
        for each in found["certificates"]
    ]
    shown += [
        f"no certificate for {each['name']}: {each['why']}; tried again after {_moment(each['again'])}"
        for each in found["failures"]
    ]
    shown += [f"refused: {found['refused'][reason]} ({text})" for reason, text in _SAID.items()]
    return [to_ascii(each) for each in shown]


def _count(path: Any) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
