"""Repairs by a running watcher. test_repair.py goes through the repairs step by step."""

from __future__ import annotations

import random
import sys
import time

from tests.netns.waiting import await_equal, eventually
from tests.netns.watch.watched_host import CONFIG, ENDPOINT, Host
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.names import BridgeNames


def test_each_repair_is_one_line_in_the_log(host: Host) -> None:
    for bridge in ("br0", "hooked"):
        host.hypervisor.add_bridge(bridge)
    host.watch_with_clock()
    guest = host.hypervisor.add_guest("guest", "br0")
    other = host.hypervisor.add_guest("other", "hooked")
    host.hook("up", "--bridge", "hooked", "--network", "red", "--uplink", "far0")
    host.wait_up("br0")
    host.wait_served(guest)
    host.wait_served(other)
    before = host.ruleset()
    processes = host.pids()
    repaired = "bridge br0 was broken; repaired: "

    host.wait_until_watched("br0", "hooked")
    host.nft("flush ruleset")
    for bridge in ("br0", "hooked"):
        line = host.wait_for_line(f"bridge {bridge} was broken; repaired: ")
        assert line.endswith(f"load service map of {bridge}; load guards of {bridge}")
    await_equal(host.ruleset, before)
    assert host.pids() == processes

    host.nft("delete table bridge one_tproxy")
    assert "load guards" in host.wait_for_line(repaired, 2)
    host.wait_for_line("bridge hooked was broken; repaired: ", 2)
    await_equal(host.ruleset, before)

    host.nft("flush chain bridge one_tproxy ch_br0")
    host.wait_for_line(repaired, 3)
    await_equal(host.ruleset, before)
    # The daemon corrects these sets, too: just after a repair it may do so before the watcher.
    for command in ('delete element {} veths {{ "br0b" }}', "flush set {} guarded"):
        host.nft(command.format("bridge one_tproxy"))
        await_equal(host.ruleset, before)

    host.hypervisor.ip("link del br0b")
    host.wait_for_repair("br0", "create veth br0b")
    host.wait_served(guest)

    host.hypervisor.run("ip", "netns", "del", "one_tproxy_br0")
    host.wait_for_repair("br0", "create namespace one_tproxy_br0")
    host.wait_served(guest)

    host.hypervisor.run("sysctl", "-w", "net.ipv4.conf.all.arp_ignore=2", netns="one_tproxy_br0")
    host.wait_for_repair("br0", "arp_ignore=1")

    host.hypervisor.ip("link set br0b nomaster")
    host.wait_for_repair("br0", "make br0b a port of br0")
    host.wait_served(guest)
    host.pass_time(5)
    assert 7 <= host.log().count(repaired) <= 9
    assert 2 <= host.log().count("bridge hooked was broken; repaired: ") <= 3
    assert host.pids()["one_tproxy_hooked"] == processes["one_tproxy_hooked"]


def test_a_map_that_somebody_deletes_or_changes_stays_so(host: Host) -> None:
    for bridge in ("br0", "br1"):
        host.hypervisor.add_bridge(bridge)
        host.hypervisor.add_guest(f"guest-{bridge}", bridge)
    host.watch()
    host.wait_up("br0")
    host.wait_up("br1")
    host.wait_until_watched("br0", "br1")
    host.nft("add element ip one_tproxy ep_br1 { 99 : 10.0.0.1 . 99 }")
    host.nft("delete map ip one_tproxy ep_br0")
    host.hypervisor.ip("link set br0 mtu 1400")
    host.wait_until_watched("br1")  # and has remembered the changed map of br1
    assert not host.is_up("br0")
    # A flush brings back the map as it was changed.
    host.nft("flush ruleset")
    host.wait_for_line("bridge br1 was broken")
    assert "99 : 10.0.0.1 . 99" in host.nft("list map ip one_tproxy ep_br1")
    assert not host.is_up("br0")


def test_a_bridge_of_another_program_gets_back_its_map_and_its_veth_pair(host: Host) -> None:
    names = BridgeNames("drop0")
    host.hypervisor.add_bridge("drop0")
    guest = host.hypervisor.add_guest("guest", "drop0")
    watcher = host.watch_with_clock()
    host.hypervisor.ip(
        f"netns add {names.namespace}",
        f"link add {names.veth_bridge} type veth peer name {names.veth_namespace} netns {names.namespace}",
        f"link set {names.veth_bridge} master drop0 up",
    )
    host.hypervisor.ip(
        f"address add {SERVICE_ADDRESS}/32 dev {names.veth_namespace}",
        f"link set {names.veth_namespace} up",
        f"route add default dev {names.veth_namespace} scope link",
        netns=names.namespace,
    )
    host.nft("add table ip one_tproxy")
    host.nft("add map ip one_tproxy ep_drop0 { type inet_service : ipv4_addr . inet_service; }")
    host.nft(f"add element ip one_tproxy ep_drop0 {{ 5030 : {ENDPOINT} . 8080 }}")
    host.hypervisor.tproxy("start")
    host.wait_served(guest)
    before = host.ruleset()
    assert "bridge one_tproxy" not in before

    host.wait_until_watched("drop0")
    host.nft("flush ruleset")
    host.wait_for_line("bridge drop0 was broken; repaired: load service map of drop0")
    await_equal(host.ruleset, before)
    host.hypervisor.ip(f"link del {names.veth_bridge}")
    host.wait_for_line("bridge drop0 was broken; repaired: create veth drop0b")
    host.wait_served(guest)
    await_equal(host.ruleset, before)

    # When that program takes it down, in one go, it stays down.
    empty = "nft 'delete map ip one_tproxy ep_drop0; delete table ip one_tproxy'"
    gone = f"ip netns del {names.namespace}; ip link del {names.veth_bridge}"
    with host.paused(watcher):  # so that the watcher sees all of it at once
        host.hypervisor.run("sh", "-c", f"{empty}; {gone}")
    host.pass_time(5)
    assert host.log().count("was broken") == 2
    await_equal(host.ruleset, "")


