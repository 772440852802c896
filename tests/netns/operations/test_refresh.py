"""``tproxy refresh``: a changed configuration file takes effect on bridges that are up."""

from __future__ import annotations

import pytest

from tests.netns.ruleset import lasting
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest, Hypervisor

CONFIG = "/run/tproxy.yaml"
ENDPOINT = "10.11.12.13"
MAP_TYPE = "type inet_service : ipv4_addr . inet_service"


class Site:
    """A bridge that a hook brought up for network vnet1, and its guest."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        host.add_bridge("br0")
        self.guest: Guest = host.add_guest("guest", "br0")
        host.add_endpoint(ENDPOINT, 8080, "one")
        host.add_endpoint(ENDPOINT, 8081, "two")
        self.configure("{service_port: 80, remote_port: 8080}")
        self.up("br0", "--network", "vnet1", "--network-id", "7", "--uplink", "eth7")

    def configure(self, *entries: str) -> None:
        lines = [entry.replace("{", f"- {{remote_addr: {ENDPOINT}, ") for entry in entries]
        self.host.write(CONFIG, "\n".join(["tproxy:", *lines]) + "\n")

    def up(self, bridge: str, *options: str) -> None:
        self.host.tproxy("hook", "up", "--bridge", bridge, "--config", CONFIG, *options)

    def refresh(self, *, changed: int = 0, unchanged: int = 0) -> None:
        done = self.host.tproxy("refresh", "--config", CONFIG)
        assert done.stdout == counts(changed, unchanged)
        assert done.stderr == ""

    def ask(self, port: int = 80) -> str:
        return self.guest.get(SERVICE_ADDRESS, port)

    def ruleset(self) -> str:
        return lasting(self.host.run("nft", "list", "ruleset").stdout)


def counts(changed: int = 0, unchanged: int = 0, failed: int = 0, skipped: int = 0) -> str:
    """The line that ``tproxy refresh`` prints."""
    bridges = f"changed {changed}, unchanged {unchanged}, failed {failed}, skipped {skipped}"
    return f"{CONFIG}: bridges {bridges}\n"


@pytest.fixture
def site(hypervisor: Hypervisor) -> Site:
    return Site(hypervisor)


def test_refresh_finds_the_entries_for_a_network_by_name_and_by_id(site: Site) -> None:
    site.configure(
        "{service_port: 80, remote_port: 8081, networks: vnet1}",
        "{service_port: 81, remote_port: 8080, networks: 7}",
        "{service_port: 82, remote_port: 8080, networks: other}",
    )
    assert site.ask() == "one"
    site.refresh(changed=1)
    assert (site.ask(80), site.ask(81)) == ("two", "one")
    with pytest.raises(ProcessError, match="ECONNREFUSED"):
        site.ask(82)


def test_an_unchanged_file_changes_nothing_and_keeps_the_named_uplinks(site: Site) -> None:
    before = site.ruleset()
    assert '"eth7"' in before
    site.refresh(unchanged=1)
    assert site.ruleset() == before


def test_services_disappear_and_return_with_their_entries(site: Site) -> None:
    site.configure()
    site.refresh(changed=1)
    with pytest.raises(ProcessError, match="ECONNREFUSED"):
        site.ask()
    site.configure("{service_port: 80, remote_port: 8081}")
    site.refresh(changed=1)
    assert site.ask() == "two"


def test_a_network_with_a_long_name_keeps_its_services(site: Site) -> None:
    name = "Внутренняя сеть отдела продаж"  # too long for a comment in nftables
    site.host.tproxy("stop")
    site.host.run("nft", "flush", "ruleset")  # the bridge has no network any more
    site.configure(f"{{service_port: 80, remote_port: 8080, networks: [{name}]}}")
    for options in (("--network", name), ("--network", name, "--network-id", "7")):
        site.up("br0", *options)
        assert site.ask() == "one"
        site.refresh(unchanged=1)
        assert site.ask() == "one"
    site.configure(f"{{service_port: 80, remote_port: 8081, networks: [{name}]}}")
    site.refresh(changed=1)
    assert site.ask() == "two"
    site.configure("{service_port: 80, remote_port: 8081, networks: [another]}")
    site.refresh(changed=1)
    with pytest.raises(ProcessError, match="ECONNREFUSED"):
        site.ask()


@pytest.mark.parametrize("lost", ["nothing", "the note", "the guards"])
def test_a_bridge_that_a_hook_brought_up_without_a_network_is_refreshed(site: Site, lost: str) -> None:
    site.host.add_bridge("br1")
    guest = site.host.add_guest("other", "br1")
    site.up("br1")
    if lost == "the note":
        site.host.run("sh", "-c", "rm /run/tproxy/*/used/br1")
    elif lost == "the guards":
        site.host.run("nft", "delete table bridge one_tproxy")
    site.configure(
        "{service_port: 80, remote_port: 8081}",
        "{service_port: 81, remote_port: 8080, networks: vnet1}",
    )
    site.refresh(changed=2)
    assert (site.ask(), site.ask(81), guest.get(SERVICE_ADDRESS, 80)) == ("two", "one", "two")
    with pytest.raises(ProcessError, match="ECONNREFUSED"):
        guest.get(SERVICE_ADDRESS, 81)  # the entry is for another network
    site.refresh(unchanged=2)


def test_a_map_that_another_program_loaded_is_skipped_and_named(site: Site) -> None:
    site.host.add_bridge("br1")
    site.host.run("nft", f"add map ip one_tproxy ep_br1 {{ {MAP_TYPE}; }}")
    site.host.run("nft", f"add element ip one_tproxy ep_br1 {{ 99 : {ENDPOINT} . 8081 }}")
    before = site.host.run("nft", "list", "map", "ip", "one_tproxy", "ep_br1").stdout
    site.configure("{service_port: 80, remote_port: 8081}")
    # At first the other program has not finished: that is a failure, and it is reported too.
    for code, changed in ((1, 1), (1, 0), (3, 0)):
        if code == 3:
            site.host.ip("netns add one_tproxy_br1")
        done = site.host.tproxy("refresh", "--config", CONFIG, check=False)
        *others, line = done.stderr.splitlines()
        assert line == "tproxy: br1: skipped: its map names no network, and no hook brought the bridge up"
        assert len(others) == (code == 1)
        assert (done.returncode, done.stdout) == (code, counts(changed, 1 - changed, skipped=1))
    assert site.host.run("nft", "list", "map", "ip", "one_tproxy", "ep_br1").stdout == before
    assert site.ask() == "two"


def test_a_file_that_cannot_be_used_changes_nothing(site: Site) -> None:
    before = site.ruleset()
    site.host.write(CONFIG, "tproxy: 5\n")
    done = site.host.tproxy("refresh", "--config", CONFIG, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"tproxy: {CONFIG}:1: tproxy is not a list")
    assert site.ruleset() == before


def test_a_file_without_the_key_tproxy_removes_no_service(site: Site) -> None:
    site.host.write(CONFIG, ":vxlan_ttl: 16\n")  # OpenNebula's, where hooks use --config FILE
    done = site.host.tproxy("refresh", "--config", CONFIG, check=False)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"tproxy: {CONFIG}: there is no key tproxy, so nothing is changed: give --config FILE\n"
    )
    assert site.ask() == "one"


def test_a_bridge_that_is_gone_does_not_stop_the_others(site: Site) -> None:
    site.host.add_bridge("aa0")
    site.up("aa0", "--network", "vnet2")
    site.host.ip("link delete aa0")
    site.configure("{service_port: 80, remote_port: 8081}")
    done = site.host.tproxy("refresh", "--config", CONFIG, check=False)
    assert done.returncode == 1
    assert done.stderr == "tproxy: aa0: bridge aa0 does not exist\n"
    assert done.stdout == counts(changed=1, failed=1)
    assert site.ask() == "two"


def test_log_level_and_watcher_take_effect_too(site: Site) -> None:
    text = site.host.path(CONFIG).read_text()
    site.host.write(CONFIG, "tproxy_debug_level: 1\ntproxy_watch: true\n" + text)
    site.refresh(unchanged=1)
    for _ in eventually():
        if "tproxy-watch" in site.host.run("ps", "-eo", "args").stdout:
            break
    log = site.host.path("/var/log/one_tproxy.log")
    before = log.read_text()
    assert site.ask() == "one"
    site.host.tproxy("stop")  # all its lines are written now
    assert "bridge=br0" not in log.read_text()[len(before) :]  # connections are logged at INFO
