"""`tproxy probe` goes a guest's way to a service, counts as no guest, and leaves nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.contract import table
from tests.netns.doctor.patient import CONFIGURED, HEALTHY, Patient, configuration
from tests.netns.one_bridge import ENDPOINT
from tests.netns.program import program
from tests.netns.waiting import eventually
from tests.netns.watch.watched_host import Host
from tproxy.lab.hypervisor import PATIENCE, Hypervisor

NOBODY = "10.0.0.77"  # for whose answer a probe waits some seconds


def state(patient: Patient) -> str:
    """The links, namespaces and guards of the host."""
    commands = (
        "ip -o link; ip netns list; nft list set bridge one_tproxy guarded; nft list map ip one_tproxy ep_br0"
    )
    return patient.host.run("sh", "-c", commands).stdout


def ports(patient: Patient) -> list[str]:
    """The ports of probes on the bridge."""
    names = patient.host.run("ls", "/sys/class/net/br0/brif").stdout.split()
    return [each for each in names if each.startswith("tpprobe")]


def start(patient: Patient, *arguments: str) -> subprocess.Popen[str]:
    """Start a probe that waits for a gateway that nobody is; return when its port is on the bridge."""
    before = set(ports(patient))
    command = (sys.executable, "-m", "tproxy", "probe", "br0:5030", "--gateway", NOBODY, *arguments)
    process = patient.host.popen(*command, stdout=subprocess.PIPE, env=CONFIGURED)
    for _ in eventually():
        if set(ports(patient)) - before:
            break
    return process


def test_a_probe_shows_each_step_of_both_ways_and_how_long_it_took(patient: Patient) -> None:
    done = patient.host.tproxy("probe", "br0")
    assert done.stderr == ""
    steps = re.findall(r"^good +\d+\.\d ms  ([a-z ]+): .*$", done.stdout, re.MULTILINE)
    assert len(steps) == done.stdout.count("\n")
    assert [each for each in steps if each != "guards"] == [
        *("attach", "forward"),
        *("route arp", "route ping", "route connect", "route endpoint", "route answer"),
        *("gateway ping", "gateway connect", "gateway endpoint", "gateway answer"),
    ]


def test_a_probe_goes_over_ipv6_and_to_udp_services_too(patient: Patient) -> None:
    served = configuration(more="tproxy_ipv6: true\n", options=", protocol: [tcp, udp]")
    patient.shell(f"services {served}")
    who = patient.host.add_endpoint(ENDPOINT, 8080, program=program("datagram_endpoint", "echo"))
    found = [(each.where, each.check) for each in patient.probe("br0:5030")]
    visits = ("connect", "endpoint", "answer", "endpoint", "datagram")
    assert [each for each in found if each[0]] == [
        *(("route", each) for each in ("arp", "ping", *visits)),
        *(("gateway", each) for each in ("ping", *visits)),
        *(("ipv6", each) for each in ("neighbour", "ping", *visits)),
    ]
    assert "bad" not in {each.level for each in patient.probe("br0:5030")}
    who.kill()
    patient.shell(HEALTHY)


def test_a_gateway_that_answers_arp_is_a_step_of_its_own(patient: Patient) -> None:
    done = patient.host.tproxy("probe", "br0:5030", "--gateway", patient.lab.guest.address)
    assert f"gateway gateway: {patient.lab.guest.address} is at " in done.stdout


def test_the_json_form_has_the_keys_of_the_contract_and_no_other(patient: Patient) -> None:
    document = json.loads(patient.host.tproxy("probe", "br0:5030", "--json").stdout)
    keys = table("Output of `probe`", "key").column("key")
    assert {*document} == {each for each in keys if "." not in each}
    for each in document["steps"]:
        assert {f"steps[].{key}" for key in each} == {key for key in keys if "." in key}


def test_a_probe_leaves_nothing(patient: Patient) -> None:
    before = state(patient)
    patient.host.tproxy("probe", "br0")
    for _ in eventually():  # the daemon takes the port out of the guards
        if state(patient) == before:
            break


def test_a_probe_that_is_killed_leaves_nothing_and_the_next_one_works(patient: Patient) -> None:
    before = state(patient)
    killed = start(patient)
    (port,) = ports(patient)
    owner = patient.host.run("pgrep", "-f", f"tproxy probe br0:5030 --gateway {NOBODY}").stdout.split()
    patient.host.run("kill", "-KILL", *owner)
    killed.wait(PATIENCE)
    assert port not in patient.host.tproxy("probe", "br0:5030").stdout
    for _ in eventually():  # the kernel removes what a namespace held some time after its end
        if state(patient) == before:
            break


def test_two_probes_at_once_do_not_disturb_each_other(patient: Patient) -> None:
    both = [start(patient), start(patient)]
    assert len(set(ports(patient))) == 2
    assert "bad" not in patient.host.tproxy("probe", "br0:5030").stdout
    for each in both:
        out, _ = each.communicate(timeout=PATIENCE)
        assert "good" in out
        assert re.findall(r"^bad .* ms  (.*?):", out, re.MULTILINE) == ["gateway gateway"]


def test_the_bridge_keeps_its_mac_and_its_mtu_while_a_probe_is_attached(patient: Patient) -> None:
    def shown() -> list[str]:
        return re.findall(
            r"\b(?:mtu \d+|ether [0-9a-f:]{17})", patient.host.run("ip", "link", "show", "br0").stdout
        )

    before = shown()
    probe = start(patient)
    assert shown() == before
    probe.wait(PATIENCE)


def test_a_probe_is_no_guest_for_down_and_gc(patient: Patient) -> None:
    """The probe stands still meanwhile, with its port on a bridge that has no guest any more."""
    host = patient.host
    host.add_bridge("br5")
    host.tproxy("hook", "up", "--bridge", "br5", env=CONFIGURED)
    # Below a shell: nsenter stops with its child, and then nobody would wait for that.
    command = f"{sys.executable} -m tproxy probe br5:5030 --gateway {NOBODY}; :"
    probe = host.popen("sh", "-c", command, stdout=subprocess.PIPE, env=CONFIGURED)
    for _ in eventually():
        if "tpprobe" in host.run("ls", "/sys/class/net/br5/brif").stdout:
            break
    owner = host.run("pgrep", "-f", "^[^ ]*python[^ ]* -m tproxy probe br5:5030").stdout.split()
    host.run("kill", "-STOP", *owner)
    assert "remove namespace one_tproxy_br5" in host.tproxy("gc", "--dry-run", "--grace", "0").stdout
    host.tproxy("hook", "down", "--bridge", "br5", env=CONFIGURED)
    assert "one_tproxy_br5" not in host.run("ip", "netns", "list").stdout
    assert "tpprobe" in host.run("ls", "/sys/class/net/br5/brif").stdout, "the probe is still there"
    host.run("kill", "-KILL", *owner)
    probe.wait(PATIENCE)
    host.ip("link del br5")


def test_a_probe_is_no_guest_for_the_watcher(hypervisor: Hypervisor) -> None:
    """A stopped probe is on a bridge whose last guest goes. Then its port is moved to one without guests."""
    host = Host(hypervisor)
    host.watch()
    for bridge in ("br0", "br1"):
        hypervisor.add_bridge(bridge)
    guest = hypervisor.add_guest("guest", "br0")
    host.wait_up("br0")
    # Below a shell, as above.
    command = f"{sys.executable} -m tproxy probe br0:5030 --gateway {NOBODY}; :"
    hypervisor.popen("sh", "-c", command, stdout=subprocess.PIPE)
    for _ in eventually():
        if "tpprobe" in hypervisor.run("ls", "/sys/class/net/br0/brif").stdout:
            break
    owner = hypervisor.run("pgrep", "-f", "^[^ ]*python[^ ]* -m tproxy probe").stdout.split()
    hypervisor.run("kill", "-STOP", *owner)
    hypervisor.ip(f"link del {guest.port}")
    host.wait_for_line("bridge br0 had no guest for 0.5 s: taken down")
    (port,) = (each for each in links(hypervisor) if each.startswith("tpprobe"))
    hypervisor.ip(f"link set {port} master br1")
    hypervisor.add_bridge("br2")
    hypervisor.add_guest("other", "br2")
    host.wait_up("br2")  # the watcher has seen what happened before
    assert not host.is_up("br1")
    assert port in links(hypervisor), "the probe is still there"


def links(host: Hypervisor) -> list[str]:
    return host.run("ls", "/sys/class/net").stdout.split()


def test_a_link_of_that_name_without_our_description_is_a_guest(patient: Patient) -> None:
    host = patient.host
    host.add_bridge("br6")
    host.tproxy("hook", "up", "--bridge", "br6", env=CONFIGURED)
    host.ip("link add tpprobe0 type veth peer name other0", "link set tpprobe0 master br6")
    assert host.tproxy("hook", "down", "--bridge", "br6", check=False).returncode == 4
    host.ip("link del tpprobe0")
    host.tproxy("hook", "down", "--bridge", "br6")
    host.ip("link del br6")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nobody", "bridge nobody does not exist"),
        ("lo", "lo is not a bridge"),
        ("br0:0", "'0' is not a port"),
        ("br0 --gateway here", "is not an IPv4 address"),
    ],
)
def test_a_probe_that_cannot_be_made_says_why_in_one_line(
    patient: Patient, arguments: str, words: str
) -> None:
    done = patient.host.tproxy("probe", *arguments.split(), check=False)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