def test_changes_whose_messages_were_lost_are_found(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    host.hypervisor.add_bridge("br1")
    watcher = host.watch()
    host.hypervisor.add_guest("guest", "br1")
    host.wait_up("br1")
    with host.paused(watcher):
        host.hypervisor.ip("link add storm type veth peer name far")
        for _ in range(4):
            host.hypervisor.ip(*(f"link set storm mtu {mtu}" for mtu in (1400, 1401) * 1000))
        host.hypervisor.add_guest("late", "br0")
        host.hypervisor.ip("link del br1b")
        # Columns: socket, protocol, port id, groups, read and write buffer, dump, locks, drops.
        lines = host.hypervisor.run("cat", "/proc/net/netlink").stdout.splitlines()[1:]
        sockets = [line.split() for line in lines]
        assert any(int(each[8]) for each in sockets if each[1] == "0" and each[3] == "00000001")
    host.wait_up("br0")
    host.wait_for_line("bridge br1 was broken; repaired: create veth br1b")


def test_after_any_mix_of_faults_and_hooks_every_bridge_is_in_order(host: Host) -> None:
    choose = random.Random(1)
    bridges = [f"br{number}" for number in range(2)]
    for bridge in bridges:
        host.hypervisor.add_bridge(bridge)
    guests = {bridge: host.hypervisor.add_guest(f"guest-{bridge}", bridge) for bridge in bridges}
    host.watch()
    for guest in guests.values():
        host.wait_served(guest)
    host.wait_until_watched(*bridges)
    hooks = []
    options = ("--network", "blue", "--uplink", "up0", "--config", CONFIG)
    for _ in range(15):
        bridge = choose.choice(bridges)
        port, namespace = guests[bridge].port, f"one_tproxy_{bridge}"
        deed = choose.choice(
            (
                "nft flush ruleset",
                "nft delete table bridge one_tproxy",
                "nft flush set bridge one_tproxy guarded",
                f"ip link del {bridge}b",
                f"ip link set {bridge}b nomaster",
                f"ip netns del {namespace}",
                f"ip netns exec {namespace} ip link del {bridge}a",
                f"ip netns exec {namespace} sysctl -w net.ipv4.conf.all.arp_ignore=2",
                f"ip link set {port} nomaster; ip link set {port} master {bridge}",
                "hook",
            )
        )
        if deed == "hook":
            command = [sys.executable, "-m", "tproxy", "hook", "up", "--bridge", bridge, *options]
            hooks.append(host.hypervisor.popen(*command))
        else:
            host.hypervisor.run("sh", "-c", deed, check=False)  # what it changes may be gone already
        time.sleep(choose.random() / 4)  # so that the watcher is at another point each time
    for guest in guests.values():
        host.wait_served(guest)
    for hook in hooks:
        hook.wait()
    for bridge in bridges:
        for _ in eventually():  # the watcher may not have finished
            planned = host.hypervisor.tproxy("hook", "up", "--bridge", bridge, *options, "--dry-run").stdout
            if not planned:
                break


def test_a_renamed_port_is_replaced(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    host.hook("up", "--bridge", "br0")
    for name in ("strange0", "strange1"):
        host.hypervisor.ip("link set br0b down", f"link set br0b name {name}", f"link set {name} up")
        if name == "strange0":
            host.hook("up", "--bridge", "br0")
            assert guest.get(SERVICE_ADDRESS, 5030) == "one"
            host.watch()
            host.wait_until_watched("br0")
    host.wait_for_repair("br0", "create veth br0b")
    host.wait_served(guest)
    assert "strange" not in host.hypervisor.run("ip", "link").stdout


def test_the_mtu_follows_that_of_the_guests_down_and_up_again(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    host.watch()
    host.wait_served(guest)
    mtu = host.hypervisor.path("/sys/class/net/br0/mtu")
    host.hypervisor.ip(
        "tuntap add dev tap0 mode tap", "link set tap0 mtu 1400", "link set tap0 master br0 up"
    )
    host.wait_for_repair("br0", "MTU 1400")
    assert mtu.read_text() == "1400\n"
    host.hypervisor.ip("link del tap0")
    host.wait_for_repair("br0", "MTU 1500")
    assert mtu.read_text() == "1500\n"
    host.wait_served(guest)


def test_a_map_of_another_type_is_named_once(host: Host) -> None:
    host.watch_with_clock()
    host.nft("add table ip one_tproxy")
    host.nft("add map ip one_tproxy ep_x0 { type inet_service : ipv4_addr; }")
    host.wait_for_line("map ep_x0 is not of type")
    host.pass_time(10)
    assert host.log().count("map ep_x0 is not of type") == 1


def test_a_low_soft_limit_of_descriptors_does_not_limit_the_number_of_bridges(host: Host) -> None:
    bridges = [f"br{number}" for number in range(5)]
    for bridge in bridges:
        host.hypervisor.add_bridge(bridge)
        host.hypervisor.add_guest(f"guest-{bridge}", bridge)
    host.watch("prlimit", "--nofile=64:4096")
    for bridge in bridges:
        host.wait_up(bridge)
    host.wait_until_watched(*bridges)
    for bridge in bridges:
        host.hypervisor.run("sysctl", "-w", "net.ipv4.conf.all.arp_ignore=2", netns=f"one_tproxy_{bridge}")
    for bridge in bridges:
        host.wait_for_repair(bridge, "arp_ignore=1")
    assert "Too many open files" not in host.log()
