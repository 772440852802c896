"""Guests without a route install software with the clients that they have, by the policy for their network.

Nothing is between guest and site but what is there in production: the bridge's relay, a worker, the PROXY
header, squid and the mirror.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.egress.node import Node
from tests.egress.official import all_kinds, asked_of_registry
from tests.egress.registry import CONTAINERS
from tests.egress.up import TPROXY, up
from tests.netns.waiting import eventually
from tproxy import proxy_protocol
from tproxy.egress import sbom
from tproxy.egress.gather import lists
from tproxy.lab.egress.guest import CONFIG, SERVICES, Guest

POLICY = """\
rules:
  - networks: [build]
    pypi: ["good<2"]
    deb: {suites: [bookworm]}
    oci: ["docker.io/library/*"]
    galaxy: [acme.tools, acme.web]
    get: ["https://host.example/releases/*"]
  - networks: [lab]
    pypi: [other]
"""

# Besides what docs/egress.md tells to offer: the mirror's own port, which takes a header too.
MIRROR = "- {service_port: 3192, remote_addr: 127.0.0.1, remote_port: 3192, proxy_protocol: v2}\n"

PIP = f"{sys.executable} -m pip install --no-deps --target /tmp/pip"
UV = f"uv pip install --no-deps --no-config --python {sys.executable} --target /tmp/uv"
SKOPEO = "skopeo copy"
PODMAN = "podman --root /tmp/podman --runroot /run/podman --storage-driver vfs"
COLLECTION = "ansible-galaxy collection install -p /tmp/collections"
ROLE = "ansible-galaxy role install -p /tmp/roles"
APT = (
    "apt-get -qq update --error-on=any && "
    "DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends"
)


@pytest.fixture(scope="module")
def node(engines: None) -> Iterator[Node]:
    with Node(POLICY, mirror=True, squid=False, hypervisor=True) as node:
        all_kinds(node)
        node.host.write(CONFIG, SERVICES + MIRROR)
        up(node)
        yield node


def guest_of(node: Node, name: str, network: str) -> Guest:
    """Return a guest with the address that all guests have here, which knows one Debian repository."""
    guest = Guest(node.host, node.root, name, network)
    key = (node.root / "made/debian/upstream.asc").read_text()
    guest.use_debian("deb [signed-by=/root/debian.asc] http://deb.debian.org/debian bookworm main", key)
    return guest


@pytest.fixture(scope="module")
def build(node: Node) -> Guest:
    guest = guest_of(node, "build1", "build")
    guest.set_up()
    return guest


@pytest.fixture(scope="module")
def lab(node: Node) -> Guest:
    guest = guest_of(node, "lab1", "lab")
    guest.set_up()
    return guest


# Runs containerd with the commands that follow, to whose `ctr` it listens, and ends it.
CONTAINERD = """\
set -e; mkdir -p /run/ctr
echo 'version = 2
root = "/tmp/ctr"
state = "/run/ctr"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "/run/ctr/sock"' >/run/ctr/config.toml
containerd --config /run/ctr/config.toml >/run/ctr/log 2>&1 & pid=$!
trap 'kill $pid; wait $pid' EXIT
export CONTAINERD_ADDRESS=/run/ctr/sock
until ctr version >/dev/null 2>&1; do kill -0 $pid; sleep 0.1; done
pull() { ctr images pull --snapshotter native "$@"; }
"""

OURS = "--hosts-dir /etc/containerd/certs.d"

# Only what hosts.toml names is trusted, and not the system's certificates.
UNTRUSTING = "SSL_CERT_FILE=/dev/null SSL_CERT_DIR=/nowhere"


@pytest.fixture(scope="module")
def containers(build: Guest) -> Guest:
    """Return the guest with podman and containerd."""
    if not CONTAINERS.exists():
        reason = "needs podman and containerd: .ci/setup egress"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    build.sh(
        f"ln -s {CONTAINERS}/usr/bin/* {CONTAINERS}/usr/sbin/runc /usr/local/bin/ 2>/dev/null;"
        f"echo {CONTAINERS}/usr/lib/*-linux-gnu >/etc/ld.so.conf.d/containers.conf; ldconfig"
    )
    return build


def ledger(node: Node) -> list[dict[str, str]]:
    return [
        json.loads(line)
        for path in sorted((node.layout.state / "ledger").glob("ledger-*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def egress(node: Node, *words: str) -> str:
    return node.run(*TPROXY, *words, "--root", str(node.root)).stdout


def test_a_guest_has_no_route_and_the_check_finds_its_set_up_in_order(build: Guest) -> None:
    assert build.sh("ip route").stdout.split()[:1] == ["10.0.0.0/24"]
    assert build.sh("curl -sS -m 5 --noproxy '*' https://pypi.org/", check=False).returncode != 0
    assert build.sh("curl -sSf http://169.254.16.9:8480/check | sh").stdout == "in order\n"


def test_pip_and_uv_install(build: Guest) -> None:
    build.sh(f"{PIP} good && test -e /tmp/pip/good-1.0.dist-info")
    build.sh(f"{UV} good && test -e /tmp/uv/good-1.0.dist-info")


def test_apt_installs_with_what_a_package_depends_on(build: Guest) -> None:
    build.sh(f"{APT} tool-of-test && test -s /usr/share/tool-of-test/data -a -s /usr/share/base-of-tool/data")


def test_skopeo_copies_an_image(build: Guest) -> None:
    build.sh(
        f"{SKOPEO} docker://docker.io/library/alpine:3 oci:/tmp/alpine:3 && test -s /tmp/alpine/index.json"
    )


def test_podman_pulls_by_the_registries_conf_of_the_set_up(containers: Guest) -> None:
    ours = "/etc/containers/registries.conf.d/tproxy-egress.conf"
    pull = f"{PODMAN} pull tool-of-test:3"
    refused = containers.sh(f"mv {ours} /root/; {pull}; mv /root/tproxy-egress.conf {ours}", check=False)
    assert "no unqualified-search registries" in refused.stderr
    containers.sh(f"{pull} && {PODMAN} image exists docker.io/library/tool-of-test:3")
    denied = containers.sh(f"{PODMAN} pull docker.io/evil/image:1", check=False)
    assert (denied.returncode != 0, "403" in denied.stderr) == (True, True), denied.stderr


def test_containerd_pulls_by_the_hosts_toml_of_the_set_up(node: Node, containers: Guest) -> None:
    image = "docker.io/library/alpine:3"
    pulled = containers.sh(
        f"{CONTAINERD} ! {UNTRUSTING} pull {image}; {UNTRUSTING} pull {OURS} {image}; ctr images list -q"
    )
    assert pulled.stdout.splitlines()[-1] == image
    assert "unknown authority" in pulled.stderr
    assert "hosts.toml" not in pulled.stderr
    asked = asked_of_registry(node)
    denied = containers.sh(f"{CONTAINERD} pull {OURS} docker.io/evil/image:1", check=False)
    assert (denied.returncode != 0, "403 Forbidden" in denied.stderr) == (True, True), denied.stderr
    # It falls back to no other address; if it did, that would be denied, and in the ledger.
    for _ in eventually():
        if "evil/image" in egress(node, "log", "--denied", "--since", "1h"):
            break
    assert asked_of_registry(node) == asked


def test_ansible_galaxy_installs_a_collection_and_a_role(build: Guest) -> None:
    assert "config file = /etc/ansible/ansible.cfg" in build.sh("ansible-galaxy --version").stdout
    build.sh(
        f"{COLLECTION} acme.tools && test -e /tmp/collections/ansible_collections/acme/tools/MANIFEST.json"
    )
    build.sh(f"{ROLE} acme.web,1.0.0 && test -e /tmp/roles/acme.web/tasks/main.yml")


def test_curl_gets_a_file_of_an_allowed_path_and_no_other(build: Guest) -> None:
    assert build.sh("curl -sS https://host.example/releases/a").stdout == "file a\n"
    assert "no rule allows" in build.sh("curl -sS https://host.example/other").stdout


# The variables of the set-up, each with a client that reads it.
VARIABLES = {
    "CURL_CA_BUNDLE": "curl -sSf https://host.example/releases/a",
    "PIP_CERT": f"{PIP} --upgrade good",
    "REQUESTS_CA_BUNDLE": f"PIP_CONFIG_FILE=/dev/null {PIP} --upgrade good",
    "SSL_CERT_FILE": f"{UV} --reinstall good && {SKOPEO} docker://docker.io/library/alpine:3 dir:/tmp/x &&"
    f"{COLLECTION} --force acme.tools",
    "GIT_SSL_CAINFO": "! git ls-remote https://host.example/denied 2>&1 | grep -i certificate",
}


def test_each_client_finds_the_authority_by_its_own_variable(build: Guest) -> None:
    """The system's certificates are elsewhere, and one variable says where; without it there are none."""
    build.sh("mv /etc/ssl/certs /root/certs && mkdir /etc/ssl/certs")
    try:
        for name, command in VARIABLES.items():
            unset = "unset CURL_CA_BUNDLE PIP_CERT REQUESTS_CA_BUNDLE SSL_CERT_FILE GIT_SSL_CAINFO"
            build.sh(f"{unset}; export {name}=/root/certs/ca-certificates.crt; {command}")
            first = command.partition(" &&")[0]
            assert build.sh(f"{unset}; {first}", check=False).returncode != 0, name
    finally:
        build.sh("rmdir /etc/ssl/certs; mv /root/certs /etc/ssl/certs")


