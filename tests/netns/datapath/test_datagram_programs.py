"""DNS, NTP and syslog through UDP services, with Debian's own clients in a guest and servers on the host."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Guest, Hypervisor

SERVER = "10.11.12.13"


@pytest.fixture
def lab(hypervisor: Hypervisor) -> tuple[Hypervisor, Guest]:
    """A host with one bridge and a guest."""
    hypervisor.add_bridge("br0")
    hypervisor.ip(f"address replace {SERVER}/32 dev lo", "link set lo up")
    return hypervisor, hypervisor.add_guest("guest", "br0")


def needs(*programs: str) -> None:
    """Fail where a program is missing: `.ci/setup` installs all of them."""
    missing = [each for each in programs if shutil.which(each) is None]
    assert not missing, f"missing: {missing}; .ci/setup installs them"


def serve(host: Hypervisor, *entries: str) -> None:
    lines = "".join(f"- {{remote_addr: {SERVER}, {each}}}\n" for each in entries)
    config = host.write("/run/tproxy.yaml", f"tproxy:\n{lines}")
    host.tproxy("hook", "up", "--bridge", "br0", "--config", config)


def dig(guest: Guest, *arguments: str) -> str:
    command = ("dig", f"@{SERVICE_ADDRESS}", "+time=30", "+tries=2", *arguments)
    return guest.run(*command, timeout=100, check=False).stdout


UNBOUND = """\
server:
    directory: "/"
    chroot: ""
    username: ""
    pidfile: ""
    use-syslog: no
    logfile: ""
    verbosity: 1
    log-queries: yes
    do-daemonize: no
    do-ip6: no
    module-config: "iterator"
    interface: {address}@53
    interface: {address}@5353
    proxy-protocol-port: 5353
    access-control: 0.0.0.0/0 allow
    access-control: ::/0 allow
    max-udp-size: 65000
    edns-buffer-size: 65000
    local-zone: "example." static
    local-data: "host.example. A 192.0.2.7"
{large}
remote-control:
    control-enable: no
"""


def start_unbound(host: Hypervisor) -> subprocess.Popen[str]:
    needs("unbound", "dig")
    # An answer of some 12,000 bytes, in nine fragments.
    words = "".join(
        f"    local-data: 'large.example. TXT \"{number:04} {'x' * 240}\"'\n" for number in range(45)
    )
    config = host.write("/run/unbound.conf", UNBOUND.format(address=SERVER, large=words))
    server = host.popen("unbound", "-d", "-c", config, stderr=subprocess.STDOUT, stdout=subprocess.PIPE)
    for _ in eventually():
        if host.run("ss", "-Hlnu", f"src {SERVER}").stdout.count(":53") >= 2:
            break
    return server


def test_dig_gets_answers_of_unbound_by_udp_and_tcp_small_and_large(lab: tuple[Hypervisor, Guest]) -> None:
    host, guest = lab
    start_unbound(host)
    serve(host, "remote_port: 53, protocol: [tcp, udp]")
    assert "192.0.2.7" in dig(guest, "+short", "host.example")
    assert "192.0.2.7" in dig(guest, "+short", "+tcp", "host.example")
    assert "status: NXDOMAIN" in dig(guest, "none.example")
    large = dig(guest, "+bufsize=32000", "+ignore", "large.example", "TXT")
    assert large.count("x" * 240) == 45
    assert "(UDP)" in large


def test_unbound_learns_by_the_proxy_header_who_is_asking(lab: tuple[Hypervisor, Guest]) -> None:
    host, guest = lab
    server = start_unbound(host)
    serve(host, "service_port: 53, remote_port: 5353, protocol: [tcp, udp], proxy_protocol: v2")
    for way in ("+notcp", "+notcp", "+tcp"):
        assert "192.0.2.7" in dig(guest, "+short", way, "host.example")
    server.terminate()
    assert server.stdout is not None
    assert server.stdout.read().count(f"info: {guest.address} host.example. A IN") == 3


def test_chronyd_in_a_guest_gets_the_time_of_a_real_chronyd(lab: tuple[Hypervisor, Guest]) -> None:
    needs("chronyd")
    host, guest = lab
    lines = "local stratum 3\nallow all\ncmdport 0\npidfile /run/chronyd.pid\nbindcmdaddress /\n"
    config = host.write("/run/chrony.conf", f"{lines}bindaddress {SERVER}\n")
    host.popen("chronyd", "-u", "root", "-x", "-d", "-f", config)
    for _ in eventually():
        if ":123 " in host.run("ss", "-Hlnu", f"src {SERVER}").stdout:
            break
    serve(host, "remote_port: 123, protocol: udp, name: ntp")
    server = f"server {SERVICE_ADDRESS} iburst maxsamples 1"
    asked = guest.run(
        *("chronyd", "-Q", "-u", "root", "-t", "60", "cmdport 0", "pidfile /run/asker.pid", server),
        *("bindcmdaddress /",),
        check=False,
        timeout=100,
    )
    assert asked.returncode == 0, asked.stderr
    assert "System clock wrong by" in asked.stdout + asked.stderr


def test_lines_of_logger_in_a_guest_arrive_at_a_real_rsyslogd(lab: tuple[Hypervisor, Guest]) -> None:
    needs("rsyslogd", "logger")
    host, guest = lab
    lines = (
        'module(load="imudp")\n'
        f'input(type="imudp" address="{SERVER}" port="514")\n'
        'global(workDirectory="/run" maxMessageSize="64k")\n'
        '*.* action(type="omfile" file="/run/received.log")\n'
    )
    config = host.write("/run/rsyslog.conf", lines)
    host.popen("rsyslogd", "-n", "-f", config, "-i", "/run/rsyslogd.pid")
    for _ in eventually():
        if ":514 " in host.run("ss", "-Hlnu", f"src {SERVER}").stdout:
            break
    serve(host, "remote_port: 514, protocol: udp, name: syslog")
    command = ("logger", "--udp", "--server", SERVICE_ADDRESS, "--port", "514", "--tag", "guest")
    guest.run(*command, "hello from a guest")
    guest.run(*command, "--size", "30000", "y" * 20000)
    for _ in eventually():
        received = host.path("/run/received.log")
        if received.exists() and "y" * 20000 in received.read_text():
            break
    assert "guest hello from a guest" in host.path("/run/received.log").read_text()
