"""Two hosts that follow a real etcd: what one policy does to both, and whatever becomes of the store."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.fleet.hosts import await_receipt, service, verdict
from tests.fleet.site import DATA, Site, site
from tests.netns.waiting import await_equal, eventually
from tproxy.fleet.stores.base import Compacted
from tproxy.fleet.stores.etcd import EtcdStore
from tproxy.fleet.stores.etcd_client import Account
from tproxy.lab import asking


@pytest.fixture(scope="module")
def fleet(real_kernel: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("fleet")) as made:
        yield made


def both_answer(fleet: Site, port: int, wanted: str) -> None:
    for node in fleet.nodes.values():
        node.await_answer(port, wanted)


def entries(body: str) -> str:
    return f"tproxy:\n  {service(5030, body)}"


def test_one_change_of_the_policy_is_applied_on_both_hosts_with_receipts(fleet: Site) -> None:
    fleet.apply(entries("one"))
    fleet.write(entries("two"))
    shown = fleet.fleet("diff").stdout
    assert shown.startswith("node1, node2:\n")
    assert "+- {service_port: 5030, remote_addr: 10.11.12.13, remote_port: 8082}" in shown
    done = fleet.fleet("apply", "--wait", "100s", "--message", "ticket 7")
    assert done.stdout == "2 of 2 hosts have their new document in force\n"
    for node in fleet.nodes.values():
        assert (node.ask(5030), node.ask(5040)) == ("two", "three")
    assert fleet.fleet("diff").stdout == "0 of 2 hosts would get another document\n"
    rows = json.loads(fleet.fleet("status", "--json").stdout)["hosts"]
    assert [(row["host"], row["state"], row["problem"]) for row in rows] == [
        ("node1", "applied", ""),
        ("node2", "applied", ""),
    ]
    assert rows[0]["serial"] == rows[0]["issued"]


def test_a_rollback_brings_back_what_was_before_under_a_new_serial(fleet: Site) -> None:
    fleet.apply(entries("one"))
    fleet.apply(entries("two"))
    before = fleet.serial("node1")
    fleet.fleet("rollback", "--wait", "100s", "--canary", "1", "--then", "50%")
    both_answer(fleet, 5030, "one")
    assert fleet.serial("node1") == before + 1
    newest = json.loads(fleet.fleet("history", "node1", "--json").stdout)["documents"][0]
    assert (newest["serial"], newest["message"]) == (before + 1, "back to the one before")


def test_stages_stop_at_the_first_host_that_reports_an_error(fleet: Site) -> None:
    """The second group's entry is taken by the file of that host, which its receipt names."""
    fleet.apply(entries("one"))
    second = f"- name: second\n  hosts: [node1]\n  tproxy:\n  {service(5040, 'one')}\n"
    fleet.write(entries("two"), groups=second)
    planned = fleet.fleet("apply", "--canary", "1", "--dry-run").stdout
    assert [line.split(" (")[0] for line in planned.splitlines()] == ["stage 1: node1", "stage 2: node2"]
    done = fleet.fleet("apply", "--canary", "1", "--pause", "0.1s", "--wait", "100s", check=False)
    assert done.returncode == 1
    assert done.stdout == "0 of 2 hosts have their new document in force\n"
    (line,) = (each for each in done.stderr.splitlines() if "stopped" in each)
    assert line.startswith("tproxy: stopped: node1: /var/lib/tproxy/fleet/document.yaml:7: entry 2: ")
    assert fleet.nodes["node2"].ask(5030) == "one"


def test_a_host_can_read_its_document_and_write_its_receipt_and_nothing_else(fleet: Site) -> None:
    own = "host-node1"
    assert "node1" in fleet.etcdctl("get", "/tproxy/documents/node1", user=own)
    denied = (
        ("put", "/tproxy/documents/node1", "x"),
        ("get", "/tproxy/documents/node2"),
        ("put", "/tproxy/receipts/node2", "x"),
        ("get", "/tproxy/receipts/node2"),
        ("get", "--prefix", "/"),
    )
    for command in denied:
        assert "permission denied" in fleet.refused(*command, user=own)
    code = fleet.store.run(
        *("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-d", '{"key": "Lw=="}'),
        "http://127.0.0.1:2379/v3/kv/range",
    ).stdout
    assert code != "200", "nobody gets in without a log-in"


def test_a_second_init_keeps_passwords_and_prune_deletes_hosts_that_are_gone(fleet: Site) -> None:
    fleet.write(entries("one"), groups="- name: more\n  hosts: [node3]\n")
    done = fleet.fleet("init")
    assert [line for line in done.stdout.splitlines() if line.startswith("user")] == [
        f"user host-node3: {fleet.folder}/credentials/host-node3.json"
    ]
    fleet.write(entries("one"))
    assert "user host-node3: deleted" in fleet.fleet("init", "--prune").stdout
    fleet.apply(entries("three"))  # the roles changed, which makes tokens stale


def test_hosts_go_on_while_the_store_is_gone_and_follow_again_with_one_watch_each(fleet: Site) -> None:
    fleet.apply(entries("one"))
    fleet.stop_etcd()
    try:
        both_answer(fleet, 5030, "one")
        node = fleet.nodes["node1"]
        node.tproxy("hook", "down", "--bridge", "br0", "--force")
        node.hook()
        assert node.ask(5030) == "one"
    finally:
        fleet.start_etcd()
    fleet.apply(entries("two"))
    both_answer(fleet, 5030, "two")
    await_equal(fleet.watchers, 2)


