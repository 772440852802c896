"""Compiles the policy into squid's configuration. Pure: text in, text out.

Rules, limits and the mode are not compiled: the helper reads them by itself. What is here changes rarely:
ports, which inner addresses are allowed, and an authority for upstreams. Sources: squid.conf of squid 5,
/usr/share/doc/squid-common/squid.conf.documented.gz.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Network
from pathlib import Path

from tproxy.egress.layout import CALLER_HEADERS, SQUID_USER, Layout
from tproxy.egress.policy.addresses import INNER
from tproxy.egress.policy.rules import Policy
from tproxy.egress.squid import external_acl, rates
from tproxy.egress.squid.authority import MIRROR_NAME, Authority

# The names of notes by which the helper says who called, for logs and the mirror.
_CALLER_NOTES = (*CALLER_HEADERS.values(),)
_MAPPED = IPv6Network("::ffff:0:0/96")
_REFUSED = {f"is_{note}": note for note in (external_acl.BUSY, external_acl.UNRECORDED)}

PAGE = "ERR_TPROXY_DENIED"

# What squid denies without asking the helper, and what the client is told.
PAGES = {
    "inner": "the address of this host is one of this site, and the policy does not name it",
    "allowed_methods": "only GET and HEAD are allowed",
}
CERTIFICATE_HELPER = "/usr/lib/squid/security_file_certgen"


# Two squids may run beside each other: a new one, and one that ends its downloads (service.handover).
SLOTS = ("a", "b")

# Seconds for which a squid goes on with what is under way when another one has taken its place.
DRAIN = 3600


@dataclass(frozen=True)
class Surroundings:
    """What the configuration needs to know of the node besides the policy."""

    layout: Layout
    mirror: bool = True  # whether requests for official sites go to the mirror
    user: str = SQUID_USER
    hosts_file: str = "/etc/hosts"
    nameservers: tuple[str, ...] = ()  # none: those of /etc/resolv.conf
    cache_megabytes: int = 1000  # of each slot
    slot: str = SLOTS[0]
    own: frozenset[str] = frozenset()  # the node's own addresses, to which squid makes no connection
    python: str = field(default=sys.executable)


def compiled(policy: Policy, node: Surroundings) -> str:
    """Return the text of squid.conf."""
    parts = (_ports, _helpers, _access, _bumping, _routes, _limits, _cache, _log, _process)
    return "".join(f"{line}\n" for part in parts for line in (*part(policy, node), ""))


def certificates(node: Surroundings) -> Path:
    """Return the directory in which squid keeps the certificates that it has made.

    Each authority has one of its own: after a rotation, none of the old one's may be shown.
    """
    serial = Authority(node.layout.authority).load().serial_number
    return node.layout.state / "squid" / f"certificates-{serial:x}"


def cache(node: Surroundings) -> Path:
    """Return the directory of squid's own cache."""
    return node.layout.state / "squid" / f"cache-{node.slot}"


def pid_file(node: Surroundings) -> Path:
    return node.layout.run / f"squid-{node.slot}.pid"


def errors(node: Surroundings) -> Path:
    """Return the directory with our page; squid's own pages are found elsewhere."""
    return node.layout.run / "errors"


def _ports(policy: Policy, node: Surroundings) -> Iterator[str]:
    authority = Authority(node.layout.authority)
    bump = (
        f"ssl-bump tls-cert={authority.chain} tls-key={authority.key} generate-host-certificates=on "
        "dynamic_cert_mem_cache_size=4MB"
    )
    for port in policy.listen.proxy:
        name = f"{external_acl.BY_HEADER}{port}"
        yield f"http_port {policy.listen.address}:{port} require-proxy-header name={name} {bump}"
    if policy.clients:
        address = f"{policy.listen.clients_address}:{policy.listen.clients}"
        yield f"http_port {address} name={external_acl.BY_CLIENTS} {bump}"
    yield f"sslcrtd_program {CERTIFICATE_HELPER} -s {certificates(node)} -M 16MB"
    yield "sslcrtd_children 4 startup=1 idle=1"
    # The packet filter decides who may send a header, by the sender's user (service/guard.py). squid can look
    # at the address only.
    yield "acl this_host src 127.0.0.0/8 ::1/128"
    if not policy.listen.address.startswith("127."):
        yield f"acl this_host src {policy.listen.address}"
    yield "proxy_protocol_access allow this_host"
    yield "proxy_protocol_access deny all"


