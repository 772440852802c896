"""A host with one bridge that is up, one guest on it, and endpoints; its map is then changed by hand."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from tests.netns.conftest import ENDPOINTS
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Guest, Hypervisor

ENDPOINT = "10.11.12.13"
ECHO = 7  # the service port of ``add_echo``


class OneBridge:
    """Bridge br0. Port 5030 leads to an endpoint that answers ``one``; one at port 8081 answers ``two``."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        host.add_bridge("br0")
        self.guest: Guest = host.add_guest("guest", "br0")
        host.add_endpoint(ENDPOINT, 8080, "one")
        host.add_endpoint(ENDPOINT, 8081, "two")
        self.config = host.write(
            "/run/tproxy.yaml",
            f"tproxy: [{{service_port: 5030, remote_addr: {ENDPOINT}, remote_port: 8080}}]\n",
        )
        host.tproxy("hook", "up", "--bridge", "br0", "--config", self.config)

    def add_echo(self) -> None:
        """Add service port ECHO, which leads to an endpoint that echoes."""
        self.host.add_endpoint(ENDPOINT, 9000, program=(sys.executable, str(ENDPOINTS), "echo"))
        self.nft(self.element("add", ECHO, 9000))
        self.host.tproxy("reload")

    def add_bridge(self, bridge: str) -> None:
        """Add another bridge, with the same configuration."""
        self.host.add_bridge(bridge)
        self.host.tproxy("hook", "up", "--bridge", bridge, "--config", self.config)

    def nft(self, *commands: str) -> None:
        self.host.run("nft", "; ".join(commands))

    def element(self, verb: str, port: int, remote: int = 8080) -> str:
        return f"{verb} element ip one_tproxy ep_br0 {{ {port} : {ENDPOINT} . {remote} }}"

    def ask(self, port: int = 5030) -> str:
        return self.guest.get(SERVICE_ADDRESS, port)

    def pids(self) -> dict[str, int]:
        """The processes that ``tproxy status`` lists, by title."""
        lines = self.host.tproxy("status").stdout.splitlines()
        return {title: int(pid) for title, pid in (line.split(": ") for line in lines)}

    def status(self) -> dict[str, Any]:
        """What ``tproxy status`` says of the daemon."""
        found: dict[str, Any] = json.loads(self.host.tproxy("status", "--json").stdout)["daemon"]
        return found

    def titles(self) -> list[str]:
        """The titles of all processes of tproxy, the spawner and draining daemons included."""
        lines = self.host.run("ps", "-eo", "args").stdout.splitlines()
        return [each for each in lines if each.startswith(("one_tproxy", "tproxy-"))]

    def listeners(self) -> dict[str, str]:
        """The inodes of the listening sockets by port: another inode is another socket."""
        lines = self.host.run("ss", "-Hltne", netns="one_tproxy_br0").stdout.splitlines()
        return {line.split()[3].rpartition(":")[2]: str(re.search(r"ino:(\d+)", line)) for line in lines}

    def log(self) -> str:
        return self.host.path("/var/log/one_tproxy.log").read_text()

    def await_in_log(self, text: str, times: int = 1) -> None:
        for _ in eventually():
            if self.log().count(text) >= times:
                return
