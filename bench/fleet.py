"""How a fleet scales: thousands of simulated hosts follow a real etcd, with real documents and receipts.

    python -m bench.fleet --hosts 1000      (make bench-fleet)

Each simulated host is a ``fleet.follower.Follower`` with a user, a token, a watch and files of its own; only
what it does to the kernel is left out. Some processes run all of them, on the machine on which etcd runs. So
figures are an upper bound: real hosts do their own part side by side.

One change goes to all hosts, and the time is taken until the operator has seen each receipt. Then etcd is
killed and started again, so that all hosts come back at once, while somebody else asks it something all the
time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import aiohttp
import psutil
from tabulate import tabulate

from bench.simulated_hosts import entries, name
from tproxy.fleet import keys, roles, rollout
from tproxy.fleet.issuing import Change
from tproxy.fleet.stores.base import StoreError
from tproxy.fleet.stores.etcd import EtcdStore
from tproxy.fleet.stores.etcd_client import Account
from tproxy.kernel.limits import raise_descriptor_limit


class Etcd:
    """A real etcd with a directory and ports of its own."""

    def __init__(self, folder: Path, cost: int) -> None:
        self._folder, self._cost = folder, cost
        self._ports = [free_port(), free_port()]
        self.url = f"http://127.0.0.1:{self._ports[0]}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        peer = f"http://127.0.0.1:{self._ports[1]}"
        self.process = subprocess.Popen(
            [
                *("etcd", "--data-dir", str(self._folder / "etcd"), "--log-level", "error"),
                *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
                *("--listen-peer-urls", peer, "--bcrypt-cost", str(self._cost)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def set_up(store: EtcdStore, hosts: int, folder: Path) -> dict[str, str]:
    """Make users and roles; return the passwords. Faster than ``roles.set_up``: many at once."""
    passwords = {name(number): f"password-{number}" for number in range(hosts)}
    wanted = roles.permissions(store, passwords)
    room = asyncio.Semaphore(64)

    async def add(user: str, password: str) -> None:
        async with room:
            await store.client.ask("/v3/auth/role/add", {"name": user})
            for each in wanted.get(user, ()):
                await store.client.ask("/v3/auth/role/grant", {"name": user, "perm": each.as_json()})
            await store.client.ask("/v3/auth/user/add", {"name": user, "password": password})
            await store.client.ask("/v3/auth/user/grant", {"user": user, "role": user})

    users = {roles.HOST + host: password for host, password in passwords.items()}
    await asyncio.gather(*(add(*each) for each in ({roles.ROOT: "root"} | users).items()))
    await store.client.ask("/v3/auth/enable", {})
    return passwords


async def watchers(url: str) -> int:
    """How many watches etcd has; 0 while it does not answer."""
    with suppress(aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError):
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{url}/metrics") as answer:
            for line in (await answer.text()).splitlines():
                if line.startswith("etcd_debugging_mvcc_watcher_total "):
                    return int(float(line.split()[1]))
    return 0


async def probe(url: str, seen: list[float], failed: list[float]) -> None:
    """Ask for one key all the time, as an operator would, and note how long that took."""
    store = EtcdStore(url, Account("root", "root"))
    while True:
        began = time.monotonic()
        try:
            await store.document(name(0))
            seen.append(time.monotonic() - began)
        except StoreError:
            failed.append(time.monotonic() - began)
        await asyncio.sleep(0.05)


async def change(store: EtcdStore, hosts: int, version: int, key: keys.SecretKey) -> list[float]:
    """Give all hosts another document; return after how many seconds each receipt was seen."""
    every = [Change(name(n), None, entries(version, n), 0, version, 0) for n in range(hosts)]
    times: list[float] = []
    began = time.monotonic()

    def told(host: str, done: int, total: int) -> None:
        times.append(time.monotonic() - began)

    await rollout.run(store, [every], key, "", pause=0, patience=600, told=told)
    return times


async def measure(etcd: Etcd, hosts: int, processes: int, folder: Path, again: float) -> list[list[str]]:
    key = keys.create(folder / "key", "bench")
    store = EtcdStore(etcd.url)
    for _ in range(200):
        with suppress(StoreError):
            await store.document("x")
            break
        await asyncio.sleep(0.1)
    began = time.monotonic()
    passwords = await set_up(store, hosts, folder)
    await store.close()
    say(f"{hosts} users and roles in {time.monotonic() - began:.1f} s")
    (folder / "passwords").write_text(json.dumps(passwords))
    store = EtcdStore(etcd.url, Account("root", "root"))
    rows = []
    with simulators(hosts, processes, etcd.url, folder, again):
        began = time.monotonic()
        while await watchers(etcd.url) < hosts:
            await asyncio.sleep(0.2)
        rows.append(
            [f"{hosts} hosts log in and watch, one after the other", f"{time.monotonic() - began:.1f} s"]
        )
        await change(store, hosts, 1, key)  # the first documents
        for version in (2, 3, 4):
            before = processor_time(etcd)
            times = sorted(await change(store, hosts, version, key))
            used = [now - then for now, then in zip(processor_time(etcd), before, strict=True)]
            p50, p99 = statistics.median(times), times[int(len(times) * 0.99) - 1]
            text = f"p50 {p50:.2f} s, p99 {p99:.2f} s, all {times[-1]:.2f} s; processor time: etcd "
            text += f"{used[0]:.2f} s, hosts {used[1]:.2f} s, operator {used[2]:.2f} s"
            rows.append([f"one change on {hosts} hosts, with receipts", text])
            say(f"{rows[-1][0]}: {text}")
        seen: list[float] = []
        failed: list[float] = []
        etcd.stop()
        etcd.start()
        began = time.monotonic()
        probing = asyncio.ensure_future(probe(etcd.url, seen, failed))
        while await watchers(etcd.url) < hosts:
            await asyncio.sleep(0.2)
        took = time.monotonic() - began
        probing.cancel()
        seen.sort()
        p99 = seen[int(len(seen) * 0.99) - 1] if seen else float("nan")
        rows.append([f"etcd was killed: all {hosts} hosts log in and watch again", f"{took:.1f} s"])
        rows.append(
            [
                "meanwhile, somebody else's questions to etcd",
                f"{len(seen)} answered, p99 {p99:.2f} s; {len(failed)} failed (etcd starting)",
            ]
        )
        times = sorted(await change(store, hosts, 5, key))
        rows.append(["one change after that", f"p99 {times[int(len(times) * 0.99) - 1]:.2f} s"])
    await store.close()
    return rows


def processor_time(etcd: Etcd) -> list[float]:
    """Seconds of processor time that etcd, the simulated hosts and the operator (this process) have used."""
    assert etcd.process is not None
    children = [each for each in psutil.Process().children() if each.pid != etcd.process.pid]
    ours = [[psutil.Process(etcd.process.pid)], children, [psutil.Process()]]
    return [sum(sum(each.cpu_times()[:2]) for each in some) for some in ours]


@contextmanager
def simulators(hosts: int, processes: int, url: str, folder: Path, again: float) -> Iterator[None]:
    share = -(-hosts // processes)
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "bench.simulated_hosts", str(first)),
                *(str(min(first + share, hosts)), url, str(folder), str(again)),
            ]
        )
        for first in range(0, hosts, share)
    ]
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()


async def log_ins(etcd: Etcd, count: int) -> float:
    """Return how many log-ins etcd does in a second, with many at once."""
    store = EtcdStore(etcd.url)
    for _ in range(200):
        with suppress(StoreError):
            await store.document("x")
            break
        await asyncio.sleep(0.1)
    for command in (
        ("role/add", {"name": "root"}),
        ("user/add", {"name": "root", "password": "root"}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("enable", {}),
    ):
        await store.client.ask(f"/v3/auth/{command[0]}", command[1])
    body = {"name": "root", "password": "root"}
    began = time.monotonic()
    await asyncio.gather(*(store.client._ask("/v3/auth/authenticate", body, "") for _ in range(count)))
    took = time.monotonic() - began
    await store.close()
    return count / took


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, nargs="*", default=[1000, 10000])
    parser.add_argument("--processes", type=int, default=2, help="that simulate hosts")
    parser.add_argument("--bcrypt-cost", type=int, default=4)
    parser.add_argument("--list-again", type=float, default=600.0, help="seconds")
    options = parser.parse_args()
    if shutil.which("etcd") is None:
        sys.exit("etcd is not installed: .ci/setup inward")
    raise_descriptor_limit()
    rows: list[list[str]] = []
    for cost in (10, options.bcrypt_cost):
        with running(cost) as (etcd, _):
            rate = asyncio.run(log_ins(etcd, 24))
            rows.append([f"log-ins at bcrypt cost {cost}", f"{rate:.0f} in a second"])
            say(f"{rows[-1][0]}: {rows[-1][1]}")
    for hosts in options.hosts:
        with running(options.bcrypt_cost) as (etcd, place):
            rows += asyncio.run(measure(etcd, hosts, options.processes, place, options.list_again))
    cores = len(os.sched_getaffinity(0))
    print(tabulate(rows, ["measured", f"on {cores} cores, with etcd and all hosts"], tablefmt="github"))


@contextmanager
def running(cost: int) -> Iterator[tuple[Etcd, Path]]:
    """A started etcd, and a folder in memory: real hosts have a disk each."""
    with tempfile.TemporaryDirectory(prefix="tproxy-bench-fleet.", dir="/dev/shm") as made:
        etcd = Etcd(Path(made), cost)
        etcd.start()
        try:
            yield etcd, Path(made)
        finally:
            etcd.stop()


if __name__ == "__main__":
    main()