def _helpers(policy: Policy, node: Surroundings) -> Iterator[str]:
    # Nothing is remembered of an answer, so a change of the policy applies to the next request.
    yield (
        "external_acl_type judge concurrency=200 children-max=1 children-startup=1 queue-size=2000 "
        f"ttl=0 negative_ttl=0 grace=0 cache=0 {external_acl.FORMAT} "
        # By "env": squid tells a program only the end of its path, and Python would not find its modules.
        f"/usr/bin/env {node.python} -m tproxy.egress.squid.external_acl {node.layout.policy} "
        f"{node.layout.access_log} {node.layout.ledger_socket if node.mirror else '-'} {node.slot}"
    )
    for word in (external_acl.BY_HEADER, external_acl.BY_CLIENTS, external_acl.SPLICING):
        yield f"acl judged_{word} external judge {word}"


def _access(policy: Policy, node: Surroundings) -> Iterator[str]:
    yield f"acl from_clients myportname {external_acl.BY_CLIENTS}"
    yield "acl allowed_methods method GET HEAD CONNECT"
    yield "acl to_mirror note to mirror"
    yield "acl inner dst " + " ".join((*_inner(), *sorted(node.own)))
    for network in policy.inner:
        yield f"acl named_inner dst {network}"
    yield "http_access deny manager"
    yield "http_access deny !allowed_methods"
    # What is refused for now only gets another status than what is denied. The helper says ERR to all of it.
    yield f"acl refused note refused {external_acl.BUSY} {external_acl.UNRECORDED}"
    for name, note in _REFUSED.items():
        yield f"acl {name} note refused {note}"
    yield f"http_access deny from_clients !judged_{external_acl.BY_CLIENTS} !refused"
    yield f"http_access deny !from_clients !judged_{external_acl.BY_HEADER} !refused"
    for name in _REFUSED:
        yield f"http_access deny {name}"
    if node.mirror:
        yield "http_access allow to_mirror"
    # After name resolution. An ACL with an address matches when any address of the host does.
    yield f"http_access deny {'!named_inner ' if policy.inner else ''}inner"
    yield "http_access allow all"
    yield f"error_directory {errors(node)}"
    yield f"deny_info {PAGE} refused"
    for name in PAGES:
        yield f"deny_info {PAGE}_{name.upper()} {name}"
    yield f"deny_info 429:{PAGE} is_{external_acl.BUSY}"  # RFC 6585, 4
    yield f"deny_info 503:{PAGE} is_{external_acl.UNRECORDED}"
    yield "host_verify_strict on"
    yield "relaxed_header_parser off"
    yield "request_header_max_size 32 KB"
    yield "reply_header_max_size 64 KB"
    yield "request_body_max_size 1 KB"
    yield "request_timeout 30 seconds"
    yield "request_start_timeout 30 seconds"
    yield "client_idle_pconn_timeout 60 seconds"


def _inner() -> Iterator[str]:
    """Yield INNER as squid needs it: for squid, IPv4 is the part ::ffff:0:0/96 of IPv6."""
    for network in INNER:
        if isinstance(network, IPv6Network) and _MAPPED.subnet_of(network):
            yield from map(str, network.address_exclude(_MAPPED))
        else:
            yield str(network)


def _bumping(policy: Policy, node: Surroundings) -> Iterator[str]:
    # "bump" at the first step asks no site before the path is judged, and works without a network. Of a
    # tunnel the server name is read first.
    yield "acl tunnel note way tunnel"
    yield "acl first at_step SslBump1"
    yield "acl second at_step SslBump2"
    yield "ssl_bump peek first tunnel"
    yield f"ssl_bump splice second judged_{external_acl.SPLICING}"
    yield "ssl_bump terminate second"
    yield "ssl_bump bump all"
    authority = f" cafile={policy.upstream_ca}" if policy.upstream_ca else ""
    yield f"tls_outgoing_options min-version=1.2{authority}"
    yield "sslproxy_cert_error deny all"


