"""An operator's own machine: the key, the certificate, and what ssh(1) needs. OpenSSH does the talking.

Nothing but OpenSSH is needed here. A directory holds the key, the certificate, the hosts that are known, and
where the gateway is.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from tproxy.errors import ProcessError, TproxyError
from tproxy.inward.tunnel import openssh
from tproxy.inward.tunnel.settings import Address, address_of

DIRECTORY = "~/.ssh/tproxy"
_FILE = "gateway.json"
_PATIENCE = 60.0  # seconds


class Known(NamedTuple):
    """What an operator's machine knows of the gateway."""

    operator: str
    gateway: Address
    key: str  # the gateway's public key
    identity: str  # the file with the operator's key


class Account:
    """The files of an operator. Methods raise ProcessError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()

    @property
    def known(self) -> Known:
        try:
            said = json.loads((self.directory / _FILE).read_text())
            gateway = address_of(said["gateway"], 0)
            assert gateway is not None
            return Known(said["operator"], gateway, said["key"], said["identity"])
        except (OSError, ValueError, KeyError, AssertionError):
            raise ProcessError(f"{self.directory} is of no operator: tproxy operator login") from None

    def begin(self, operator: str, gateway: Address, key: str, identity: str) -> None:
        """Write down where the gateway is; make a key where there is none."""
        identity = identity or str(self.directory / "key")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.path.exists(identity):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", operator, "-f", identity]
            self._run(argv, "")
        said = {"operator": operator, "gateway": str(gateway), "key": key, "identity": identity}
        self._write(_FILE, json.dumps(said))
        self._write("known_hosts", openssh.known_hosts(key, []))

    def login(self, token: str) -> None:
        """Get a certificate; ``token`` is for the first time."""
        known = self.known
        self._write("certificate.pub", self._gateway(known, "join", f"login {known.operator}", f"{token}\n"))
        self.refresh()

    def nodes(self) -> list[dict[str, Any]]:
        """Return what the operator may know of nodes."""
        known = self.known
        user = f"operator:{known.operator}"
        found: list[dict[str, Any]] = json.loads(self._gateway(known, user, "nodes"))
        return found

    def refresh(self) -> str:
        """Write the hosts that are known; return the configuration of ssh(1)."""
        known, nodes = self.known, self.nodes()
        self._write("known_hosts", openssh.known_hosts(known.key, nodes))
        text = openssh.operator_config(
            known.operator, str(self.directory), known.identity, known.gateway, nodes
        )
        self._write("config", text)
        return text

    def config(self) -> str:
        """Return the configuration of ssh(1) for the nodes that there are now."""
        return self.refresh()

    def certificate_until(self) -> str:
        """Return until when the certificate is valid, as ssh-keygen(1) says it."""
        said = self._run(["ssh-keygen", "-L", "-f", str(self.directory / "certificate.pub")], "")
        return next((line.split()[-1] for line in said.splitlines() if "Valid:" in line), "?")

    def _gateway(self, known: Known, user: str, command: str, text: str = "") -> str:
        argv = openssh.gateway_options(str(self.directory), known.identity, known.gateway)
        if user != "join":
            argv += ["-o", f"CertificateFile={self.directory}/certificate.pub"]
        return self._run([*argv, "-l", user, known.gateway.host, *command.split()], text)

    def _run(self, argv: list[str], text: str) -> str:
        try:
            done = subprocess.run(
                argv, check=False, input=text, capture_output=True, text=True, timeout=_PATIENCE
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ProcessError(f"{argv[0]}: {error}") from None
        if done.returncode:
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise TproxyError(said[-1] if said else f"{argv[0]} ended with {done.returncode}")
        return done.stdout

    def _write(self, name: str, text: str) -> None:
        new = self.directory / f".{name}.new"
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
            new.rename(self.directory / name)
        except OSError as error:
            raise ProcessError(f"cannot write {self.directory / name}: {error.strerror}") from None
