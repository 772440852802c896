"""A host with a guest, a gateway before it, and a configuration with names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.inward.names.name_servers import dig
from tproxy.lab.hypervisor import Hypervisor

FILE = "/run/tproxy.yaml"


class Site:
    """The guest 10.0.0.5 answers at port 80; nobody has 10.0.0.6. ``ns`` is the name server's address."""

    def __init__(self, host: Hypervisor, ns: str, text: str) -> None:
        self.host = host
        self.ns = ns
        self.said = ""  # by the first pass
        host.add_bridge("br0")
        host.add_guest("one", "br0", "10.0.0.5/24")
        self.guest = self.start_guest()
        self.configure(text)
        self.tproxy("hook", "up", "--bridge", "br0", "--network", "blue")
        self.tproxy("gateway", "up")

    def start_guest(self) -> subprocess.Popen[str]:
        answering = ("python3", "-m", "tproxy.lab.inside", "answer", "10.0.0.5", "80", "one")
        return self.host.serve(*answering, netns="one")

    def configure(self, text: str) -> None:
        self.host.write(FILE, text)

    def tproxy(
        self, *arguments: str, check: bool = True, state: str = "names"
    ) -> subprocess.CompletedProcess[str]:
        return self.host.tproxy(*arguments, check=check, env=_environment(state))

    def apply(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.tproxy("names", "apply", "--gateway", "gw1", *options, check=check)

    def keep(self, gateway: str) -> Keeping:
        """Start the service loop of a gateway."""
        log = self.host.path(f"/run/{gateway}.log")
        with log.open("a") as file:
            process = self.host.popen(
                *(sys.executable, "-m", "tproxy", "names", "run", "--gateway", gateway, "--every", "0.2"),
                env=_environment(f"names-{gateway}") | {"PYTHONUNBUFFERED": "1"},
                stdout=file,
                stderr=file,
            )
        return Keeping(process, log)

    def page(self, name: str) -> str:
        """What the gateway serves at port 80 for a name."""
        at = ("--resolve", f"{name}:80:127.0.0.1")
        return self.host.run("curl", "-sS", "--max-time", "60", *at, f"http://{name}/").stdout

    def dig(self, *question: str) -> list[str]:
        return dig(self.host, self.ns, *question)


class Keeping:
    """A service loop that runs, and what it said."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def said(self) -> str:
        return self._log.read_text()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def _environment(state: str) -> dict[str, str]:
    return {"TPROXY_CONFIG": FILE, "TPROXY_NAMES_STATE": f"/run/{state}"}
