"""A real etcd on a host of its own, which is also the operators', and hosts that reach it by cables."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.fleet.hosts import FleetHost, Json, service
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor

DATA = "/run/etcd"
ETCDCTL = ("env", "ETCDCTL_API=3", "etcdctl", "--endpoints", "http://127.0.0.1:2379")
# As in production, but for the cost of a log-in, which is 58 ms by default.
OPTIONS = (
    *("--listen-client-urls", "http://0.0.0.0:2379", "--advertise-client-urls", "http://127.0.0.1:2379"),
    *("--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "error", "--bcrypt-cost", "4"),
)


class Site:
    """The store, its policy, and the hosts node1 and node2, which follow it."""

    def __init__(self, store: Hypervisor, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.policy = folder / "fleet.yaml"
        self.nodes: dict[str, FleetHost] = {}
        self._etcd: subprocess.Popen[str] | None = None
        store.run("mount", "-t", "tmpfs", "tmpfs", "/var/lib")
        self.start_etcd()

    def start_etcd(self, data: str = DATA) -> None:
        """Start etcd, and return when it answers."""
        self._etcd = self.store.popen(
            "etcd", "--data-dir", data, *OPTIONS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in eventually():
            if self.store.run("curl", "-fs", "http://127.0.0.1:2379/health", check=False).returncode == 0:
                return

    def stop_etcd(self) -> None:
        assert self._etcd is not None
        self._etcd.kill()
        self._etcd.wait()

    def pause_etcd(self, number: signal.Signals) -> None:
        """Let etcd stand still, or go on."""
        pid = self.store.run("pgrep", "-x", "etcd").stdout.split()[0]
        self.store.run("kill", f"-{number.value}", pid)
        if number == signal.SIGCONT and self._etcd is not None:
            self._etcd.send_signal(number)  # nsenter(1) stops when its child does

    def etcdctl(self, *arguments: str, user: str = "root", check: bool = True) -> str:
        account = ("--user", f"{user}:{self.password(user)}") if self.has(user) else ()
        return self.store.run(*ETCDCTL, *account, *arguments, check=check).stdout

    def refused(self, *arguments: str, user: str) -> str:
        """What etcdctl says when it is refused."""
        account = ("--user", f"{user}:{self.password(user)}")
        done = self.store.run(*ETCDCTL, *account, *arguments, check=False)
        assert done.returncode
        return done.stderr

    def has(self, user: str) -> bool:
        return (self.folder / f"credentials/{user}.json").exists()

    def password(self, user: str) -> str:
        password: str = json.loads((self.folder / f"credentials/{user}.json").read_text())["password"]
        return password

    def write(self, *entries: str, groups: str = "") -> None:
        """Write the policy: both nodes have these entries."""
        lines = "".join(f"  {each}\n" for each in entries)
        self.policy.write_text(
            "store: etcd://127.0.0.1:2379\n"
            "key: signing.key\n"
            "credentials: credentials/operator.json\n"
            "zones: [example.com]\n"
            "groups:\n"
            "- name: all\n"
            "  hosts: [node1, node2]\n"
            f"  networks: [blue]\n{lines}{groups}"
        )

    def fleet(self, command: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        options = ("--policy", str(self.policy))
        return self.store.tproxy("fleet", command, *arguments, *options, check=check)

    def apply(self, *entries: str) -> None:
        """Have both nodes get these entries; return when they have them in force."""
        self.write(*entries)
        self.fleet("apply", "--wait", "100s")

    def follow(self, name: str) -> None:
        node = self.nodes[name]
        address = node.host.run("ip", "-br", "-4", "address", "show", f"to-{name}").stdout.split()[2]
        gateway = address.rpartition(".")[0] + ".1"
        node.follow(
            f"etcd://{gateway}:2379",
            self.folder / "signing.key.pub",
            *("--credentials", str(self.folder / f"credentials/host-{name}.json"), "--list-again", "2"),
        )

    def receipt(self, host: str) -> Json:
        text = self.etcdctl("get", "--print-value-only", f"/tproxy/receipts/{host}")
        found: Json = json.loads(text)
        return found

    def serial(self, host: str) -> int:
        """The serial that a host has, as it says itself."""
        serial: int = self.nodes[host].held_receipt()["document"]["serial"]
        return serial

    def watchers(self) -> int:
        """How many watches etcd has."""
        metrics = self.store.run("curl", "-fs", "http://127.0.0.1:2379/metrics").stdout
        (line,) = (
            each for each in metrics.splitlines() if each.startswith("etcd_debugging_mvcc_watcher_total ")
        )
        return int(float(line.split()[1]))


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    """Build the site; both nodes follow, and have service port 5030 from the store, and 5040 of their own."""
    with ExitStack() as stack:
        made = Site(stack.enter_context(Hypervisor()), folder)
        made.write(f"tproxy:\n  {service(5030, 'one')}")
        made.fleet("init")
        for number, name in enumerate(("node1", "node2")):
            host = stack.enter_context(Hypervisor())
            node = FleetHost(host, name, f"tproxy:\n{service(5040, 'three')}\n")
            made.nodes[name] = node
            made.store.add_cable(host, f"to-{name}")
            made.store.ip(f"address add 10.88.{number}.1/30 dev to-{name}")
            host.ip(f"address add 10.88.{number}.2/30 dev to-{name}")
            node.hook()
            made.follow(name)
        made.fleet("apply", "--wait", "100s")
        yield made
