"""The way in: ``make bench-inward``, or ``python -m bench.inward [--rounds N] [--seconds N]``.

Prints a table with goals. A client outside reaches nginx and iperf3 in a guest, in turns by

* tproxy: HAProxy, ``in.sock``, a worker, and a socket that the relay has dialled
* HAProxy straight to the guest: the same rules, on a host that has an address in the guest's network
* ssh -R alone: an sshd on the host, and a reverse tunnel that the guest holds open

Requests are HTTP by the Host header (ssh knows no names: there it is a port), on 32 connections of wrk that
stay, and with a new connection for each request. Bulk is one stream of iperf3 through a port.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from bench import claims
from bench.__main__ import check_surroundings
from bench.axes import Goal
from bench.claims import Claim, Figure
from bench.results import Results
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import PATIENCE, Hypervisor

GUEST, HOST, GATEWAY = "10.0.0.5", "10.0.0.1", "198.51.100.1"
NAME = "page.example.com"
PAGE, BULK = 80, 5201  # ports of the guest
CONNECTIONS = 32

TPROXY, STRAIGHT, SSH = "tproxy", "HAProxy straight", "ssh -R"
# The port of the host for pages and the one for bulk, by peer.
PORTS = {TPROXY: (80, 10001), STRAIGHT: (81, 10101), SSH: (82, 10201)}

KEPT, NEW, UP, DOWN = "requests", "new connections", "up", "down"
CLAIMS = tuple(
    Claim(f"{title}, by {other}", Figure(TPROXY, axis), goal, Figure(other, axis), unit)
    for other, requests, bulk in ((STRAIGHT, Goal("≥", 0.6), Goal("≥", 0.8)), (SSH, None, None))
    for axis, title, goal, unit in (
        (KEPT, "requests on connections that stay", requests, "/s"),
        (NEW, "a connection for each request", None, "/s"),
        (UP, "bulk to the guest", bulk, " Gbit/s"),
        (DOWN, "bulk from the guest", bulk, " Gbit/s"),
    )
)

_NGINX = f"""
worker_processes 1;
pid /run/nginx-inward.pid;
error_log /var/log/nginx-inward.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    server {{ listen {GUEST}:{PAGE}; location / {{ return 200 "hello"; }} }}
}}
"""

_CONFIG = f"""
tproxy_routes:
- {{id: page, network: blue, guest_addr: {GUEST}, port: {PAGE}, domain: {NAME}}}
- {{id: bulk, network: blue, guest_addr: {GUEST}, port: {BULK}, gateway_port: {PORTS[TPROXY][1]}}}
"""

# As `tproxy gateway up` writes it, but for the server.
_HAPROXY = f"""
global
    maxconn 4000
    user haproxy
    group haproxy
defaults
    timeout connect 310s
    timeout client 1h
    timeout server 1h
    timeout http-request 10s
frontend http
    bind 0.0.0.0:{PORTS[STRAIGHT][0]}
    mode http
    tcp-request connection track-sc0 src table clients
    tcp-request connection reject if {{ sc0_conn_cur gt 1000 }}
    http-request set-var(txn.route) req.hdr(host),field(1,:),lower,map_str(/run/host.map)
    http-request return status 404 if !{{ var(txn.route) -m found }}
    http-request set-header X-Forwarded-Proto http
    option forwardfor
    default_backend guest
frontend ports
    bind 0.0.0.0:{PORTS[STRAIGHT][1]}
    mode tcp
    tcp-request connection track-sc0 src table clients
    default_backend bulk
backend guest
    mode http
    http-reuse never
    server guest {GUEST}:{PAGE}
backend bulk
    mode tcp
    server guest {GUEST}:{BULK}
backend clients
    stick-table type ipv6 size 200k expire 30s store conn_cur,conn_rate(10s)
