"""Changes maps and certificates of a running HAProxy, by its admin socket (management guide, section 9.3)."""

from __future__ import annotations

import socket
import ssl
from typing import NamedTuple

from tproxy.errors import ProcessError
from tproxy.inward.compile import CHALLENGED, KINDS, REFUSALS, USES
from tproxy.inward.maps import CHALLENGES

TIMEOUT = 10.0  # seconds

# Bytes of a map in one command: HAProxy reads one into a buffer of 16 KiB (tune.bufsize).
MOST = 12_000


class Certificate(NamedTuple):
    """A certificate that HAProxy has: its names, and from when until when it holds, in seconds since 1970."""

    names: tuple[str, ...]
    since: float
    until: float


class Runtime:
    """The admin socket at ``path``."""

    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def answers(self) -> bool:
        """Whether HAProxy is there."""
        try:
            return bool(self.ask("show version"))
        except ProcessError:
            return False

    @property
    def worker(self) -> str:
        """The process id of the worker that answers; "" while none does."""
        try:
            lines = self.ask("show info").splitlines()
        except ProcessError:
            return ""
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("Pid:")), "")

    def ask(self, command: str, payload: str = "") -> str:
        """Return the answer to a command. Raises ProcessError when HAProxy is not there."""
        text = f"{command} <<\n{payload.rstrip()}\n\n" if payload else f"{command}\n"
        answer = b""
        try:
            with socket.socket(socket.AF_UNIX) as admin:
                admin.settimeout(TIMEOUT)
                admin.connect(self._path)
                admin.sendall(text.encode())
                while part := admin.recv(65536):
                    answer += part
        except OSError as error:
            raise ProcessError(
                f"HAProxy does not answer at {self._path}: {error.strerror or error}"
            ) from None
        return answer.decode(errors="replace").strip()

    def set_map(self, file: str, text: str) -> None:
        """Have this text in the place of a map, all at once.

        Raises ProcessError; then nothing has changed.
        """
        version = self.ask(f"prepare map {file}").rpartition(":")[2].strip()
        if not version.isdecimal():
            raise ProcessError(f"HAProxy does not know the map {file}: {version}")
        for part in _parts(text):
            self._do(f"add map @{version} {file}", part)
        self._do(f"commit map @{version} {file}")

    def set_certificate(self, file: str, text: str, *, new: bool, in_list: str) -> None:
        """Use a certificate, which is not in the list yet if it is ``new``.

        Raises ProcessError; then nothing has changed.
        """
        if new:
            self.ask(f"new ssl cert {file}")
        answer = self.ask(f"set ssl cert {file}", "\n".join(filter(str.strip, text.splitlines())))
        if "transaction created" not in answer.lower() and "updated" not in answer.lower():
            self.ask(f"abort ssl cert {file}")
            if new:
                self.ask(f"del ssl cert {file}")
            raise ProcessError(f"{file} cannot be used: {' '.join(answer.split())}")
        answer = self.ask(f"commit ssl cert {file}")
        if "success" not in answer.lower():
            self.ask(f"abort ssl cert {file}")
            raise ProcessError(f"{file} cannot be used: {' '.join(answer.split())}")
        if new:
            self.ask(f"add ssl crt-list {in_list} {file}")

    def drop_certificate(self, file: str, in_list: str) -> None:
        """Use a certificate no more."""
        self.ask(f"del ssl crt-list {in_list} {file}")
        self.ask(f"del ssl cert {file}")

    def certificate(self, file: str) -> Certificate | None:
        """Return what HAProxy knows of a certificate; None where it does not have it."""
        lines = [line.partition(":") for line in self.ask(f"show ssl cert {file}").splitlines()]
        said = {key.strip(): value.strip() for key, _, value in lines}
        try:
            since, until = (float(ssl.cert_time_to_seconds(said[key])) for key in ("notBefore", "notAfter"))
        except (KeyError, ValueError):
            return None
        named = said.get("Subject Alternative Name", "")
        names = tuple(each.strip().removeprefix("DNS:") for each in named.split(",") if "DNS:" in each)
        return Certificate(names, since, until)

    def lead_challenges(self, folder: str, names: list[str], port: int) -> None:
        """Pass questions of an issuer for these names on to a port of loopback; 0: pass none on."""
        self.set_map(f"{folder}/{CHALLENGES}", "".join(f"{each} 1\n" for each in names))
        if port:
            self.ask(f"set server {CHALLENGED} addr 127.0.0.1 port {port}")
        self.ask(f"set server {CHALLENGED} state {'ready' if port else 'maint'}")

    def refusals(self) -> dict[str, int]:
        """Return how many connections were refused, by reason (``compile``), since the last reload."""
        return {key: said.get("gpc0", 0) for key, said in self._table(REFUSALS).items()}

    def usage(self) -> dict[str, tuple[int, int, int]]:
        """Return what this process has counted, by kind/id: uses, bytes from clients, bytes to clients."""
        names = ("conn_cnt", "bytes_in_cnt", "bytes_out_cnt")
        found = {}
        for kind in KINDS:
            for route, said in self._table(f"{USES}_{kind}").items():
                uses, received, sent = (said.get(name, 0) for name in names)
                found[f"{kind}/{route}"] = uses, received, sent
        return found

    def _table(self, name: str) -> dict[str, dict[str, int]]:
        """Return the numbers of a table, by key."""
        found = {}
        for line in self.ask(f"show table {name}").splitlines():
            words = dict(word.partition("=")[::2] for word in line.split() if "=" in word)
            if "key" in words:
                numbers = {key: int(value) for key, value in words.items() if value.isdecimal()}
                found[words["key"]] = numbers
        return found

    def _do(self, command: str, payload: str = "") -> None:
        if answer := self.ask(command, payload):
            raise ProcessError(f"HAProxy: {command}: {answer}")


def _parts(text: str) -> list[str]:
    parts = [""]
    for line in text.splitlines(keepends=True):
        if len(parts[-1]) + len(line) > MOST:
            parts.append("")
        parts[-1] += line
    return [each for each in parts if each]
