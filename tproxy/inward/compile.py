"""HAProxy's configuration, from the options alone: routes are in maps (``maps``). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tproxy.inward import maps
from tproxy.inward.options import Options
from tproxy.process import inward_socket

CONFIGURATION = "haproxy.cfg"
CERTIFICATES = "certificates.list"
ADMIN = "admin.sock"
PID_FILE = "haproxy.pid"

# Challenges of an issuer go to lego at this server, which has a port only while lego runs (``acme``).
CHALLENGED = "challenged/lego"

# The table of connections that were refused, and its keys: no TLS, or no name in the first record of the
# ClientHello, which may have several; a name or port without a route; a client with too many connections.
REFUSALS = "refusals"
NO_NAME, NO_ROUTE, TOO_MANY = "no_name", "no_route", "too_many"

# The tables of how much routes were used, by id, for each kind (``usage``): a request at port 80, one inside
# TLS that ends here, TLS that is passed through, and a port without names.
USES = "uses"
HTTP, HTTPS, TLS, PORT = KINDS = ("http", "https", "tls", "port")

_KNOWN = "{ var(txn.route) -m found }"
_UNKNOWN = f"!{_KNOWN}"
_HOST = "req.hdr(host),field(1,:),lower"
_HELLO = "{ req.ssl_hello_type 1 }"
_TCP = "tcp-request content"
_REQUEST = "http-request"


def certificates(paths: Iterable[str]) -> str:
    """Return the text of the list of certificates."""
    return "".join(f"{each}\n" for each in sorted(paths))


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Return the texts that are others now, by file."""
    return {file: text for file, text in after.items() if before.get(file) != text}


def configuration(options: Options, folder: str, inlet: str, name: str) -> str:
    """Return HAProxy's configuration.

    ``folder`` has the maps, ``inlet`` is the directory of in.sock, and ``name`` is no other gateway's.
    """
    challenge = (
        f"{{ path_beg /.well-known/acme-challenge/ }} {{ {_HOST},{_map(folder, 'challenges')} -m found }}"
    )
    sections = [
        _general(options, folder, inlet),
        [
            "frontend http",
            *_binds(options, options.http_port),
            "mode http",
            *_limits(options),
            *_find(folder, _REQUEST, _HOST, "host"),
            *_answered(folder, 404, HTTP),
            f"use_backend challenged if {challenge}",
            *_use("http"),
        ],
        [
            "frontend https",
            *_binds(options, options.https_port),
            "mode tcp",
            *_limits(options),
            "tcp-request inspect-delay 5s",
            *_refuse(NO_NAME, f"!{_HELLO} WAIT_END"),
            *_refuse(NO_NAME, f"{_HELLO} !{{ req.ssl_sni -m found }}"),
            *_find(folder, _TCP, "req.ssl_sni,lower", "passthrough"),
            *_find(folder, _TCP, "req.ssl_sni,lower", "terminate", "txn.ended"),
            *_refuse(NO_ROUTE, f"{_HELLO} {_UNKNOWN} !{{ var(txn.ended) -m found }}"),
            *_lead(folder, _TCP, TLS),
            f"{_TCP} accept if {_HELLO}",
            f"use_backend ended if {_UNKNOWN}",
            *_use("tcp"),
        ],
        ["backend ended", "mode tcp", f"server tls abns@{name} send-proxy-v2"],
        [
            "frontend tls",
            f"bind abns@{name} accept-proxy ssl crt-list {folder}/{CERTIFICATES} alpn h2,http/1.1 strict-sni",
            "mode http",
            *_find(folder, _REQUEST, _HOST, "terminate"),
            *_answered(folder, 421, HTTPS),
            *_use("http"),
        ],
        *([_ports(options, folder)] if options.ports else []),
        *_backends(),
    ]
    return "\n\n".join("\n    ".join(each) for each in sections) + "\n"


def _general(options: Options, folder: str, inlet: str) -> list[str]:
    return [
        "# Made by `tproxy gateway up`, which writes it anew.\nglobal",
        f"maxconn {options.most}",
        f"user {options.user}",
        f"group {options.user}",
        f"chroot {inlet}",
        f"stats socket {folder}/{ADMIN} mode 600 level admin expose-fd listeners",
        "ssl-default-bind-options ssl-min-ver TLSv1.2",
        "log stderr format raw daemon notice\n\ndefaults",
        "log global",
        "timeout connect 310s",
        "timeout client 1h",
        "timeout server 1h",
        "timeout tunnel 1h",
        "timeout client-fin 5m",
        "timeout http-request 10s",
        "unique-id-format %[var(txn.route)]",
    ]


def _ports(options: Options, folder: str) -> list[str]:
    return [
        "frontend ports",
        *_binds(options, options.ports),
        "mode tcp",
        *_limits(options),
        f"{_TCP} set-var(txn.route) dst_port,map_str({folder}/{maps.BY_PORT})",
        *_refuse(NO_ROUTE, _UNKNOWN),
        *_lead(folder, _TCP, PORT),
        *_use("tcp"),
    ]


