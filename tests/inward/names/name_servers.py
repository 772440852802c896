"""Name servers of tests, in a stand-in host: PowerDNS, BIND and unbound, each with the files it needs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.netns.waiting import await_equal
from tproxy.lab.hypervisor import Hypervisor

API_KEY = "a-key-of-the-test"
API_KEY_FILE = "/run/pdns.key"
API = "http://127.0.0.1:8081"
SCHEMA = "/usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql"

TSIG_FILE = "/run/tsig.key"
TSIG = (
    'key "gateways" {\n\talgorithm hmac-sha256;\n\tsecret "c2VjcmV0IG9mIHRoZSB0ZXN0cyBvZiBuYW1lcw==";\n};\n'
)


def start_powerdns(host: Hypervisor, address: str, folder: str = "/run/pdns") -> subprocess.Popen[str]:
    """Start PowerDNS with its API; its zones stay in ``folder`` when it ends."""
    host.write(API_KEY_FILE, f"{API_KEY}\n")
    place = host.path(folder)
    if not place.exists():
        place.mkdir()
        host.run("sqlite3", f"{folder}/zones.db", input=Path(SCHEMA).read_text())
    host.write(
        f"{folder}/pdns.conf",
        f"""launch=gsqlite3
gsqlite3-database={folder}/zones.db
gsqlite3-dnssec=yes
local-address={address}
socket-dir={folder}
api=yes
api-key={API_KEY}
webserver=yes
webserver-address=127.0.0.1
webserver-port=8081
guardian=no
daemon=no
disable-syslog=yes
cache-ttl=0
query-cache-ttl=0
negquery-cache-ttl=0
zone-cache-refresh-interval=1
""",
    )
    log = open(host.path(f"{folder}/log"), "a")  # noqa: SIM115 - the server's
    with log:
        server = host.popen("pdns_server", f"--config-dir={folder}", stdout=log, stderr=log)
    url = f"{API}/api/v1/servers/localhost"
    await_equal(lambda: host.run("curl", "-fsS", "-H", f"X-API-Key: {API_KEY}", url).returncode, 0)
    return server


def api(host: Hypervisor, method: str, place: str, content: str = "") -> str:
    """Ask PowerDNS's API as an operator does, and return the answer."""
    url = f"{API}/api/v1/servers/localhost/zones{place}"
    data = ("-d", content) if content else ()
    return host.run("curl", "-sS", "-X", method, "-H", f"X-API-Key: {API_KEY}", *data, url).stdout


def start_bind(
    host: Hypervisor, address: str, zones: str, folder: str = "/run/bind"
) -> subprocess.Popen[str]:
    """Start BIND; ``zones`` are its zone statements, whose files are in ``folder``."""
    host.write(TSIG_FILE, TSIG)
    host.ip(f"address add {address}/8 dev lo")  # BIND listens at addresses that links have
    host.write(
        f"{folder}/named.conf",
        f"""{TSIG}
options {{
    directory "{folder}";
    listen-on {{ {address}; }};
    listen-on-v6 {{ none; }};
    pid-file "{folder}/named.pid";
    session-keyfile "{folder}/session.key";
    recursion no;
    dnssec-validation no;
    notify no;
    allow-new-zones no;
}};
controls {{ }};
{zones}
""",
    )
    log = open(host.path(f"{folder}/log"), "a")  # noqa: SIM115 - the server's
    with log:
        server = host.popen("named", "-g", "-c", f"{folder}/named.conf", stdout=log, stderr=log)
    await_equal(lambda: f"{address}:53" in host.run("ss", "-Hlnt").stdout, True)
    return server


def start_unbound(
    host: Hypervisor, address: str, more: str, folder: str = "/run/unbound"
) -> subprocess.Popen[str]:
    """Start a validating resolver; ``more`` are lines of its configuration."""
    host.write(
        f"{folder}/unbound.conf",
        f"""server:
    directory: "{folder}"
    pidfile: "{folder}/pid"
    username: ""
    chroot: ""
    use-syslog: no
    interface: {address}
    access-control: 127.0.0.0/8 allow
    do-not-query-localhost: no
    do-ip6: no
    module-config: "validator iterator"
    cache-max-ttl: 0
    cache-max-negative-ttl: 0
    val-bogus-ttl: 1
    infra-host-ttl: 1
    root-hints: ""
    aggressive-nsec: no
{more}
remote-control:
    control-enable: no
""",
    )
    log = open(host.path(f"{folder}/log"), "a")  # noqa: SIM115 - the server's
    with log:
        server = host.popen("unbound", "-d", "-c", f"{folder}/unbound.conf", stdout=log, stderr=log)
    await_equal(lambda: f"{address}:53" in host.run("ss", "-Hlnu").stdout, True)
    return server


def dig(host: Hypervisor, server: str, *question: str) -> list[str]:
    """Return the lines of a short answer, sorted."""
    said = host.run("dig", "+short", "+tries=3", "+time=5", f"@{server}", *question).stdout
    return sorted(said.split("\n"))[1:] if said.endswith("\n") else []


def status(host: Hypervisor, server: str, *question: str) -> tuple[str, set[str], str]:
    """Return the status of an answer, its flags, and all of its text."""
    said = host.run("dig", "+dnssec", "+tries=3", "+time=5", f"@{server}", *question).stdout
    found = said.partition("status: ")[2].partition(",")[0]
    return found, {*said.partition(";; flags: ")[2].partition(";")[0].split()}, said


def start_pebble(host: Hypervisor, resolver: str, folder: str = "/run/issuer") -> None:
    """Start an issuer of certificates that asks this resolver; its own certificate is ``ca.pem`` there."""
    host.run("mkdir", "-p", folder)
    host.run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-keyout", f"{folder}/key.pem", "-out", f"{folder}/ca.pem", "-days", "2", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=DNS:localhost"),
    )
    settings = {
        "listenAddress": "127.0.0.1:14000",
        "managementListenAddress": "127.0.0.1:15000",
        "certificate": f"{folder}/ca.pem",
        "privateKey": f"{folder}/key.pem",
        "httpPort": 80,
        "tlsPort": 443,
        "ocspResponderURL": "",
    }
    host.write(f"{folder}/pebble.json", json.dumps({"pebble": settings}))
    argv = ("pebble", "-config", f"{folder}/pebble.json", "-dnsserver", f"{resolver}:53")
    host.popen(*argv, env={"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"})
    url = "https://localhost:14000/dir"
    await_equal(lambda: host.run("curl", "-ksf", url, check=False).returncode, 0)