@pytest.mark.parametrize(
    "command",
    [
        f"{PIP} 'good==2.0'",
        f"{PIP} other",
        f"{UV} other",
        f"{SKOPEO} docker://docker.io/evil/image:1 oci:/tmp/evil:1",
        f"{COLLECTION} acme.other",
        "curl -sSf http://host.example/releases/a",
    ],
    ids=["version", "pip", "uv", "skopeo", "ansible-galaxy", "scheme"],
)
def test_what_no_rule_names_is_denied(build: Guest, command: str) -> None:
    assert build.sh(command, check=False).returncode != 0


def test_two_networks_with_one_guest_address_have_policies_of_their_own(
    node: Node, build: Guest, lab: Guest
) -> None:
    assert build.machine.address == lab.machine.address
    lab.sh(f"{PIP} other && test -e /tmp/pip/other-1.0.dist-info")
    assert lab.sh(f"{PIP} good", check=False).returncode != 0
    assert build.sh(f"{PIP} other", check=False).returncode != 0
    served = {(each["network"], each["name"]) for each in ledger(node) if each.get("verdict") == "allowed"}
    assert ("lab", "other") in served
    assert ("lab", "good") not in served
    assert ("build", "other") not in served


def test_the_ledger_names_hypervisor_network_guest_mac_and_port(node: Node, build: Guest) -> None:
    build.sh(f"{PIP} --upgrade good")
    entry = next(each for each in ledger(node) if each.get("name") == "good" and each["verdict"] == "allowed")
    found = {name: entry[name] for name in ("hypervisor", "network", "guest", "mac", "port")}
    assert found == {
        "hypervisor": "hv1",
        "network": "build",
        "guest": build.machine.address,
        "mac": build.mac,
        "port": build.machine.port,
    }


