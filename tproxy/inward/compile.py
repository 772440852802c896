"""The gateway's files for HAProxy, from routes and options: its configuration and its maps. Pure.

HAProxy knows domains and ids of routes, and no address of a guest. A route's id goes to ``in.sock`` as the
unique id of the PROXY header. Maps change while HAProxy runs (``runtime``), so the configuration depends on
the options alone.

Names are matched whole. A route for ``*.example.com`` gets what ends with ``.example.com`` and is no other
route's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tproxy.config.routes import TERMINATE, RouteEntry
from tproxy.routes import OF_TLS

CONFIGURATION = "haproxy.cfg"
CERTIFICATES = "certificates.list"
ADMIN = "admin.sock"
PID_FILE = "haproxy.pid"

# By file: names whose TLS the guest ends, names whose TLS the gateway ends, and names at port 80.
MAPS = ("passthrough", "terminate", "host")
PORTS = "ports.map"  # ports of the range without names


_NAMES = (
    *("http_port", "https_port", "address", "ports", "certificates", "user"),
    *("most_per_client", "rate_per_client"),
)


class Options(NamedTuple):
    """What an operator says of the gateway. ``address`` is "" for all addresses, of IPv4 and IPv6."""

    http_port: int = 80
    https_port: int = 443
    address: str = ""
    ports: str = ""  # a range such as 10000-10099, for routes without names; "" for none
    certificates: str = ""  # a directory of PEM files, each with certificate and key; "": no TLS ends here
    user: str = "haproxy"
    most: int = 10_000  # connections
    most_per_client: int = 500
    rate_per_client: int = 2000  # new ones in 10 s

    def arguments(self, config: str) -> list[str]:
        """The options of `tproxy gateway` that stand for these."""
        words = [f"--config={os.path.abspath(config)}"]
        for name in _NAMES:
            value = getattr(self, name)
            if value != self._field_defaults[name]:
                words.append(f"--{name.replace('_', '-')}={value}")
        return words


def maps(entries: Iterable[RouteEntry], now: float) -> dict[str, str]:
    """Return the text of each map, by file."""
    lines: dict[str, list[str]] = {f"{each}{kind}.map": [] for each in MAPS for kind in ("", ".wild")}
    lines[PORTS] = []
    for entry in entries:
        if 0 < entry.expires <= now:
            continue
        if entry.gateway_port:
            lines[PORTS].append(f"{entry.gateway_port} {entry.id}")
        if not entry.domain:
            continue
        domain = entry.domain.lower()
        wild = domain.startswith("*.")
        kind, name = (".wild", domain[1:]) if wild else ("", domain)
        of_tls = entry.id + OF_TLS if entry.port_tls else entry.id
        tls = "terminate" if entry.tls == TERMINATE else "passthrough"
        lines[f"{tls}{kind}.map"].append(f"{name} {entry.id if tls == 'terminate' else of_tls}")
        lines[f"host{kind}.map"].append(f"{name} {entry.id}")
    return {file: "".join(f"{each}\n" for each in sorted(found)) for file, found in lines.items()}


def certificates(paths: Iterable[str]) -> str:
    """Return the text of the list of certificates."""
    return "".join(f"{each}\n" for each in sorted(paths))


def configuration(options: Options, folder: str, inlet: str, name: str) -> str:
    """Return HAProxy's configuration.

    ``folder`` has the maps, ``inlet`` is the directory of in.sock, and ``name`` is no other gateway's.
    """

    def bind(port: int | str) -> str:
        if options.address:
            return f"{options.address}:{port}"
        return f"0.0.0.0:{port}\n    bind :::{port} v6only"

    def routed(name_of: str, map_: str, rule: str = "http-request") -> str:
        whole = f"{name_of},map_str({folder}/{map_}.map)"
        end = f"{name_of},map_end({folder}/{map_}.wild.map)"
        return f"{rule} set-var(txn.route) {whole}\n    {rule} set-var(txn.route) {end} if {unknown}"

    limits = f"""\
    tcp-request connection track-sc0 src table clients
    tcp-request connection reject if {{ sc0_conn_cur gt {options.most_per_client} }}
    tcp-request connection reject if {{ sc0_conn_rate gt {options.rate_per_client} }}"""
    unknown = "!{ var(txn.route) -m found }"
    host = "req.hdr(host),field(1,:),lower"
    sni = "req.ssl_sni,lower"
    server = "server inlet unix@/in.sock send-proxy-v2 proxy-v2-options unique-id"
    text = f"""\
# Made by `tproxy gateway up`, which writes it anew.
global
    maxconn {options.most}
    user {options.user}
    group {options.user}
    chroot {inlet}
    stats socket {folder}/{ADMIN} mode 600 level admin expose-fd listeners
    ssl-default-bind-options ssl-min-ver TLSv1.2
    log stderr format raw daemon notice

defaults
    log global
    timeout connect 310s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
    timeout client-fin 5m
    timeout http-request 10s
    unique-id-format %[var(txn.route)]

frontend http
    bind {bind(options.http_port)}
    mode http
{limits}
    {routed(host, "host")}
    http-request return status 404 content-type text/plain string "no such site" if {unknown}
    http-request set-header X-Forwarded-Proto http
    option forwardfor
    default_backend guests_http

frontend https
    bind {bind(options.https_port)}
    mode tcp
{limits}
    tcp-request inspect-delay 5s
    tcp-request content reject if !{{ req.ssl_hello_type 1 }} WAIT_END
    {routed(sni, "passthrough", "tcp-request content")}
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    use_backend guests_tcp if {{ var(txn.route) -m found }}
    default_backend {"terminated" if options.certificates else "unknown"}

backend clients
    stick-table type ipv6 size 200k expire 30s store conn_cur,conn_rate(10s)

backend guests_http
    mode http
    http-reuse never
    {server}

backend guests_tcp
    mode tcp
    {server}

backend unknown
    mode tcp
    tcp-request content reject
"""
    if options.ports:
        text += f"""
frontend ports
    bind {bind(options.ports)}
    mode tcp
{limits}
    tcp-request content set-var(txn.route) dst_port,map_str({folder}/{PORTS})
    tcp-request content reject if {unknown}
    default_backend guests_tcp
"""
    if options.certificates:
        text += f"""
backend terminated
    mode tcp
    server tls abns@{name} send-proxy-v2

frontend tls
    bind abns@{name} accept-proxy ssl crt-list {folder}/{CERTIFICATES} alpn h2,http/1.1 strict-sni
    mode http
    {routed(host, "terminate")}
    http-request return status 421 content-type text/plain string "no such site" if {unknown}
    http-request set-header X-Forwarded-Proto https
    option forwardfor
    default_backend guests_http
"""
    return text


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Return the texts that are others now, by file."""
    return {file: text for file, text in after.items() if before.get(file) != text}
