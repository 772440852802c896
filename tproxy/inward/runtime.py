"""Changes maps and certificates of a running HAProxy, by its admin socket (management guide, section 9.3)."""

from __future__ import annotations

import socket

from tproxy.errors import ProcessError

TIMEOUT = 10.0  # seconds

# Bytes of a map in one command: HAProxy reads one into a buffer of 16 KiB (tune.bufsize).
MOST = 12_000


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
