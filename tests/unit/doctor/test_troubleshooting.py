"""Each row of docs/troubleshooting.md is a fault that doctor or probe names, or one that no lab can cause."""

from __future__ import annotations

from pathlib import Path

from tests.contract import DOCS, tables
from tests.netns.doctor import test_bridge_faults, test_host_faults, test_probe_faults

FAULTS = {
    *test_bridge_faults.FAULTS,
    *(f"firewall: {name}" for name in test_bridge_faults.FIREWALLS),
    *test_host_faults.FAULTS,
    *(f"probe: {name}" for name in test_probe_faults.FAULTS),
}
MACHINE = "machine: "  # a test of tests/vm/inside/test_doctor.py
UNIT = "unit: "  # a test of tests/unit/doctor

IN_THE_GUEST = "the host cannot see it: it is in the guest, or in the platform's rules for its port"
NO_FAULT = "that is as intended, or was repaired when an operator looks"
ELSEWHERE = "the fault is in another program's calls or files, and has left nothing on this host to find"
SILENT = "nobody can tell by a datagram whether a server is well: status shows what workers have met"
WAY_IN = "on the way in, which gateway, route, tunnel and node commands examine themselves"
COMMAND = "the command that fails says it, and nothing stays wrong"

# By the first cell: faults, or why there is none.
ROWS: dict[str, tuple[str, ...] | str] = {
    '"Network is unreachable" at once': IN_THE_GUEST,
    "no answer, no ping; the guest has only a default route": ("probe: the gateway does not answer",),
    "a service with `service_addr` (such as 169.254.169.254) does not answer, others do": IN_THE_GUEST,
    "a hypervisor in a cloud lost its own metadata at 169.254.169.254": (
        "the host reaches a service address through the bridge",
        "the host has a service address at the bridge",
    ),
    "no answer at `fe80::a9fe:1009`": ("probe: something drops IPv6",),
    "no answer, no ping": ("no hook brought the bridge up", "probe: no hook brought the bridge up"),
    "no answer to ping, the bridge is listed": tuple(test_bridge_faults.CHAIN),
    "ping works, the connection times out": ("firewall: nftables", "probe: something drops TCP"),
    'no answer since "Apply Configuration" on Proxmox VE': ("our port left the bridge",),
    "no answer, `hook up` warned, and `status --verbose` says `listening, but: …`": (
        "the port waits because of STP",
        "somebody deleted the namespace",
    ),
    "`listening, but: …` with `STP`": ("the port waits because of STP",),
    "`listening, but: …` with `VLAN`": (f"{MACHINE}test_a_port_without_pvid_is_named_first",),
    "`listening, but: …` with port, bridge or namespace": ("the bridge is down", "our port is down"),
    '"Connection refused" at once': ("probe: there is no service at the port",),
    "a guest with many addresses, such as a router: some connect, others wait or time out": (
        "a guest has many addresses",
    ),
    '"Connection refused" for milliseconds': NO_FAULT,
    "connected, and reset at once": ("the endpoint refuses", "probe: the endpoint refuses"),
    "connected, and reset at once; the service leads to a UNIX socket": ("there is no such UNIX socket",),
    "connected, and reset at once or later": ("a limit was reached",),
    "connected, and reset after some seconds": ("the endpoint does not answer",),
    "connected to the wrong endpoint": ELSEWHERE,
    "connected, and reset at once; below the table is a line with the limit `network`": ELSEWHERE,
    "… `no hook named …, and the networks have different services`": ELSEWHERE,
    "… `… is behind …, not …`, or `… is behind several ports`": IN_THE_GUEST,
    "… `the network of … has no such service`": ELSEWHERE,
    "… `it is not known behind which port … is`": IN_THE_GUEST,
    "`its networks have different services …, and no hook named MAC or port of guests of …`": (
        "networks share a bridge",
        "networks want one port for different endpoints",
    ),
    "a network is named whose guests have all gone": ("the guests of a network have all gone",),
    "`no service of guests that are left is changed` after `hook down`": ("the file cannot be used",),
    "`set … is not of type ether_addr`, or `ifname . ether_addr`": (
        "another program's set has the name of the members",
    ),
    "no answer to datagrams (DNS, NTP, syslog); ping works": IN_THE_GUEST,
    'datagrams are refused ("Connection refused")': (
        "the endpoint refuses datagrams",
        "probe: the endpoint refuses datagrams",
    ),
    "the first answer is missing after an endpoint died, later ones come": NO_FAULT,
    "some answers are missing under load": SILENT,
    "connections hang; the service is listed": ("daemon and spawner were killed",),
    "guests wait, the log says that so many connections are open and no more are taken": (
        "as many connections are open as may be",
    ),
    "slow, and it is not known on which side": ELSEWHERE,
    "one guest holds too many connections, or a connection hangs": ("a limit was reached",),
    "`worker … runs another version of tproxy, and cannot be asked`": NO_FAULT,
    "it works from the guest, not from the hypervisor": NO_FAULT,
    "404 `no such site`, or a reset at once": WAY_IN,
    "a reset after 5 s, and `gateway status` counts `no TLS, or no name …`": WAY_IN,
    "421": WAY_IN,
    "502, or a reset behind the handshake": WAY_IN,
    "a reset, and `gateway status` counts `too many connections of one client`": WAY_IN,
    "`… has no certificate` at `gateway up`": WAY_IN,
    "`no tunnel to …` in the node's log": WAY_IN,
    "`waits for approval`": WAY_IN,
    "`is the name of a node with another key`": WAY_IN,
    "`one key on two machines, …`": WAY_IN,
    "`the gateway's policy does not allow to offer …`": WAY_IN,
    "`nothing is offered at …` when an operator connects": WAY_IN,
    'ssh to a node asks for a password, or says "Permission denied"': WAY_IN,
    'ssh says "Host key verification failed" for a node': WAY_IN,
    "a node is `offline since …` while its `tproxy tunnel` runs": WAY_IN,
    "no line about the bridge in the log": ("no hook brought the bridge up",),
    "the log says that no entry applies to the network": ("no hook brought the bridge up",),
    "`must be run as root`": COMMAND,
    "a line that begins `sudo:` in the VM's log": ELSEWHERE,
    "`bridge … does not exist`": ("there is no such bridge",),
    "`… is not a bridge`": ("that is no bridge",),
    "`… belongs to another program`, or `link … is not a veth`": (
        "another program's veth has our port's name",
        "a link that is no veth has our port's name",
        "another program fills a chain of ours",
    ),
    "`… is an alternative name of link …`": ("our port's name is an alternative name",),
    "`… in /run/netns is no namespace`": ("the namespace's name is a folder",),
    "`others than root can write to …`": ("others can write to the run directory",),
    "`the uplink … does not exist`, or `is not a port of the bridge`": ("an uplink does not exist",),
    "`map … is not of type`": ("another program's map has its name",),
    "`libnftables is not installed`": ("libnftables is missing",),
    "`this kernel has no nftables bridge tables`": ("the kernel has no bridge tables",),
    "`/sys shows another network namespace`": ("/sys is that of another network namespace",),
    "`this process has a mount namespace of its own`": ("this process sees another mount namespace",),
    "`cannot listen: …`": ("another program has the port",),
    "`the daemon cannot start` or `cannot be started`": ("daemon and spawner were killed",),
    "`the daemon did not answer within …`": ("the daemon is stopped",),
    "a libvirt network's `bridge is not known`": ELSEWHERE,
    "OpenNebula's own driver serves the bridges": (
        "another program serves the bridge",
        "another tproxy runs on the host",
    ),
    "`install` says that a folder `does not exist`": COMMAND,
    "`install` says that a file `is not ours and would be lost`": COMMAND,
    "`the limit of open descriptors is …`": (
        "a daemon could open few descriptors",
        "the daemon may open few descriptors",
    ),
    "`hook up` waits for long": ("a command holds the lock",),
    "an entry is ignored": ("a key is misspelt",),
    "there are no services at all, and no warning": ("the key of the services is misspelt",),
    "a change has no effect": ("the file was changed",),
    "`refresh` skips a bridge and exits with 3": NO_FAULT,
    "`refresh` refuses the file, since it has no `tproxy:`": ("the file is for other programs",),
    "another file is read": NO_FAULT,
    "a service by name leads to an old address": ("a name does not resolve",),
    "a service by name does not follow a changed DNS entry": ("a name leads to another address now",),
    "the log says that a bridge `does not follow a changed address yet`": (
        "a name leads to another address now",
    ),
    "`networks: [0123]` does not match": ("a name that YAML reads as a number",),
    "the log level does not change": NO_FAULT,
    "`bridge … is in use by …: left alone`, exit code 4": NO_FAULT,
    "a bridge stays up without guests": ("a bridge has no guest and stays up",),
    "OpenNebula does not remove an empty bridge": ELSEWHERE,
    "everything is gone after a reboot": ("no hook brought the bridge up",),
    "`the nftables table ip … is gone, but … still served`": ("somebody flushed nftables",),
    "services ended at night, after `nft flush ruleset` during the day": ("somebody deleted the map",),
    "`… did not make …: left alone` after `hook down`": NO_FAULT,
    "a bridge stays up because of a port that is no guest": NO_FAULT,
    "a guest's service came back, or went, without a hook": NO_FAULT,
    "the watcher reports that a bridge cannot be repaired": tuple(test_bridge_faults.STRANGERS),
    "the watcher repairs a bridge again and again": NO_FAULT,
    "no watcher, or `a watcher is running already`": ("the watcher that the file wants does not run",),
    "each `hook up` warns that the host's firewall could drop (`bridge-nf-call-iptables is 1`), "
    "`status --verbose` names the host's firewall": ("firewall: nftables",),
    "that warning stays although guests connect": NO_FAULT,
    "`whose rules cannot be read`": ("firewall: legacy, and cannot be read",),
    "the endpoint is unreachable from the workers only": (
        "a rule on OUTPUT keeps workers from the endpoint",
        "probe: the worker is refused",
    ),
    "NetworkManager or networkd take our port over": ("our port left the bridge", "our port is down"),
    "our port left the bridge": ("our port left the bridge", "probe: our port left the bridge"),
    "firewalld or a script flushes nftables": ("somebody flushed nftables", "guards are gone"),
    "ARP for the service address is answered by another machine": (
        "probe: another machine has the service address",
    ),
    "`this kernel has no … limit of nftables: guests can fill the neighbour table` in the log": (
        f"{UNIT}test_what_a_kernel_lacks_is_named",
    ),
    "`guards of … could not be kept current`, or `cannot be restored`": ("guards were changed",),
    "guests lose the service one after the other, and a guest's port has our MAC": (
        "a guest's port has our MAC",
        "the entry for our MAC is gone",
    ),
    '"Neighbour table overflow" in the kernel\'s log': (
        f"{MACHINE}test_a_neighbour_table_that_is_full_is_named",
    ),
    "`tproxy status` is empty": NO_FAULT,
    "a process `tproxy-draining` stays": NO_FAULT,
    "`is served without the wall in its namespace` in the log": ("the wall is gone", "the wall was changed"),
    "`relay lost`, `starting another` in the log": NO_FAULT,
    "`relay does not … killed` in the log": ("the relay is stopped", "probe: the relay is stopped"),
    "guests are refused while the service is restarted": ELSEWHERE,
    "the daemon ends when libvirt or an ssh session does": ("daemon and spawner were killed",),
    "no log, or lines are missing": ("the disk is full", "logs cannot be written"),
    "not every connection has a line": NO_FAULT,
    "the log is large": NO_FAULT,
    "`process … still writes to the log file that was moved away`": (
        "a log was rotated and nobody told",
        "a log was moved away",
    ),
    "`internal error` and exit code 70": COMMAND,
    "`sync`: authentication failed, host key not known": COMMAND,
    "`sync`: tproxy is not installed there": COMMAND,
    "`sync`: check failed, the old file stays": COMMAND,
    "`sync`: tproxy uses another file there": COMMAND,
}


def test_each_row_of_the_troubleshooting_page_has_a_fault_or_a_reason() -> None:
    assert [row[0] for each in tables(DOCS / "troubleshooting.md") for row in each.rows] == [*ROWS]


def test_each_fault_of_a_row_has_a_test() -> None:
    here = Path(__file__).parent
    elsewhere = {
        MACHINE: (here.parents[1] / "vm/inside/test_doctor.py").read_text(),
        UNIT: (here / "test_judge_host.py").read_text(),
    }
    for found in ROWS.values():
        for name in () if isinstance(found, str) else found:
            known = [f"def {name.removeprefix(prefix)}(" in text for prefix, text in elsewhere.items()]
            assert name in FAULTS or any(known), name


def test_there_are_more_than_thirty_faults() -> None:
    assert len(FAULTS) > 90
