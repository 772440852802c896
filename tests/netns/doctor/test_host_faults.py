"""Faults of host, processes, configuration and endpoints that `tproxy doctor` names first."""

from __future__ import annotations

import sys

import pytest

from tests.netns.doctor.patient import CONFIG, HEALTHY, Fault, Patient, configuration
from tests.netns.program import program

WITHOUT_LIBRARY = "import sys; sys.modules['nftables'] = None; from tproxy.cli.main import main; main()"
REJECT = "reject with tcp reset"


def output_rule(rule: str) -> str:
    """The script that loads one rule of the host's own firewall."""
    chain = "type filter hook output priority 0; policy accept;"
    return f"nft 'add table inet own; add chain inet own out {{ {chain} }}; add rule inet own out {rule}'"


HOST = {
    "this process sees another mount namespace": Fault(
        ":",
        *("mounts", "this process has a mount namespace of its own"),
        repair=":",
        command=("unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tproxy"),
    ),
    "/sys is that of another network namespace": Fault(
        ":",
        *("mounts", "/sys shows another network namespace"),
        repair=":",
        command=("nsenter", "--net=/run/netns/guest", sys.executable, "-m", "tproxy"),
    ),
    "libnftables is missing": Fault(
        ":",
        *("nftables", "libnftables is not installed"),
        repair=":",
        command=(sys.executable, "-c", WITHOUT_LIBRARY),
    ),
    "the kernel has no bridge tables": Fault(
        "nft delete table bridge one_tproxy",
        *("kernel", "this kernel has no nftables bridge tables"),
        repair="tproxy hook up --bridge br0",
        command=program("hook_without_bridge_tables"),
    ),
    "others can write to the run directory": Fault(
        "chmod 777 /run/tproxy", "run-directory", "others than root can write to /run/tproxy"
    ),
    "a command holds the lock": Fault(
        "later held flock /run/tproxy/lock sh -c 'echo held; exec sleep 1000'",
        *("locks", "holds the host's lock"),
        repair="pkill -f '^sleep 1000$'",
        level="warning",
    ),
    "a bridge has no guest and stays up": Fault(
        "ip link add br9 type bridge; ip link set br9 up; tproxy hook up --bridge br9;"
        " touch /run/tproxy/*/used/br9",  # by a clock that began before this boot
        *("leftovers", "br9: no guest uses what hooks built there"),
        afterwards="ip link del br9",
        level="warning",
    ),
    "a bridge is gone, and what hooks built is not": Fault(
        "ip link add br9 type bridge; ip link set br9 up; tproxy hook up --bridge br9; ip link del br9",
        *("bridge", "bridge br9 does not exist"),
        repair="tproxy gc --grace 0",
    ),
}

