"""A host follows a directory: what it takes, what it refuses, and what goes on without the store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.hosts import FILE, FleetHost, Operator, await_receipt, service, verdict
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    return Operator(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="module")
def node(real_kernel: None, operator: Operator) -> Iterator[FleetHost]:
    """A host that follows, with a document that is applied."""
    with Hypervisor() as host:
        made = FleetHost(host, "node1", f"tproxy:\n{service(5040, 'three')}\n")
        made.hook()
        made.follow(operator.url, operator.trusted)
        operator.issue("node1", 1, "tproxy:", service(5030, "one"))
        made.await_answer(5030, "one")
        yield made


class Serial:
    """The serials that tests give to documents, one after the other."""

    last = 1

    @classmethod
    def next(cls) -> int:
        cls.last += 1
        return cls.last


def issue(operator: Operator, *lines: str) -> str:
    return operator.issue("node1", Serial.next(), *lines)


def test_another_document_is_applied_and_the_receipt_says_so(node: FleetHost, operator: Operator) -> None:
    issue(operator, "tproxy:", service(5030, "two"))
    node.await_answer(5030, "two")
    assert node.ask(5040) == "three", "the host's own file goes on to count"
    found = await_receipt(
        lambda: operator.receipt("node1"), lambda it: it["document"]["serial"] == Serial.last
    )
    assert (verdict(found), found["document"]["state"]) == ("accepted", "applied")
    assert found["errors"] == found["refusals"] == []
    assert found["offered"]["revision"] > 0
    assert found["counters"]["connections"] == 0
    assert abs(found["time"] - time.time()) < 3600


@pytest.mark.parametrize(
    "fault", ["unsigned", "foreign", "older", "changed", "of another key", "same serial"]
)
def test_a_document_that_is_not_the_next_one_of_this_host_is_refused(
    node: FleetHost, operator: Operator, tmp_path: Path, fault: str
) -> None:
    lines = ["tproxy:", service(5030, "one")]
    issue(operator, *lines)
    node.await_answer(5030, "one")
    other = ["tproxy:", service(5030, "three")]
    serial = Serial.next()
    good = operator.seal("node1", serial, *other)
    text, why = {
        "unsigned": (good.partition("\n")[2], "it is not signed"),
        "foreign": (operator.seal("node2", serial, *other), "it is the document of the host 'node2'"),
        "older": (operator.seal("node1", 1, *other), "restored from a backup"),
        "changed": (good.replace("8083", "8082"), "its signature is wrong"),
        "of another key": (Operator(tmp_path).seal("node1", serial, *other), "which is not trusted here"),
        "same serial": (operator.seal("node1", serial - 1, *other), "another document with the serial"),
    }[fault]
    operator.put("node1", text)
    found = await_receipt(lambda: operator.receipt("node1"), lambda it: why in it["offered"]["why"])
    assert verdict(found) == ("older" if fault == "older" else "refused")
    assert found["document"]["serial"] == serial - 1
    assert node.ask(5030) == "one"
    operator.issue("node1", serial, *other)
    node.await_answer(5030, "three")


def test_a_wrong_document_changes_nothing_and_the_receipt_names_each_fault(
    node: FleetHost, operator: Operator
) -> None:
    issue(operator, "tproxy:", service(5030, "one"))
    node.await_answer(5030, "one")
    issue(
        operator,
        "tproxy:",
        service(5030, "two"),
        "- {service_port: 99999, remote_addr: 10.11.12.13, remote_port: 80}",
        "- {service_port: 81, remote_port: 80}",
    )
    found = await_receipt(lambda: operator.receipt("node1"), lambda it: len(it["errors"]) == 2)
    assert verdict(found) == "refused"
    assert [each["line"] for each in found["errors"]] == [6, 7]
    assert "service_port '99999' is not a port" in found["errors"][0]["text"]
    assert "remote_addr is missing" in found["errors"][1]["text"]
    assert node.ask(5030) == "one"


def test_a_missing_document_means_keep_and_an_empty_one_takes_away(
    node: FleetHost, operator: Operator
) -> None:
    issue(operator, "tproxy:", service(5030, "one"))
    node.await_answer(5030, "one")
    (operator.store / "documents/node1.yaml").unlink()
    found = await_receipt(lambda: operator.receipt("node1"), lambda it: verdict(it) == "missing")
    assert "what is here stays" in found["offered"]["why"]
    assert node.ask(5030) == "one"
    issue(operator, "entries: []")
    node.await_gone(5030)
    assert node.ask(5040) == "three"


def test_the_hosts_own_file_wins_and_the_receipt_names_the_entry(node: FleetHost, operator: Operator) -> None:
    issue(operator, "tproxy:", service(5040, "one"), service(5031, "two"))
    node.await_answer(5031, "two")
    assert node.ask(5040) == "three"
    found = await_receipt(
        lambda: operator.receipt("node1"),
        lambda it: it["document"]["serial"] == Serial.last and it["errors"],
    )
    assert found["errors"][0]["line"] == 5
    assert "(line 2 of the file of this host) has it on this network" in found["errors"][0]["text"]


def test_without_the_store_hooks_and_a_new_follower_use_the_last_good_document(
    node: FleetHost, operator: Operator
) -> None:
    """As after a reboot: nothing is left but the disk."""
    issue(operator, "tproxy:", service(5030, "one"))
    node.await_answer(5030, "one")
    away = operator.store.with_name("away")
    operator.store.rename(away)
    try:
        node.stop()
        node.tproxy("hook", "down", "--bridge", "br0", "--force")
        node.hook()
        assert node.ask(5030) == "one"
        # A host whose bridge was built without the document gets it from the follower when that starts.
        kept = node.host.path("/var/lib/tproxy/fleet/document.yaml")
        kept.rename(kept.with_name("kept"))
        node.tproxy("refresh", "--config", FILE)
        assert 5030 not in node.ports()
        kept.with_name("kept").rename(kept)
        node.follow(operator.url, operator.trusted)
        node.await_answer(5030, "one")
    finally:
        away.rename(operator.store)
    issue(operator, "tproxy:", service(5030, "two"))
    node.await_answer(5030, "two")


def test_entries_end_with_the_time_of_their_document_without_the_store(
    node: FleetHost, operator: Operator
) -> None:
    end = int(time.time()) + 6
    text = operator.issue("node1", Serial.next(), "tproxy:", service(5030, "one"), not_after=end)
    away = operator.store.with_name("away")
    node.await_answer(5030, "one")
    operator.store.rename(away)
    try:
        node.await_gone(5030)
        assert time.time() > end
        assert node.ask(5040) == "three"
    finally:
        away.rename(operator.store)
    found = await_receipt(lambda: operator.receipt("node1"), lambda it: it["document"]["state"] == "expired")
    assert found["document"]["not_after"] == end
    operator.put("node1", text)  # nobody takes it anew either
    issue(operator, "tproxy:", service(5030, "two"))
    node.await_answer(5030, "two")


def test_a_host_without_a_file_of_its_own_has_what_its_document_says(
    real_kernel: None, operator: Operator
) -> None:
    with Hypervisor() as host:
        made = FleetHost(host, "bare")
        host.run("mount", "-t", "tmpfs", "tmpfs", "/etc/tproxy", check=False)
        operator.issue("bare", 1, "tproxy:", service(5030, "one"))
        done = host.tproxy(
            *("follow", operator.url, "--host", "bare", "--trusted", str(operator.trusted), "--once")
        )
        assert "document 1, accepted" in done.stdout
        host.tproxy("hook", "up", "--bridge", "br0", "--network", "blue")
        assert made.ask(5030) == "one"


def test_guests_are_in_the_receipt_with_network_mac_port_and_time(
    node: FleetHost, operator: Operator
) -> None:
    node.ask(5040)  # the bridge sees it
    mac = node.guest.run("ip", "-br", "link", "show", "eth0").stdout.split()[2]
    found = await_receipt(lambda: operator.receipt("node1"), lambda it: it["guests"])
    (guest,) = found["guests"]
    assert (guest["network"], guest["mac"]) == ("blue", mac)
    assert (guest["bridge"], guest["port"]) == ("br0", node.guest.port)
    assert 0 < guest["since"] <= time.time()
    since = guest["since"]
    node.follow(operator.url, operator.trusted)  # a new follower knows since when
    for _ in eventually():
        if node.held_receipt()["time"] > found["time"]:
            break
    assert node.held_receipt()["guests"][0]["since"] == since
    node.guest.ip("link set dev eth0 down")
    node.host.ip(f"link delete {node.guest.port}")
    await_receipt(lambda: operator.receipt("node1"), lambda it: not it["guests"])


def test_what_cannot_be_followed_is_one_line(node: FleetHost, operator: Operator, tmp_path: Path) -> None:
    bad = {
        "ftp://x": "names no store",
        "file://relative": "needs an absolute path",
        "etcd://u:p@host": "--credentials FILE",
    }
    for url, why in bad.items():
        done = node.tproxy("follow", url, "--trusted", str(operator.trusted), check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert why in done.stderr
    done = node.tproxy("follow", operator.url, "--trusted", str(tmp_path / "none"), check=False)
    assert done.stderr == f"tproxy: {tmp_path}/none: No such file or directory\n"
    done = node.tproxy("follow", operator.url, "--trusted", str(operator.trusted), check=False)
    assert "another tproxy follow runs" in done.stderr