def test_what_the_proxy_denies_and_serves_by_itself_is_in_the_ledger(node: Node, build: Guest) -> None:
    build.sh("curl -sS https://host.example/releases/a; curl -sS https://host.example/denied-here")
    for _ in eventually():
        found = {(each.get("verdict"), each.get("name")): each for each in ledger(node)}
        denied = found.get(("denied", "https://host.example/denied-here"), {})
        if denied and ("allowed", "https://host.example/releases/a") in found:
            break
    assert (denied["network"], denied["mac"]) == ("build", build.mac)
    assert str(denied["reason"]).startswith("no rule allows ")
    assert "denied-here: network build" in egress(node, "log", "--denied", "--since", "1h")


def test_a_guest_that_knows_no_proxy_is_led_to_the_sites_by_the_resolver(node: Node) -> None:
    """The guest has the authority's certificate and the resolver's address, and nothing else."""
    guest = guest_of(node, "plain1", "build")
    guest.sh(
        "rm -f /etc/resolv.conf /etc/hosts; echo nameserver 169.254.16.9 >/etc/resolv.conf; "
        "curl -sSf http://169.254.16.9:8480/ca.pem >/root/ca.pem"
    )
    get = "curl -sS --cacert /root/ca.pem"
    assert guest.sh(f"{get} https://host.example/releases/a").stdout == "file a\n"
    assert "no rule allows" in guest.sh(f"{get} https://host.example/other").stdout
    guest.sh(f"{PIP} --cert /root/ca.pem good")
    done = guest.sh(f"{get} https://other.example/releases/a", check=False)
    assert (done.returncode, "Could not resolve" in done.stderr) == (6, True)