def _backends() -> list[list[str]]:
    """The backends: each target's for connections and for requests, and tables."""
    inlet = "server inlet unix@/in.sock send-proxy-v2 proxy-v2-options unique-id"
    servers = {
        maps.GUESTS: inlet,
        maps.NODES: inlet.replace("in.sock", inward_socket.NODES),
        maps.ADDR: "server any 0.0.0.0:0",
        maps.TOLD: "server any 0.0.0.0:0 send-proxy-v2",
    }
    found = []
    for target, server in servers.items():
        for mode, rule in (("tcp", _TCP), ("http", _REQUEST)):
            dialled = target in (maps.ADDR, maps.TOLD)
            found.append(
                [
                    f"backend {target}_{mode}",
                    f"mode {mode}",
                    *(["http-reuse never"] if mode == "http" else []),
                    *(["timeout connect 5s"] if dialled else []),
                    *([f"{rule} set-dst var(txn.led),field(3,/)"] if dialled else []),
                    *([f"{rule} set-dst-port var(txn.led),field(4,/)"] if dialled else []),
                    server,
                ]
            )
    clients = "stick-table type ipv6 size 200k expire 30s store conn_cur,conn_rate(10s)"
    return [
        *found,
        ["backend challenged", "mode http", f"server {CHALLENGED.rpartition('/')[2]} 127.0.0.1:1 disabled"],
        ["backend clients", clients],
        [f"backend {REFUSALS}", "stick-table type string len 16 size 16 store gpc0"],
        *(
            [
                f"backend {USES}_{kind}",
                "stick-table type string len 80 size 100k store conn_cnt,bytes_in_cnt,bytes_out_cnt",
            ]
            for kind in KINDS
        ),
    ]


def _binds(options: Options, port: int | str) -> list[str]:
    if options.address:
        return [f"bind {options.address}:{port}"]
    return [f"bind 0.0.0.0:{port}", f"bind :::{port} v6only"]


def _limits(options: Options) -> list[str]:
    most, rate = options.most_per_client, options.rate_per_client
    too_many = (f"{{ sc0_conn_cur gt {most} }}", f"{{ sc0_conn_rate gt {rate} }}")
    rule = "tcp-request connection"
    return [
        f"{rule} track-sc0 src table clients",
        *(line for each in too_many for line in _refuse(TOO_MANY, each, rule)),
    ]


def _refuse(key: str, condition: str, rule: str = _TCP) -> list[str]:
    """Count a connection, and end it."""
    return [
        f"{rule} track-sc1 str({key}) table {REFUSALS} if {condition}",
        f"{rule} sc-inc-gpc0(1) if {condition}",
        f"{rule} reject if {condition}",
    ]


def _find(folder: str, rule: str, name: str, kind: str, variable: str = "txn.route") -> list[str]:
    """Look a name up, first whole, and then as one below a wildcard."""
    whole = f"{name},{_map(folder, kind)}"
    below = f"{name},map_end({folder}/{kind}.wild.map)"
    return [
        f"{rule} set-var({variable}) {whole}",
        f"{rule} set-var({variable}) {below} if !{{ var({variable}) -m found }}",
    ]


def _lead(folder: str, rule: str, kind: str) -> list[str]:
    """Count the use of a route, and look up what it leads to, unless it has expired.

    Each rule costs time with each request: a route that leads to a guest needs few.
    """
    led = "{ var(txn.led) -m found }"
    expired = f"{led} !{{ var(txn.expires) -m str 0 }} {{ date,sub(txn.expires) ge 0 }}"
    return [
        f"{rule} track-sc2 var(txn.route) table {USES}_{kind} if {_KNOWN}",
        f"{rule} set-var(txn.led) var(txn.route),{_map(folder, 'leads')}",
        f"{rule} set-var(txn.expires) var(txn.led),field(2,/) if {led}",
        f"{rule} {'reject' if rule == _TCP else 'return status 404'} if {expired}",
    ]


def _answered(folder: str, status: int, scheme: str) -> list[str]:
    """Rules for requests whose route was looked up."""
    return [
        f'{_REQUEST} return status {status} content-type text/plain string "no such site" if {_UNKNOWN}',
        *_lead(folder, _REQUEST, scheme),
        f"{_REQUEST} set-header X-Forwarded-Proto {scheme}",
        "option forwardfor",
    ]


def _use(mode: str) -> list[str]:
    return [
        f"use_backend %[var(txn.led),field(1,/)]_{mode} if {{ var(txn.led) -m found }}",
        f"default_backend {maps.GUESTS}_{mode}",
    ]


def _map(folder: str, kind: str) -> str:
    return f"map_str({folder}/{kind}.map)"
