"""The host of a peer: a stand-in hypervisor with a bridge, a guest, and the same endpoints for all peers.

Each peer has a host of its own, so that none pays for another's rules. The endpoints are nginx, with bodies
of fixed sizes, and iperf3.
"""

from __future__ import annotations

from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Guest, Hypervisor
from tproxy.names import BridgeNames

BRIDGE = "br0"
NAMES = BridgeNames(BRIDGE)
ENDPOINT = "10.11.12.13"
HTTP_PORT, BULK_PORT = 8080, 5201
PORTS = (HTTP_PORT, BULK_PORT)


def ports_of(endpoints: int) -> list[int]:
    """The ports of so many endpoints, each with one for HTTP and one for bulk."""
    return [port + number for number in range(endpoints) for port in PORTS]


# What nginx answers at /<bytes>.
BODIES = (1, 1024, 65536)

# Connections stay open for as long as the benchmark takes. There is no access log, since its cost would be
# measured too. The largest body is a file, as on a real server: nginx limits bodies in its configuration.
_NGINX = """
worker_processes 1;
worker_rlimit_nofile 20000;
pid /run/nginx{number}.pid;
error_log /var/log/nginx.log;
events {{ worker_connections 18000; }}
http {{
    access_log off;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    sendfile on;
    open_file_cache max=10 inactive=1h;
    client_body_temp_path /run/nginx-body;
    proxy_temp_path /run/nginx-proxy;
    fastcgi_temp_path /run/nginx-fastcgi;
    uwsgi_temp_path /run/nginx-uwsgi;
    scgi_temp_path /run/nginx-scgi;
    server {{
        listen {address}:{port} backlog=4096;
        root /run/www;
        location = /{small} {{ return 200 "{small_body}"; }}
        location = /{medium} {{ return 200 "{medium_body}"; }}
    }}
}}
"""

# wrk's own report rounds, and varies its units; this one prints microseconds.
REPORT = "/run/report.lua"
_REPORT_LUA = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def furnish(host: Hypervisor) -> Guest:
    """Add a bridge and a guest; ``add_endpoints`` adds the endpoints."""
    host.add_bridge(BRIDGE)
    return add_loader(host, "guest", BRIDGE)


def add_loader(host: Hypervisor, name: str, bridge: str, address: str = "10.0.0.5/24") -> Guest:
    """Add a guest in which load generators can run."""
    guest = host.add_guest(name, bridge, address)
    # The side that closes first keeps its port for a minute, and this guest opens many connections.
    guest.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535")
    host.write(REPORT, _REPORT_LUA)
    return guest


def add_endpoints(
    host: Hypervisor, address: str = ENDPOINT, netns: str | None = None, *, count: int = 1
) -> None:
    """Start nginx and iperf3 on an address: ``count`` of each, on ports that follow one another.

    Without ``netns`` the address is added to the host's lo.
    """
    if netns is None:
        host.ip(f"address add {address}/32 dev lo")
    small, medium, large = BODIES
    host.write(f"/run/www/{large}", "x" * large)
    for number in range(count):
        config = _NGINX.format(
            number=number,
            address=address,
            port=HTTP_PORT + number,
            small=small,
            small_body="x" * small,
            medium=medium,
            medium_body="x" * medium,
        )
        host.run("nginx", "-c", host.write(f"/run/nginx{number}.conf", config), netns=netns)
        bulk = str(BULK_PORT + number)
        host.run("iperf3", "--server", "--daemon", "--bind", address, "--port", bulk, netns=netns)


def add_relay_namespace(host: Hypervisor, bridge: str = BRIDGE, name: str = "relay") -> str:
    """Add a namespace on the bridge with the service address, for peers that do not make their own."""
    host.add_guest(name, bridge, f"{SERVICE_ADDRESS}/32", route=False)
    host.ip("route add default dev eth0 scope link", netns=name)
    return name