PROCESSES = {
    "daemon and spawner were killed": Fault(
        "kill -KILL $(process one_tproxy) $(process tproxy-spawner)", "daemon", "no daemon runs"
    ),
    "the daemon is stopped": Fault(
        "kill -STOP $(process one_tproxy)", "daemon", "is stopped by a signal or a debugger"
    ),
    "a worker is stopped": Fault(
        "kill -STOP $(process tproxy-worker | head -1)",
        *("workers", "is stopped by a signal or a debugger: its guests wait"),
        repair="pkill -CONT -f '^tproxy-worker *$' || :",  # unless the daemon has killed it by now
    ),
    "the relay is stopped": Fault(
        "kill -STOP $(process one_tproxy_br0)",
        *("relay", "is stopped by a signal or a debugger: guests wait"),
        repair="pkill -CONT -f '^one_tproxy_br0 *$' || :",
    ),
    "the watcher that the file wants does not run": Fault(
        f"echo 'tproxy_watch: true' >>{CONFIG}",
        *("watcher", "says tproxy_watch: true, and no watcher runs"),
        afterwards=f"{HEALTHY}; tproxy reload",
    ),
    "the daemon may open few descriptors": Fault(
        "prlimit --pid $(process one_tproxy) --nofile=300:20000",
        *("descriptors", "may open 300, and needs 512"),
        repair="prlimit --pid $(process one_tproxy) --nofile=20000:20000",
    ),
    "a daemon could open few descriptors": Fault(
        "tproxy hook down --bridge br0 --force",
        *("daemon", "the limit of open descriptors is 300, and a daemon needs 512"),
        repair="tproxy hook up --bridge br0",
        command=("prlimit", "--nofile=300:300", sys.executable, "-m", "tproxy"),
    ),
    "as many connections are open as may be": Fault(
        f"services {configuration(more='tproxy_max_connections: 1' + chr(10))};"
        " later held ip netns exec guest $PYTHON -c '"
        'import socket; s = socket.create_connection(("169.254.16.9", 5030)); '
        'print("held", flush=True); s.recv(1)\';'
        " until tproxy status --json | grep -q '\"connections\": 1,'; do :; done",
        *("workers", "1 connections are open, and no more are taken"),
        repair="kill $(cat /run/later.pid)",
        afterwards=HEALTHY,
    ),
    "a limit was reached": Fault(
        f"services {configuration(options=', max_connections_per_guest: 1')};"
        " ip netns exec guest $PYTHON -c '"
        'import socket; a, b = (socket.create_connection(("169.254.16.9", 5030)) for _ in "ab"); '
        "a.recv(1) if not b.settimeout(20) and False else b.recv(1)' 2>/dev/null || :",
        *("limits", "max_connections_per_guest (1) ended 1 connections"),
        repair=HEALTHY,
        level="warning",
    ),
}

LOGS = {
    "the disk is full": Fault(
        "mount -o remount,size=1m /var/log; cat /dev/zero >/var/log/filler 2>/dev/null || :",
        *("logs", "its file system is full: lines are lost"),
        repair="rm /var/log/filler",
    ),
    "logs cannot be written": Fault(
        "mount --bind /var/log /var/log; mount -o remount,bind,ro /var/log",
        *("logs", "its file system is read-only: lines are lost"),
        afterwards="umount /var/log",
    ),
    "a log was rotated and nobody told": Fault(
        "mv /var/log/one_tproxy_br0.log /var/log/one_tproxy_br0.log.1; touch /var/log/one_tproxy_br0.log",
        *("logs", "still writes to the log file that was moved away"),
    ),
    "a log was moved away": Fault(
        "mv /var/log/one_tproxy.log /var/log/one_tproxy.log.1", "logs", "it is missing"
    ),
}


def two_networks(port: int, remote_port: int) -> str:
    """The script that brings up br9 for networks a and b, which have different services."""
    entry = "{{service_port: {}, remote_addr: 10.11.12.13, remote_port: {}, networks: [{}]}}"
    entries = f"{entry.format(1, 8080, 'a')}, {entry.format(port, remote_port, 'b')}"
    return (
        "ip link add br9 type bridge; ip link set br9 up;"
        f" echo 'tproxy: [{entries}]' >/run/two.yaml;"
        " for each in a b; do"
        " tproxy hook up --bridge br9 --network $each --config /run/two.yaml 2>/dev/null; done"
    )