"""

_SSHD = f"""
ListenAddress {HOST}:2222
HostKey /run/ssh/host
AuthorizedKeysFile /run/ssh/guest.pub
GatewayPorts yes
StrictModes no
UsePAM no
PidFile none
PermitRootLogin yes
"""


class Bed:
    """A stand-in host with a guest, a client, and the three ways."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        host.ip(
            *("netns add client", "link add out0 type veth peer name eth0 netns client"),
            *(f"address add {GATEWAY}/24 dev out0", "link set out0 up"),
        )
        host.ip(
            *("link set lo up", "address add 198.51.100.2/24 dev eth0", "link set eth0 up"), netns="client"
        )
        host.add_bridge("br0")
        host.add_guest("guest", "br0", f"{GUEST}/24")
        host.ip(f"address add {HOST}/24 dev br0")
        host.run("nginx", "-c", host.write("/run/nginx-inward.conf", _NGINX), netns="guest")
        host.popen(
            "iperf3",
            "--server",
            "--bind",
            GUEST,
            "--port",
            str(BULK),
            "--logfile",
            "/dev/null",
            netns="guest",
        )
        host.write("/run/tproxy.yaml", _CONFIG)
        where = {"TPROXY_CONFIG": "/run/tproxy.yaml"}
        host.tproxy("hook", "up", "--bridge", "br0", "--network", "blue", env=where)
        limits = ("--most-per-client", "1000", "--rate-per-client", "100000000")
        host.tproxy("gateway", "up", "--ports", "10001-10002", *limits, env=where)
        host.write("/run/host.map", f"{NAME} page\n")
        host.run("/usr/sbin/haproxy", "-D", "-f", host.write("/run/straight.cfg", _HAPROXY))
        self._start_ssh()
        for pair in PORTS.values():
            for port in pair:
                self._await(port)

    def _start_ssh(self) -> None:
        self.host.write("/run/ssh/sshd_config", _SSHD)
        self.host.run("mkdir", "-p", "/run/sshd")
        for name in ("host", "guest"):
            self.host.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"/run/ssh/{name}")
        self.host.popen("/usr/sbin/sshd", "-D", "-f", "/run/ssh/sshd_config")
        self._await(2222)
        page, bulk = PORTS[SSH]
        self.host.popen(
            *("ssh", "-N", "-p", "2222", "-i", "/run/ssh/guest", "-o", "StrictHostKeyChecking=no"),
            *("-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-F", "none"),
            *("-R", f"0.0.0.0:{page}:{GUEST}:{PAGE}", "-R", f"0.0.0.0:{bulk}:{GUEST}:{BULK}", f"root@{HOST}"),
            netns="guest",
        )

    def _await(self, port: int) -> None:
        """Return when somebody listens. Raises ProcessError."""
        deadline = time.monotonic() + PATIENCE
        while not self.host.run("ss", "-Hltn", f"sport = :{port}").stdout:
            if time.monotonic() > deadline:
                raise ProcessError(f"nobody listens on port {port}")
            time.sleep(0.1)

    def requests(self, peer: str, seconds: float, *, close: bool) -> float:
        """Return the requests a second that are answered with 200."""
        url = f"http://{GATEWAY}:{PORTS[peer][0]}/"
        words = ["wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{seconds:g}s", "-H", f"Host: {NAME}"]
        said = self.host.run(
            *words,
            *(["-H", "Connection: close"] if close else []),
            url,
            netns="client",
            timeout=seconds + PATIENCE,
        ).stdout
        if "Non-2xx" in said:
            raise ProcessError(f"{url} is not answered:\n{said}")
        line = next(line for line in said.splitlines() if line.startswith("Requests/sec:"))
        return float(line.split()[1])

    def bulk(self, peer: str, seconds: float, *, down: bool) -> float:
        """Return the gigabits a second of one stream."""
        port = str(PORTS[peer][1])
        words = ["iperf3", "--json", "--client", GATEWAY, "--port", port, "--time", f"{max(seconds, 1):.0f}"]
        done = self.host.run(
            *words, *(["--reverse"] if down else []), netns="client", check=False, timeout=seconds + PATIENCE
        )
        report = json.loads(done.stdout)
        if "error" in report:
            raise ProcessError(f"iperf3: {report['error']}")
        return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9


def jobs(bed: Bed, seconds: float) -> Iterator[tuple[str, str, Callable[[], float]]]:
    """Yield each peer and axis, with what measures it."""
    for axis, job in (
        (KEPT, partial(bed.requests, close=False)),
        (NEW, partial(bed.requests, close=True)),
        (UP, partial(bed.bulk, down=False)),
        (DOWN, partial(bed.bulk, down=True)),
    ):
        for peer in PORTS:
            yield peer, axis, partial(job, peer, seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench.inward", description="the way in, against peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args(arguments)
    check_surroundings()
    results = Results()
    with Hypervisor() as host:
        bed = Bed(host)
        for number in range(options.rounds + 1):  # in turns, and the first one only warms up
            for peer, axis, job in jobs(bed, options.seconds):
                figure = job()
                if number:
                    results.add(peer, {axis: figure})
                print(f"round {number}: {axis}: {peer}: {figure:,.2f}", file=sys.stderr)
    print(claims.table(results, CLAIMS))


if __name__ == "__main__":
    main()
