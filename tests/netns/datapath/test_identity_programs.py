"""Programs of Debian that take the PROXY header: HAProxy, nginx and squid (docs/identity.md)."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress

import pytest

from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest, Hypervisor

PATH = "/usr/sbin:/usr/bin"
ENDPOINT = "10.11.12.13"
FILE = "/run/tproxy.yaml"
WEB, PROXY = 8080, 3128
HOME = "/run/program"

HAPROXY = f"""
defaults
    mode http
    timeout client 60s
frontend guests
    bind {ENDPOINT}:{WEB} accept-proxy
    log stdout format raw local0
    log-format "%ci:%cp %[fc_pp_unique_id]"
    http-request return status 200 content-type text/plain string hello
"""

NGINX = f"""
daemon off;
master_process off;
pid {HOME}/pid;
error_log {HOME}/error.log;
events {{}}
http {{
    log_format caller '$proxy_protocol_addr:$proxy_protocol_port';
    access_log {HOME}/access.log caller;
    client_body_temp_path {HOME}/body;
    proxy_temp_path {HOME}/proxy;
    fastcgi_temp_path {HOME}/fastcgi;
    uwsgi_temp_path {HOME}/uwsgi;
    scgi_temp_path {HOME}/scgi;
    server {{
        listen {ENDPOINT}:{WEB} proxy_protocol;
        return 200 "hello";
    }}
}}
"""

# An external ACL is asked with the port of the caller's bridge, and admits one.
SQUID = f"""
http_port {ENDPOINT}:{PROXY} require-proxy-header
acl hypervisor src {ENDPOINT}/32
proxy_protocol_access allow hypervisor
external_acl_type admitted ttl=0 children-max=1 %{{228}}proxy_protocol::>h /bin/sh {HOME}/admitted
acl admitted external admitted
http_access allow admitted
http_access deny all
logformat caller %>a %{{224}}proxy_protocol::>h %{{227}}proxy_protocol::>h %{{228}}proxy_protocol::>h %>Hs
access_log stdio:{HOME}/access.log caller
cache deny all
pid_filename {HOME}/pid
cache_log {HOME}/cache.log
coredump_dir {HOME}
visible_hostname node7
shutdown_lifetime 0 seconds
pinger_enable off
netdb_filename none
max_filedescriptors 1024
"""

ADMITTED = """
while read -r port rest; do
    case $port in
        vnet0) echo OK ;;
        *) echo ERR ;;
    esac
done
"""


class Network:
    """Bridge br0 of the network blue with two guests, and a program as the endpoint."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.hypervisor = hypervisor
        hypervisor.ip(f"address replace {ENDPOINT}/32 dev lo")
        entries = (f"{{remote_addr: {ENDPOINT}, remote_port: {port}}}" for port in (WEB, PROXY))
        hypervisor.write(FILE, f"tproxy_proxy_protocol: v2\ntproxy: [{', '.join(entries)}]\n")
        hypervisor.add_bridge("br0")
        hypervisor.tproxy("hook", "up", "--bridge", "br0", "--network", "blue", "--config", FILE)
        self.guests = [
            hypervisor.add_guest("admitted", "br0", "10.0.0.5/24"),
            hypervisor.add_guest("other", "br0", "10.0.0.6/24"),
        ]

    def write(self, name: str, text: str) -> str:
        return self.hypervisor.write(f"{HOME}/{name}", text)

    def start(self, *argv: str) -> None:
        """Start the program, whose output goes to a file."""
        self.hypervisor.popen("sh", "-c", f'exec "$@" >{HOME}/output 2>&1', "sh", *argv)

    def output(self, name: str) -> list[str]:
        path = self.hypervisor.path(f"{HOME}/{name}")
        return path.read_text().splitlines() if path.exists() else []

    def await_answer(self, guest: Guest) -> None:
        for _ in eventually():
            with suppress(ProcessError):
                if guest.get(SERVICE_ADDRESS, WEB) == "hello":
                    return

    def log(self) -> str:
        return self.hypervisor.path("/var/log/one_tproxy.log").read_text()


@pytest.fixture
def network(hypervisor: Hypervisor) -> Network:
    return Network(hypervisor)


@pytest.fixture(autouse=True)
def programs() -> None:
    missing = [each for each in ("haproxy", "nginx", "squid") if shutil.which(each, path=PATH) is None]
    if missing:
        reason = f"needs {', '.join(missing)}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def test_haproxy_logs_the_guest_and_the_id_of_our_log(network: Network) -> None:
    network.start("/usr/sbin/haproxy", "-db", "-f", network.write("haproxy.cfg", HAPROXY))
    for guest in network.guests:
        network.await_answer(guest)
    for _ in eventually():
        if " id=" in network.log() and len(network.output("output")) >= 2:
            break
    logged = [line for line in network.output("output") if re.match(r"10\.0\.0\.[56]:", line)]
    assert {line.partition(":")[0] for line in logged} == {guest.address for guest in network.guests}
    for line in logged:
        caller, connection = line.split()
        for _ in eventually():
            if re.search(rf"guest={caller} .* id={connection} ", network.log()):
                break


def test_nginx_logs_the_guest(network: Network) -> None:
    network.start("/usr/sbin/nginx", "-p", HOME, "-c", network.write("nginx.conf", NGINX))
    for guest in network.guests:
        network.await_answer(guest)
    for _ in eventually():
        callers = {line.partition(":")[0] for line in network.output("access.log")}
        if callers == {guest.address for guest in network.guests}:
            break


def test_squid_logs_network_mac_and_port_and_decides_by_them(network: Network) -> None:
    network.write("admitted", ADMITTED)
    network.hypervisor.run("chown", "-R", "proxy", HOME)
    network.hypervisor.add_endpoint("10.11.12.14", 80, "page")
    network.start("/usr/sbin/squid", "-N", "-f", network.write("squid.conf", SQUID))
    admitted, refused = network.guests
    fetch = (
        "import urllib.request as u, sys; p = u.ProxyHandler({'http': sys.argv[1]}); "
        "print(u.build_opener(p).open(sys.argv[2]).read().decode())"
    )
    ask = ("python3", "-c", fetch, f"http://{SERVICE_ADDRESS}:{PROXY}", "http://10.11.12.14/")
    for _ in eventually():
        if admitted.run(*ask, check=False).stdout == "page\n":
            break
    assert "403" in refused.run(*ask, check=False).stderr
    for guest, status in ((admitted, "200"), (refused, "403")):
        mac = json.loads(guest.run("ip", "-j", "link", "show", "eth0").stdout)[0]["address"]
        for _ in eventually():
            if f"{guest.address} blue {mac} {guest.port} {status}" in network.output("access.log"):
                break
