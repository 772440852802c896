"""Hosts of a fleet: stand-in hypervisors with a bridge and a guest, which follow a store."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.fleet import document, keys
from tproxy.lab.hypervisor import Guest, Hypervisor

FILE = "/run/tproxy.yaml"  # the host's own configuration
HELD = "/var/lib/tproxy/fleet"
ENDPOINT = "10.11.12.13"

Json = dict[str, Any]


def service(port: int, body: str) -> str:
    """An entry that leads a service port to the endpoint that answers with this body."""
    return f"- {{service_port: {port}, remote_addr: {ENDPOINT}, remote_port: {PORTS[body]}}}"


PORTS = {"one": 8081, "two": 8082, "three": 8083}


class Operator:
    """Somebody who has the key, and writes documents into a directory."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        (self.store / "documents").mkdir(parents=True)
        self.key = keys.create(folder / "signing.key", "test")
        self.trusted = folder / "signing.key.pub"
        self.url = f"file://{self.store}"

    def seal(self, host: str, serial: int, *lines: str, not_after: int = 0) -> str:
        ends = [f"not_after: '{stamp(not_after)}'"] if not_after else []
        body = "\n".join([f"host: {host}", f"serial: {serial}", *ends, *lines]) + "\n"
        return document.seal(body, not_after, self.key)

    def put(self, host: str, text: str) -> None:
        path = self.store / "documents" / f"{host}.yaml"
        beside = path.with_name(".new")
        beside.write_text(text)
        beside.rename(path)

    def issue(self, host: str, serial: int, *lines: str, not_after: int = 0) -> str:
        text = self.seal(host, serial, *lines, not_after=not_after)
        self.put(host, text)
        return text

    def receipt(self, host: str) -> Json:
        found: Json = json.loads((self.store / "receipts" / f"{host}.json").read_text())
        return found


def stamp(seconds: int) -> str:
    from datetime import datetime, timezone

    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class FleetHost:
    """A host with bridge br0 of the network blue, a guest on it, and endpoints that answer by their names."""

    def __init__(self, host: Hypervisor, name: str, own: str = "tproxy: []\n") -> None:
        self.host, self.name = host, name
        # /var/lib is this machine's otherwise.
        host.run("mount", "-t", "tmpfs", "tmpfs", "/var/lib")
        host.write(FILE, own)
        for body, port in PORTS.items():
            host.add_endpoint(ENDPOINT, port, body)
        host.add_bridge("br0")
        self.guest: Guest = host.add_guest("guest", "br0")
        self._follower: subprocess.Popen[str] | None = None

    def hook(self) -> None:
        self.tproxy("hook", "up", "--bridge", "br0", "--network", "blue", "--config", FILE)

    def tproxy(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.host.tproxy(*arguments, check=check)

    def follow(self, url: str, trusted: Path, *options: str) -> None:
        """Begin to follow; ends the follower before."""
        self.stop()
        self._follower = self.host.popen(
            *(sys.executable, "-m", "tproxy", "follow", url, "--host", self.name, "--config", FILE),
            *("--trusted", str(trusted), *options),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def stop(self) -> None:
        """End the follower, as a crash does."""
        if self._follower is not None:
            self._follower.kill()
            self._follower.wait()

    def ask(self, port: int) -> str:
        """What the guest gets at a service port. Raises ProcessError for nothing."""
        return self.guest.get(SERVICE_ADDRESS, port)

    def await_answer(self, port: int, wanted: str) -> None:
        """Wait until the guest gets this at a service port."""
        for _ in eventually():
            # A port without a service is silent, so each attempt is short; the next one may be in time.
            with suppress(ProcessError):
                if self.guest.get(SERVICE_ADDRESS, port, 3) == wanted:
                    return

    def ports(self) -> set[int]:
        """The service ports of the bridge, as the daemon serves them."""
        daemon = json.loads(self.tproxy("status", "--json").stdout)["daemon"]
        return {each["port"] for each in daemon["bridges"].get("br0", {}).get("services", ())}

    def await_gone(self, port: int) -> None:
        """Wait until a service port has no service any more."""
        for _ in eventually():
            if port not in self.ports():
                return

    def held_receipt(self) -> Json:
        """The copy of the receipt on the host."""
        found: Json = json.loads(self.host.path(f"{HELD}/receipt.json").read_text())
        return found


def await_receipt(read: Callable[[], Json], fits: Callable[[Json], object]) -> Json:
    """Return the first receipt that fits."""
    for _ in eventually():
        try:
            found = read()
            if fits(found):
                return found
        except (OSError, ValueError, LookupError, TypeError):
            continue
    raise AssertionError("eventually has failed the test")


def verdict(found: Mapping[str, Any]) -> str:
    """The verdict of a receipt about the last offer."""
    said: str = found["offered"]["verdict"]
    return said