CONFIGURATION = {
    "the file is gone": Fault(
        f"mv {CONFIG} /run/gone", "configuration", "no such file", f"mv /run/gone {CONFIG}"
    ),
    "the file cannot be used": Fault(f"echo 'tproxy: 5' >{CONFIG}", "configuration", "hooks fail", HEALTHY),
    "a key is misspelt": Fault(
        f"echo {configuration(options=', conect_timeout: 3')} >{CONFIG}",
        "configuration",
        "conect_timeout",
        HEALTHY,
    ),
    "the key of the services is misspelt": Fault(
        f"echo {configuration(more='tproxi: []' + chr(10))} >{CONFIG}",
        *("configuration", "tproxi"),
        repair=HEALTHY,
    ),
    "a name that YAML reads as a number": Fault(
        f"echo {configuration(options=', networks: [0123]')} >{CONFIG}",
        *("configuration", "0123"),
        repair=HEALTHY,
    ),
    "the file is for other programs": Fault(
        f"echo 'vxlan_mtu: 1450' >{CONFIG}", "configuration", "has no key tproxy", repair=HEALTHY
    ),
    "a name does not resolve": Fault(
        f"echo {configuration(address='nobody.invalid')} >{CONFIG}",
        *("names", "remote_addr 'nobody.invalid' does not resolve"),
        repair=HEALTHY,
    ),
    "a name leads to another address now": Fault(
        "echo 10.11.12.13 endpoint.test >/run/hosts; mount --bind /run/hosts /etc/hosts;"
        f" services {configuration(address='endpoint.test')}; echo 10.11.12.14 endpoint.test >/run/hosts",
        *("file", "port 5030 leads to 10.11.12.13:8080, and the file says 10.11.12.14:8080"),
        afterwards=f"umount /etc/hosts; {HEALTHY}",
    ),
    "the file was changed": Fault(
        f"echo {configuration(8081)} >{CONFIG}",
        *("file", "port 5030 leads to 10.11.12.13:8080, and the file says 10.11.12.13:8081"),
        afterwards=HEALTHY,
    ),
    "an option in the file was changed": Fault(
        f"echo {configuration(options=', connect_timeout: 7')} >{CONFIG}",
        *("file", "port 5030 has other options than the file says"),
        afterwards=HEALTHY,
    ),
    "networks share a bridge": Fault(
        two_networks(2, 8080),
        *("networks", "its networks have different services (a, b), and no hook named MAC or port of guests"),
        repair="tproxy hook down --bridge br9 --force",
        afterwards="ip link del br9",
        level="warning",
        options="--bridge br9 --config /run/two.yaml",
    ),
    "networks want one port for different endpoints": Fault(
        two_networks(1, 8081),
        *("networks", "of a, b: they get only the services that all networks have"),
        repair="tproxy hook down --bridge br9 --force",
        afterwards="ip link del br9",
        level="warning",
        options="--bridge br9 --config /run/two.yaml",
    ),
}

GUESTS = {
    "the guests of a network have all gone": Fault(
        two_networks(2, 8080).replace("$each ", "$each --mac 02:00:00:00:00:0$(expr $each = b) ")
        + "; ip link add other type veth peer name tap; ip link set other address 02:00:00:00:00:01;"
        " ip link set tap master br9; ip link set tap up; ip link set other up;"
        " ip link set other address 02:00:00:00:00:01; ip address add 10.9.9.9/24 dev other;"
        " ping -c 1 -W 1 10.9.9.8 >/dev/null || :",
        *("networks", "network 'a' has its services here, and none of its 1 guests is seen"),
        repair="tproxy hook down --bridge br9 --force",
        afterwards="ip link del br9; ip link del other",
        level="warning",
        options="--bridge br9 --config /run/two.yaml",
    ),
    "a guest has many addresses": Fault(
        "for each in $(seq 100 116); do ip -n guest address add 10.0.0.$each/24 dev eth0; done;"
        " ip netns exec guest $PYTHON -c '"
        "import socket\n"
        "for each in range(100, 117):\n"
        ' s = socket.socket(); s.bind((f"10.0.0.{each}", 0)); s.setblocking(False);'
        ' s.connect_ex(("169.254.16.9", 5030))\'',
        *("guards", "addresses asked for the service at port vnet0 in 10 s"),
        repair="ip -n guest address flush dev eth0; ip -n guest address add 10.0.0.5/24 dev eth0;"
        " ip -n guest route add 169.254.16.9 dev eth0",
        level="warning",
        options="--bridge br0",
    ),
}

