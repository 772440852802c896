"""A watcher whose configuration file changes, moves or disappears."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.netns.daemonless import kill_daemon
from tests.netns.etc import private_etc
from tests.netns.waiting import eventually
from tests.netns.watch.watched_host import CONFIG, ENDPOINT, Host, listen
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError


def test_a_signal_rereads_the_file_and_a_missing_file_changes_nothing(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    watcher = host.watch()
    host.wait_up("br0")
    host.configure(port=5040)
    host.signal("HUP", watcher)
    host.wait_served(guest, 5040)

    host.hypervisor.path(CONFIG).unlink()
    for _ in range(2):
        host.signal("HUP", watcher)
        host.wait_for_line("the version that was read last stays in force")
    host.hypervisor.add_bridge("br1")
    host.wait_served(host.hypervisor.add_guest("late", "br1", "10.0.1.5/24"), 5040)
    assert host.log().count("the version that was read last stays in force") == 1
    host.configure(port=5050)
    host.signal("HUP", watcher)
    host.wait_served(guest, 5050)


def test_an_outage_of_dns_does_not_bring_up_a_bridge_that_was_taken_down(host: Host, blackhole: str) -> None:
    dead = f"nameserver {blackhole}\noptions timeout:1 attempts:1\n"
    private_etc(
        host.hypervisor,
        resolv_conf=dead,
        hosts=f"{ENDPOINT} api.example\n",
        nsswitch_conf="hosts: files dns\n",
    )
    host.configure(more="- {service_port: 5040, remote_addr: api.example, remote_port: 8080}\n")
    host.hypervisor.add_bridge("br0")
    host.hypervisor.add_guest("guest", "br0")
    watcher = host.watch_with_clock()
    host.wait_up("br0")
    host.hook("down", "--bridge", "br0", "--force")
    for known in ("", f"{ENDPOINT} api.example\n"):
        host.hypervisor.write("/etc/hosts", known)
        host.signal("HUP", watcher)
        host.wait_for_line("as before")
        host.pass_time(5)
        assert not host.is_up("br0")


def test_a_refresh_makes_the_watcher_read_the_file(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    host.hypervisor.add_bridge("br1")
    guest = host.hypervisor.add_guest("guest", "br0")
    host.watch()
    host.wait_served(guest)
    host.configure(port=5040)
    host.hypervisor.tproxy("refresh", "--config", CONFIG)
    host.wait_served(guest, 5040)
    host.wait_served(host.hypervisor.add_guest("late", "br1", "10.0.1.5/24"), 5040)


def test_a_reload_of_an_unchanged_file_keeps_what_operators_changed(host: Host) -> None:
    guests = []
    for number, bridge in enumerate(("br0", "br1")):
        host.hypervisor.add_bridge(bridge)
        guests.append(host.hypervisor.add_guest(f"guest{number}", bridge))
    host.watch_with_clock()
    for guest in guests:
        host.wait_served(guest)
    host.nft(f"add element ip one_tproxy ep_br0 {{ 99 : {ENDPOINT} . 8080 }}")
    host.hook("down", "--bridge", "br1", "--force")
    host.pass_time(2)
    # logrotate reloads without a change. The second time the file is another, but not for these bridges.
    for more in ("", "tproxy_debug_level: 3\n"):
        host.configure(more=more)
        host.hypervisor.tproxy("reload", env={"TPROXY_CONFIG": CONFIG})
        host.pass_time(2)
        assert guests[0].get(SERVICE_ADDRESS, 99) == "one"
        assert not host.is_up("br1")


def test_a_bridge_that_moves_to_another_network_loses_the_services_of_the_old_one(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    watcher = host.watch()
    host.wait_served(guest)
    text = host.hypervisor.path(CONFIG).read_text()
    host.hypervisor.write(CONFIG, text.replace("blue", "red").replace("8080}", "8080, networks: blue}"))
    host.signal("HUP", watcher)
    for _ in eventually():
        with suppress(ProcessError):
            guest.get(SERVICE_ADDRESS, 5030)
            continue
        break
    assert "network=red" in host.nft("list map ip one_tproxy ep_br0")


def test_a_reread_file_counts_for_all_networks_of_a_bridge(host: Host) -> None:
    def red(port: int) -> str:
        return f"- {{service_port: {port}, remote_addr: {ENDPOINT}, remote_port: 8080, networks: red}}\n"

    host.configure(more=red(91))
    host.watch()
    host.hypervisor.add_bridge("br0")
    host.hypervisor.add_guest("guest", "br0")
    host.wait_up("br0")
    host.hook("up", "--bridge", "br0", "--network", "red", "--mac", "02:00:0a:00:00:06")
    host.configure(more=red(92))
    host.signal("HUP", host.watcher)
    for _ in eventually():
        listed = host.nft("list table ip one_tproxy")
        if "tcp . 92 . 0x00000002 : " in listed:  # red's alone
            break
    assert "5030 : " in listed
    assert "tcp . 91 . " not in listed
    assert "network=red order=2" in host.nft("list set ip one_tproxy gu_br0")


def test_a_change_that_fails_is_tried_again(host: Host) -> None:
    host.hypervisor.add_bridge("br0")
    guest = host.hypervisor.add_guest("guest", "br0")
    watcher = host.watch()
    host.wait_served(guest)
    taken = listen(host, 5040)
    host.configure(port=5040)
    host.signal("HUP", watcher)
    host.wait_for_line("port 5040 cannot listen")
    host.signal("HUP", watcher)  # the file is the same, but the bridge does not have its services yet
    taken.kill()
    host.wait_served(guest, 5040)


def test_a_file_in_another_place_gets_another_watcher(host: Host) -> None:
    host.configure(more="tproxy_watch: true\n")
    host.hypervisor.tproxy("start", env={"TPROXY_CONFIG": CONFIG})
    host.wait_for_line("watching bridges")
    other = host.hypervisor.write("/run/other.yaml", host.hypervisor.path(CONFIG).read_text())
    host.hypervisor.path(CONFIG).unlink()
    host.hypervisor.tproxy("reload", env={"TPROXY_CONFIG": other})
    host.wait_for_line(f"watching bridges, as {other} says")


def test_a_file_without_a_watcher_does_not_end_the_watcher_of_another_file(host: Host) -> None:
    host.configure(more="tproxy_watch: true\n")
    host.hypervisor.add_bridge("br0")
    host.hook("up", "--bridge", "br0")
    watcher = int(host.wait_for_line("watching bridges").split()[1])
    other = host.hypervisor.write("/run/other.yaml", "tproxy: []\n")
    for command in (["start"], ["reload"], ["refresh", "--config", other]):
        host.hypervisor.tproxy(*command, env={"TPROXY_CONFIG": other})
    kill_daemon(host.hypervisor)
    host.wait_for_line("the daemon was gone; started again")  # by the watcher, after the commands' signals
    assert "wants no watcher" not in host.log()
    host.hypervisor.tproxy("restart", env={"TPROXY_CONFIG": other})
    host.wait_for_line("watching bridges", 2)

    # That file ends the watcher, whichever file the command was given.
    host.configure()
    host.hypervisor.tproxy("reload", env={"TPROXY_CONFIG": other})
    host.wait_for_line("wants no watcher any more")
    for _ in eventually():
        if host.hypervisor.run("kill", "-0", str(watcher), check=False).returncode != 0:
            break
    assert host.watched_file() == ""  # the daemon starts no other one
    assert host.log().count("watching bridges") == 2


@pytest.mark.parametrize("command", ["start", "reload", "restart"])
def test_a_missing_file_ends_no_watcher(host: Host, command: str) -> None:
    host.configure(more="tproxy_watch: true\n")
    host.hypervisor.tproxy("start", env={"TPROXY_CONFIG": CONFIG})
    watcher = int(host.wait_for_line("watching bridges").split()[1])
    daemon = host.pids()["one_tproxy"]
    host.hypervisor.path(CONFIG).unlink()
    host.hypervisor.tproxy(command, env={"TPROXY_CONFIG": CONFIG})
    assert command == "restart" or host.pids()["one_tproxy"] == daemon
    host.hypervisor.add_bridge("br0")
    host.wait_served(host.hypervisor.add_guest("guest", "br0"))
    assert host.hypervisor.run("kill", "-0", str(watcher), check=False).returncode == 0