def _routes(policy: Policy, node: Surroundings) -> Iterator[str]:
    for name in CALLER_HEADERS:
        yield f"request_header_access {name} deny all"
    if node.mirror:
        peer = node.layout.peer
        yield (
            f"cache_peer 127.0.0.1 parent {policy.listen.mirror} 0 name=mirror originserver no-query "
            "no-digest no-netdb-exchange connect-timeout=5 connect-fail-limit=1000 tls "
            f"tls-cafile={peer / 'ca.pem'} "
            f"sslcert={peer / 'squid.pem'} sslkey={peer / 'squid.key'} ssldomain={MIRROR_NAME}"
        )
        yield "cache_peer_access mirror allow to_mirror"
        yield "cache_peer_access mirror deny all"
        yield "never_direct allow to_mirror"
        for name, note in CALLER_HEADERS.items():
            yield f'request_header_add {name} "%#{{{note}}}note" to_mirror'
    yield "via off"
    yield "forwarded_for delete"
    yield f"hosts_file {node.hosts_file}"
    if node.nameservers:
        yield f"dns_nameservers {' '.join(node.nameservers)}"
    yield "connect_timeout 10 seconds"
    yield "forward_timeout 30 seconds"


def _limits(policy: Policy, node: Surroundings) -> Iterator[str]:
    """Yield a delay pool for each step of rates. In class 5 each guest has a bucket, by its tag."""
    yield f"delay_pools {len(rates.STEPS)}"
    for number, rate in enumerate(rates.STEPS, 1):
        yield f"acl rate{rate} note rate {rate}"
        yield f"delay_class {number} 5"
        yield f"delay_access {number} allow rate{rate}"
        yield f"delay_access {number} deny all"
        yield f"delay_parameters {number} {rate}/{rate}"
    yield "delay_initial_bucket_level 100"
    # Pools count what squid fetches. So a guest with a rate gets nothing from what squid has.
    yield "acl with_rate note rate"
    yield "send_hit deny with_rate"


def _cache(policy: Policy, node: Surroundings) -> Iterator[str]:
    yield f"cache_dir ufs {cache(node)} {node.cache_megabytes} 16 64"
    yield "cache_mem 16 MB"
    yield "maximum_object_size 4 GB"
    yield "maximum_object_size_in_memory 64 KB"
    if node.mirror:
        # The mirror keeps what it serves, and its answers depend on who asks.
        yield "cache deny to_mirror"
    yield "memory_pools off"


def _log(policy: Policy, node: Surroundings) -> Iterator[str]:
    # Text of guests is percent-encoded, so that every line is JSON whatever they send.
    fields = {
        "id": f"{node.slot}-%master_xaction",  # the first one: squid.progress looks for it
        "time": "%ts.%03tu",
        **{name: f"%#{{{name}}}note" for name in _CALLER_NOTES},
        "method": "%#rm",
        "url": "%#ru",
        "connection": "%#{clt_conn_tag}note",
        "status": "%>Hs",
        "bytes": "%<st",
        "milliseconds": "%tr",
        "cache": "%Ss",
        "way": "%Sh",
        "upstream": "%<a",
        "rule": "%#{rule}note",
        "recorded": "%#{recorded}note",
    }
    text = ",".join(f'"{name}":"{code}"' for name, code in fields.items())
    yield f"logformat tproxy {{{text}}}"
    yield f"access_log stdio:{node.layout.access_log} tproxy"
    yield f"cache_log {node.layout.log / 'squid.log'}"
    yield "cache_store_log none"
    yield "logfile_rotate 0"
    yield "strip_query_terms off"


def _process(policy: Policy, node: Surroundings) -> Iterator[str]:
    yield f"cache_effective_user {node.user}"
    yield f"pid_filename {pid_file(node)}"
    yield f"coredump_dir {node.layout.state / 'squid'}"
    yield "visible_hostname tproxy-egress"
    yield "httpd_suppress_version_string on"
    yield "cache_mgr root"
    yield "pinger_enable off"
    yield f"shutdown_lifetime {DRAIN} seconds"
    yield "max_filedescriptors 16384"
