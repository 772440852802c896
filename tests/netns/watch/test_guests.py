"""Bridges that the watcher brings up and takes down with their guests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.netns.conftest import StartEndpoint
from tests.netns.talk import Talk
from tests.netns.waiting import await_equal, eventually
from tests.netns.watch.watched_host import ENDPOINT, Host, listen
from tproxy.addresses import SERVICE_ADDRESS


def test_a_bridge_is_up_while_it_has_guests(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    host.hypervisor.add_bridge("other0")
    host.watch()
    host.hypervisor.ip("link add up0 type veth peer name far", "link set up0 master br0 up")
    other = host.hypervisor.add_guest("stranger", "other0")
    guest = host.hypervisor.add_guest("guest", "br0")
    host.wait_served(guest)
    assert "network=blue" in host.nft("list map ip one_tproxy ep_br0")

    host.hypervisor.ip(f"link del {guest.port}", f"link del {other.port}")
    host.wait_down("br0")
    assert not host.is_up("other0")
    await_equal(host.pids, {})  # the last bridge
    await_equal(lambda: "one_tproxy" in host.nft("list ruleset"), wanted=False)


def test_a_port_without_carrier_counts_as_a_guest(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    host.watch()
    # A tap has no carrier until its virtual machine opens it.
    host.hypervisor.ip("tuntap add dev tap0 mode tap", "link set tap0 master br0 up")
    host.wait_up("br0")
    assert host.hypervisor.path("/sys/class/net/tap0/carrier").read_text().strip() == "0"


def test_guests_from_before_the_start_are_found_and_a_deleted_bridge_is_forgotten(host: Host) -> None:
    for bridge in ("br0", "br1"):
        host.hypervisor.add_bridge(bridge)
        host.hypervisor.add_guest(f"guest-{bridge}", bridge)
    host.watch()
    host.wait_up("br0")
    host.wait_up("br1")
    host.hypervisor.ip("link del br0")
    host.wait_down("br0")
    await_equal(lambda: set(host.pids()), {"one_tproxy", "one_tproxy_br1"})


def test_a_port_that_comes_back_within_the_grace_time_keeps_its_connections(
    host: Host, start_endpoint: StartEndpoint
) -> None:
    start_endpoint("echo", ENDPOINT, 8081)
    host.configure(grace=1, remote_port=8081)
    host.hypervisor.add_bridge("br0")
    host.watch_with_clock()
    guest = host.hypervisor.add_guest("guest", "br0")
    host.wait_up("br0")
    talk = Talk(guest, 5030)
    for _ in range(10):
        host.hypervisor.ip(f"link set {guest.port} nomaster", f"link set {guest.port} master br0")
    host.pass_time(2)  # longer than the grace time
    assert talk.say("still there") == "still there"


def test_a_bridge_that_a_hook_brought_up_waits_for_its_guest(host: Host) -> None:
    host.configure(grace=100)
    host.hypervisor.add_bridge("br0")
    host.watch_with_clock("standing")
    guest = host.hypervisor.add_guest("guest", "br0")
    host.wait_up("br0")
    host.hypervisor.ip(f"link del {guest.port}")
    host.pass_time(90)
    host.hook("up", "--bridge", "br0", "--network", "blue")
    host.pass_time(60)  # the grace time of the guest that left is over
    assert host.is_up("br0")
    host.pass_time(100)
    host.wait_for_line("had no guest for 100 s: taken down")
    assert host.log().count("taken down") == 1


def test_an_uplink_that_only_a_hook_named_is_no_guest_for_a_watcher_that_starts_later(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    # Without a delay, the kernel does not announce the port again when it begins to forward.
    host.hypervisor.ip("link set br0 type bridge forward_delay 0")
    host.hypervisor.ip("link add far0 type veth peer name far", "link set far0 master br0 up")
    host.hook("up", "--bridge", "br0", "--uplink", "far0")
    host.watch()
    host.wait_down("br0")


def test_an_uplink_of_the_configuration_may_have_another_name(host: Host) -> None:
    """The file names up0."""
    host.hypervisor.add_bridge("br0")
    host.hypervisor.ip("link set br0 type bridge forward_delay 0")
    host.hypervisor.ip(
        "link add card0 type veth peer name far",
        "link property add dev card0 altname up0",
        "link set card0 master br0 up",
    )
    host.watch()
    guest = host.hypervisor.add_guest("guest", "br0")
    host.wait_up("br0")
    assert '"card0" comment "bridge=br0 named=yes"' in host.ruleset()
    host.hypervisor.ip(f"link del {guest.port}")
    host.wait_down("br0")


def test_a_clock_that_was_set_back_keeps_no_bridge_up(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    host.hook("up", "--bridge", "br0")
    host.hypervisor.run("sh", "-c", "touch -d tomorrow /run/tproxy/*/used/br0")
    host.watch()
    host.wait_down("br0")


def test_hooks_and_the_watcher_can_bring_up_the_same_bridges(host: Host) -> None:
    bridges = [f"br{number}" for number in range(6)]
    for bridge in bridges:
        host.hypervisor.add_bridge(bridge)
    host.watch()
    guests = [host.hypervisor.add_guest(f"guest-{bridge}", bridge) for bridge in bridges]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda bridge: host.hook("up", "--bridge", bridge, "--network", "blue"), bridges * 2))
    for guest in guests:
        assert guest.get(SERVICE_ADDRESS, 5030) == "one"
    assert len(host.pids()) == 7
    assert "cannot" not in host.log()


def test_a_bridge_that_cannot_be_brought_up_is_logged_and_tried_again(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    host.hypervisor.ip("link add br0b type bridge")  # the name of our port
    host.watch()
    guest = host.hypervisor.add_guest("guest", "br0")
    host.wait_for_line("bridge br0: link br0b is not a veth; bridge br0 needs that name")
    assert "one_tproxy" not in host.nft("list ruleset")
    host.hypervisor.ip("link del br0b")
    host.wait_served(guest)


def test_a_bridge_that_cannot_be_brought_up_is_tried_again_later_and_later(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    host.hypervisor.ip("netns add one_tproxy_br0")
    taken = listen(host, 5030)
    host.watch_with_clock("standing")
    guest = host.hypervisor.add_guest("guest", "br0")
    host.wait_for_line("bridge br0 cannot be brought up")
    for failures, delay in ((1, 2), (2, 4), (3, 8)):
        host.pass_time(delay - 0.5)
        assert host.log().count("bridge br0 cannot be brought up") == failures
        host.pass_time(0.6)
        host.wait_for_line("bridge br0 cannot be brought up", failures + 1)
    taken.kill()
    host.pass_time(20)
    host.wait_served(guest)


def test_bridges_that_are_gone_leave_no_descriptor_open(host: Host) -> None:
    watcher = host.watch_with_clock()
    files = []
    for number in range(3):
        bridge = f"br{number}"
        host.hypervisor.add_bridge(bridge)
        host.hypervisor.add_guest(f"guest{number}", bridge)
        host.wait_up(bridge)
        host.wait_until_watched(bridge)
        host.hypervisor.ip(f"link del {bridge}")
        host.wait_down(bridge)
        host.wait_until_watched()
        host.pass_time(5)  # it closes its other files
        files.append(host.descriptors(watcher))
    for _ in eventually():
        if host.descriptors(watcher) <= files[1]:
            break


def test_a_renamed_bridge_leaves_nothing_under_its_old_name(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    host.watch_with_clock()
    host.wait_served(guest)
    host.hypervisor.ip("link set br0 down")
    host.pass_time(1)  # it looks at the bridge under the old name
    host.hypervisor.ip("link set br0 name br1", "link set br1 up")
    host.wait_up("br1")
    host.wait_down("br0")
    assert "br0b" not in host.hypervisor.run("ip", "link").stdout
    host.wait_served(guest)