SERVICES = {
    "the daemon was not told of a changed map": Fault(
        "nft add element ip one_tproxy ep_br0 '{ 6001 : 10.11.12.13 . 8080 }'",
        *("listening", "the daemon was not told: port 6001"),
        afterwards="tproxy refresh",
    ),
    "another program has the port": Fault(
        "later Serving ip netns exec one_tproxy_br0 $PYTHON -u -m http.server --bind 169.254.16.9 6000;"
        " nft add element ip one_tproxy ep_br0 '{ 6000 : 10.11.12.13 . 8080 }';"
        " tproxy reload 2>/dev/null || :",
        *("listening", "port 6000 cannot listen: Address already in use"),
        repair="kill $(cat /run/later.pid)",
        afterwards="tproxy refresh",
    ),
    "the endpoint refuses": Fault(
        f"services {configuration(9999)}",
        *("endpoint", "endpoint 10.11.12.13:9999 refuses the connection"),
        repair=HEALTHY,
    ),
    "there is no such UNIX socket": Fault(
        "services 'tproxy: [{service_port: 5030, remote_addr: unix:/run/no.sock}]'",
        *("endpoint", "endpoint unix:/run/no.sock is missing: no server has made it"),
        repair=HEALTHY,
    ),
    "the endpoint is unreachable": Fault(
        f"ip route add unreachable 10.98.0.1; services {configuration(address='10.98.0.1')}",
        *("endpoint", "endpoint 10.98.0.1:8080 is unreachable: No route to host"),
        repair=f"{HEALTHY}; ip route del unreachable 10.98.0.1",
    ),
    "the endpoint does not answer": Fault(
        f"services {configuration(options=', connect_timeout: 0.3')}; {output_rule('tcp dport 8080 drop')}",
        *("endpoint", "endpoint 10.11.12.13:8080 does not answer within 0.3 s"),
        repair=f"nft delete table inet own; {HEALTHY}",
    ),
    "the endpoint refuses datagrams": Fault(
        f"services {configuration(9999, options=', protocol: udp')}",
        *("endpoint", "endpoint 10.11.12.13:9999 refuses datagrams"),
        repair=HEALTHY,
    ),
    "an IPv6 endpoint refuses": Fault(
        f"ip address add fd00::9/128 dev lo nodad; services {configuration(9999, 'fd00::9')}",
        *("endpoint", "endpoint [fd00::9]:9999 refuses the connection"),
        repair=f"ip address del fd00::9/128 dev lo; {HEALTHY}",
    ),
    "the host reaches a service address through the bridge": Fault(
        f"ip route add 169.254.169.254 dev br0;"
        f" services {configuration(options=', service_addr: 169.254.169.254')}",
        *("agents", "the host itself reaches 169.254.169.254 through br0, which has no uplink"),
        repair=f"ip route del 169.254.169.254 dev br0; {HEALTHY}",
        level="warning",
        options="--bridge br0",
    ),
    "the host has a service address at the bridge": Fault(
        f"ip address add 169.254.169.254/32 dev br0;"
        f" services {configuration(options=', service_addr: 169.254.169.254')}",
        *("agents", "the host itself has 169.254.169.254 at br0"),
        repair=f"ip address del 169.254.169.254/32 dev br0; {HEALTHY}",
        level="warning",
        options="--bridge br0",
    ),
    "a rule on OUTPUT keeps workers from the endpoint": Fault(
        output_rule(f"meta skuid 1900000000-1904194304 tcp dport 8080 {REJECT}"),
        *("endpoint", "refuses the connection for workers, and not for root: see the rules on OUTPUT"),
        repair="nft delete table inet own",
    ),
}

FAULTS = HOST | PROCESSES | LOGS | CONFIGURATION | GUESTS | SERVICES


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_first_and_its_repair_cures_it(patient: Patient, name: str) -> None:
    patient.suffer(FAULTS[name])