def test_a_watch_from_a_revision_that_is_compacted_says_so_and_hosts_list_anew(fleet: Site) -> None:
    fleet.apply(entries("one"))
    fleet.apply(entries("two"))
    status = json.loads(fleet.etcdctl("endpoint", "status", "-w", "json"))
    revision = status[0]["Status"]["header"]["revision"]
    fleet.etcdctl("compact", str(revision))

    async def watch() -> None:
        account = Account("root", fleet.password("root"))
        store = EtcdStore("etcd://127.0.0.1:2379", account)
        try:
            async with aclosing(store.watch_document("node1", 1)) as offers:
                await anext(offers)
        finally:
            await store.close()

    with asking.inside(Path(f"/proc/{fleet.store.pid}/ns/net")), pytest.raises(Compacted):
        asyncio.run(watch())
    fleet.apply(entries("one"))


def test_a_store_restored_from_an_older_backup_changes_nothing_and_hosts_say_so(fleet: Site) -> None:
    fleet.apply(entries("one"))
    fleet.etcdctl("snapshot", "save", "/run/backup")
    fleet.apply(entries("two"))
    newer = fleet.serial("node1")
    fleet.stop_etcd()
    fleet.store.run(
        *("env", "ETCDCTL_API=3", "etcdctl", "snapshot", "restore", "/run/backup"),
        *("--data-dir", f"{DATA}.restored"),
    )
    fleet.start_etcd(f"{DATA}.restored")
    found = await_receipt(lambda: fleet.receipt("node1"), lambda it: verdict(it) == "older")
    assert found["document"]["serial"] == newer
    assert "Was the store restored from a backup?" in found["offered"]["why"]
    both_answer(fleet, 5030, "two")
    await_receipt(lambda: fleet.receipt("node2"), lambda it: verdict(it) == "older")
    shown = json.loads(fleet.fleet("status", "--json", check=False).stdout)["hosts"]
    assert shown[0]["problem"].startswith("older: the store offers serial")
    fleet.apply(entries("three"))
    both_answer(fleet, 5030, "three")
    assert fleet.serial("node1") == newer + 1


def test_unsigned_documents_of_a_store_that_was_taken_over_are_refused(fleet: Site) -> None:
    fleet.apply(entries("one"))
    evil = "host: node1\nserial: 999999\ntproxy:\n" + service(5030, "two") + "\n"
    fleet.etcdctl("put", "/tproxy/documents/node1", evil)
    found = await_receipt(lambda: fleet.receipt("node1"), lambda it: "not signed" in it["offered"]["why"])
    assert verdict(found) == "refused"
    # So are documents that were meant for another host.
    text = fleet.etcdctl("get", "--print-value-only", "/tproxy/documents/node2")
    fleet.etcdctl("put", "/tproxy/documents/node1", text.removesuffix("\n"))
    await_receipt(lambda: fleet.receipt("node1"), lambda it: "host 'node2'" in it["offered"]["why"])
    assert fleet.nodes["node1"].ask(5030) == "one"
    fleet.apply(entries("two"))
    both_answer(fleet, 5030, "two")


def test_a_host_that_is_cut_off_goes_on_and_catches_up(fleet: Site) -> None:
    fleet.apply(entries("one"))
    node = fleet.nodes["node1"]
    node.host.ip("link set to-node1 down")
    try:
        fleet.write(entries("two"))
        done = fleet.fleet("apply", "--wait", "3s", check=False)
        assert "no receipt within 3 s from node1" in done.stderr
        assert node.ask(5030) == "one"
    finally:
        node.host.ip("link set to-node1 up")
    both_answer(fleet, 5030, "two")
    for _ in eventually():
        if fleet.fleet("status", check=False).returncode == 0:
            break


def test_a_store_that_stands_still_delays_news_alone(fleet: Site) -> None:
    fleet.apply(entries("one"))
    fleet.pause_etcd(signal.SIGSTOP)
    try:
        for node in fleet.nodes.values():
            node.hook()
            assert node.ask(5030) == "one"
    finally:
        fleet.pause_etcd(signal.SIGCONT)
    fleet.apply(entries("two"))
    both_answer(fleet, 5030, "two")


def test_routes_follow_a_guest_that_moves(fleet: Site) -> None:
    mac = "02:00:0a:00:00:05"
    node1, node2 = fleet.nodes.values()
    node1.guest.ip(f"link set dev eth0 address {mac}")
    node2.host.ip(f"link set dev {node2.guest.port} down")
    route = f"{{id: page, network: blue, guest_mac: '{mac}', port: 80, domain: page.example.com}}"
    fleet.apply(entries("one"), f"tproxy_routes:\n  - {route}")
    file = fleet.store.path("/run/places.json")
    follower = fleet.store.popen(
        *(sys.executable, "-m", "tproxy", "fleet", "places", "--follow"),
        *("--output", "/run/places.json", "--policy", str(fleet.policy)),
    )

    def host() -> str:
        found: str = json.loads(file.read_text())["routes"]["page"]["host"]
        return found

    node1.ask(5040)  # the bridge sees it
    await_equal(host, "node1")
    moved = node2.host.take_over(node1.guest, node1.host, "br0")
    moved.run(
        "ping", "-c", "1", "-W", "1", "10.0.0.99", check=False
    )  # as a guest that has moved announces itself
    await_equal(host, "node2")
    follower.kill()
    assert json.loads(file.read_text())["problems"] == []