def test_a_hostile_guest_cannot_take_the_identity_of_another(node: Node, lab: Guest) -> None:
    """A forged header behind the daemon's own, and ports of the node itself, lead nowhere."""
    program = Path(__file__).parent / "programs/raw.py"
    forged = proxy_protocol.encode(
        ("10.0.0.9", 1), ("169.254.16.9", 80), {proxy_protocol.OF_NETWORK: "build"}
    )
    request = b"GET http://host.example/releases/a HTTP/1.1\r\nHost: host.example\r\n\r\n"
    for port in (3128, 8443, 443, 3192):
        words = f"{sys.executable} {program} 169.254.16.9:{port} {(forged + request).hex()}"
        assert "file a" not in lab.sh(words).stdout
    for port in (3129, 3190, 5353, 22):
        done = lab.sh(f"curl -sS -m 5 --noproxy '*' http://169.254.16.9:{port}/", check=False)
        assert done.returncode in (7, 28), done.stdout + done.stderr


def test_what_guests_fetched_is_a_list_for_a_bundle(node: Node, build: Guest) -> None:
    build.sh(
        f"{SKOPEO} docker://docker.io/library/alpine:3 oci:/tmp/again:3 && {ROLE} --force acme.web,1.0.0"
    )
    bill = node.root / "bill.json"
    bill.write_text(egress(node, "sbom", "--network", "build"))
    sbom.check(bill.read_text())
    kinds = {str(item).partition("=")[0] for item in lists.read(bill.read_text())}
    assert {"pypi good", "deb tool-of-test", "oci docker.io/library/alpine:3", "role acme.web:1.0.0"} <= kinds
    words = ("bundle", "create", str(bill), "--output", str(node.root / "bill.tar"), "--suite", "bookworm")
    egress(node, *words, "--arch", "amd64", "--keyring", str(node.root / "made/debian/upstream.asc"))


def test_sealed_serves_what_is_there_to_every_client_and_asks_no_site(
    node: Node, build: Guest, containers: Guest
) -> None:
    """The mirror still serves what was fetched before. A miss names the package, and is on the want list."""
    bundle = ("bundle", "create", str(node.root / "list.txt"), "--output", str(node.root / "b.tar"))
    (node.root / "list.txt").write_text("deb tool-of-test\n")
    keyring = str(node.root / "made/debian/upstream.asc")
    egress(node, *bundle, "--suite", "bookworm", "--arch", "amd64", "--keyring", keyring)
    egress(
        node, "bundle", "import", str(node.root / "b.tar"), "--trust", egress(node, "bundle", "key").strip()
    )
    guest = guest_of(node, "sealed1", "build")
    guest.set_up()
    guest.sh("echo deb http://deb.debian.org/debian bookworm main >/etc/apt/sources.list")
    text = node.policy.read_text()
    asked = (len(node.requests()), asked_of_registry(node))
    node.write_policy(f"mode: sealed\n{text}")
    status = ("curl", "-s", "--unix-socket", str(node.layout.run / "mirror.sock"), "http://mirror/status")
    try:
        node.wait_for(lambda: '"sealed"' in node.run(*status, check=False).stdout, "the mirror is sealed")
        guest.sh(f"{PIP} good && {UV} good")
        guest.sh(f"{APT} tool-of-test && test -s /usr/share/base-of-tool/data")
        guest.sh(f"{SKOPEO} docker://docker.io/library/alpine:3 oci:/tmp/alpine:3")
        guest.sh(f"{COLLECTION} acme.tools && {ROLE} acme.web,1.0.0")
        image = "docker.io/library/alpine:3"
        containers.sh(f"{PODMAN} rmi --all --force && {PODMAN} pull {image}")
        containers.sh(f"{CONTAINERD} ctr images remove {image}; pull {OURS} {image}")
        assert guest.sh(f"{SKOPEO} docker://docker.io/library/none:3 oci:/tmp/n:3", check=False).returncode
        assert "oci docker.io/library/none 3" in egress(node, "mirror", "wanted")
        assert (len(node.requests()), asked_of_registry(node)) == asked
    finally:
        node.write_policy(text)
        node.wait_for(lambda: '"dmz"' in node.run(*status, check=False).stdout, "the mirror is open again")
