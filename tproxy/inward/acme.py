"""Certificates from an issuer (ACME, RFC 8555), by lego, for routes whose TLS ends at the gateway.

Theory of operation. A route with ``tls: terminate`` whose name no file of the operator has a certificate for
gets one, if the gateway's file allows that name. The issuer asks at port 80 for a proof, and HAProxy passes
these requests on to lego, which listens at a port of loopback while it runs. Or lego proves the name by DNS:
always in a zone of ``tproxy_zones`` that has a server.

A certificate is renewed when a third of its time is left. Until another one is there, the old one stays in
use, also when it has run out: clients can judge that better. After a failure the issuer is asked again later
and later, since issuers refuse those who ask too often.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tproxy.config.routes import TERMINATE, RouteEntry
from tproxy.errors import TproxyError
from tproxy.inward import files
from tproxy.inward.options import Options
from tproxy.inward.runtime import Certificate, Runtime

# Seconds that the issuer may take, with its questions.
PATIENCE = 300.0

# Seconds until another try after a failure; each further failure doubles it. Let's Encrypt allows five
# failures of a name in an hour.
RETRY, LONGEST_RETRY = 900.0, 86_400.0

_FAILURES = "failures.json"


class Failure(NamedTuple):
    """How often in a row a name got no certificate, why, and when the issuer is asked again."""

    times: int
    why: str
    again: float  # in seconds since 1970


def wanted(
    entries: Iterable[RouteEntry], allowed: Iterable[str], known: Iterable[str], now: float
) -> tuple[list[str], list[str]]:
    """Return the names to have certificates from the issuer for, and those that it may not be asked for.

    ``known`` are names that the operator's own certificates have; they may begin with ``*.``.
    """
    domains = {
        each.domain.lower()
        for each in entries
        if each.domain and each.tls == TERMINATE and not 0 < each.expires <= now
    }
    have = {each.lower() for each in known}
    missing = sorted(each for each in domains if not {each, _wildcard(each)} & have)
    may = [each for each in missing if any(_is_in(each, parent) for parent in allowed)]
    return may, [each for each in missing if each not in may]


def _wildcard(domain: str) -> str:
    return f"*.{domain.partition('.')[2]}"


def _is_in(domain: str, parent: str) -> bool:
    return f".{domain.removeprefix('*.')}".endswith(f".{parent.lower().rstrip('.')}")


def is_due(certificate: Certificate, now: float) -> bool:
    """Whether a certificate is to be renewed; ``now`` is in seconds since 1970."""
    return certificate.until - now < (certificate.until - certificate.since) / 3


def after_failure(before: Failure | None, why: str, now: float) -> Failure:
    """Return what is known of a name after one more failure."""
    count = before.times + 1 if before else 1
    return Failure(count, why, now + min(RETRY * 2 ** min(count - 1, 10), LONGEST_RETRY))


# How lego proves a name by DNS: its options, and settings for its environment; None: not by DNS. Raises
# TproxyError.
ByDns = Callable[[str], tuple[list[str], dict[str, str]] | None]


def _not_by_dns(domain: str) -> None:
    return None


class Issuer:
    """The issuer of these options, and what it gave."""

    def __init__(self, options: Options, by_dns: ByDns = _not_by_dns) -> None:
        self._options = options
        self._by_dns = by_dns
        self._state = Path(options.state)
        self._folder = self._state / "certificates"

    def have(self, domains: Iterable[str]) -> dict[str, str]:
        """Return the certificates that are there for these names, by path, with their keys."""
        paths = [self._path(each) for each in domains]
        return {str(each): each.read_text() for each in paths if each.exists()}

    def failures(self) -> dict[str, Failure]:
        """Return the names that got no certificate at the last try."""
        try:
            found = json.loads((self._state / _FAILURES).read_text())
            return {name: Failure(*each) for name, each in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def obtain(self, admin: Runtime, maps: Path, domains: list[str]) -> list[str]:
        """Get certificates for those of the names that have none or an old one; return what was done.

        ``maps`` is the directory of HAProxy's files.
        """
        failures = {name: each for name, each in self.failures().items() if name in domains}
        said = []
        now = time.time()
        for domain in domains:
            path = self._path(domain)
            found = admin.certificate(str(path)) if path.exists() else None
            failure = failures.get(domain)
            if (found and not is_due(found, now)) or (failure and now < failure.again):
                continue
            if why := self._ask(admin, maps, domain):
                failures[domain] = after_failure(failure, why, now)
                said.append(f"certificate for {domain}: {why}")
            else:
                failures.pop(domain, None)
                said.append(f"certificate for {domain}: issued")
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write(self._state, {_FAILURES: json.dumps(failures)})
        return said

    def _ask(self, admin: Runtime, maps: Path, domain: str) -> str:
        """Have lego get one certificate; return why there is none, "" if there is one."""
        program = shutil.which("lego")
        if program is None:
            return "lego is not installed: apt install lego"
        try:
            by_dns = self._by_dns(domain)
        except TproxyError as error:
            return str(error)
        if self._options.acme_dns:
            by_dns = ["--dns", self._options.acme_dns], {}
        if domain.startswith("*.") and not by_dns:
            return "issuers prove a wildcard by DNS only (--acme-dns)"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        accounts = self._state / "lego"
        how, settings = by_dns or ([], {})
        port = 0
        if not by_dns:
            port = files.free_port()
            how = ["--http", "--http.port", f"127.0.0.1:{port}"]
        argv = [
            *(program, "--accept-tos", "--server", self._options.acme, "--path", str(accounts), "--pem"),
            *("--email", self._options.acme_email or "none@invalid", "--domains", domain, *how, "run"),
        ]
        trusted = {"LEGO_CA_CERTIFICATES": self._options.acme_ca} if self._options.acme_ca else {}
        admin.lead_challenges(str(maps), [domain], port)
        try:
            done = subprocess.run(
                argv,
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                env={**os.environ, **trusted, **settings},
            )
        except subprocess.TimeoutExpired:
            return f"the issuer takes more than {PATIENCE:.0f} s"
        finally:
            admin.lead_challenges(str(maps), [], 0)
        issued = accounts / "certificates" / f"{domain.replace('*', '_')}.pem"
        if done.returncode or not issued.exists():
            last = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()][-1:]
            return "".join(last) or f"lego ended with {done.returncode}"
        files.write(self._folder, {self._path(domain).name: issued.read_text()})
        return ""

    def _path(self, domain: str) -> Path:
        return self._folder / f"{domain.replace('*', '_')}.pem"
