"""Who a gateway for tunnels lets in: join tokens, certificates, names. The client is OpenSSH."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.inward.tunnel.sites import GATEWAY, PORT, World, world
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture(scope="module")
def net(real_kernel: None) -> Iterator[World]:
    with world(1) as found:
        found.serve()
        yield found


class Client:
    """A machine's key, and ssh by it to the gateway."""

    def __init__(self, net: World, name: str) -> None:
        self.net, self.host = net, net.sites[0].host
        self.key = f"/run/keys/{name}"
        self.host.run("mkdir", "-p", "/run/keys")
        self.host.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        known = f"[{GATEWAY}]:{PORT} {net.gateway.path('/run/state/host_key.pub').read_text()}"
        self.host.write("/run/keys/known_hosts", known)

    def ssh(self, user: str, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        options = (
            *("-F", "none", "-p", str(PORT), "-l", user, "-i", self.key, "-o", "IdentitiesOnly=yes"),
            *("-o", "UserKnownHostsFile=/run/keys/known_hosts", "-o", "BatchMode=yes"),
            *("-o", "ExitOnForwardFailure=yes"),
        )
        return self.host.run("ssh", *options, *words, input=text, check=False)

    def join(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return self.ssh("join", GATEWAY, *words, text=text)

    def enrol(self, name: str, token: str) -> subprocess.CompletedProcess[str]:
        done = self.join("enrol", name, text=f"{token}\n")
        if done.returncode == 0:
            self.host.write(f"{self.key}-cert.pub", done.stdout)
        return done

    def sign(self, authority: str, principal: str, validity: str, host: Hypervisor | None = None) -> None:
        """Have an authority, in a file of the gateway or of this machine, sign the key."""
        signer = host or self.host
        if host:
            host.write("/run/sign.pub", self.host.path(f"{self.key}.pub").read_text())
        key = "/run/sign.pub" if host else f"{self.key}.pub"
        signer.run("ssh-keygen", "-q", "-s", authority, "-I", "x", "-n", principal, "-V", validity, key)
        made = key.removesuffix(".pub") + "-cert.pub"
        self.host.write(f"{self.key}-cert.pub", signer.path(made).read_text())


def token_of(text: str) -> str:
    return text.split("token: ")[1].split()[0]


def refused(net: World, client: Client, user: str, reason: str, *words: str) -> None:
    done = client.ssh(user, "-N", *words, GATEWAY)
    assert done.returncode == 255
    net.await_audit("refused", reason, who=user)


def test_a_token_is_for_a_number_of_names_that_fit_until_a_date(net: World) -> None:
    token = token_of(net.token("site-*", "--count", "1", "--approve"))
    one, two = Client(net, "one"), Client(net, "two")
    assert "is for nodes site-*" in one.enrol("other", token).stderr
    assert one.enrol("site-1", token).returncode == 0
    assert one.enrol("site-1", "").returncode == 0  # its key is known
    done = two.enrol("site-2", token)
    assert done.returncode == 77
    assert "was used for 1 nodes" in done.stderr
    past = token_of(net.token("site-*", "--until", "2001-01-01"))
    assert "has expired" in two.enrol("site-2", past).stderr
    fresh = token_of(net.token("site-*", "--count", "5"))
    net.tproxy("node", "token", "revoke", fresh.partition(".")[0])
    assert "is revoked" in two.enrol("site-2", fresh).stderr
    assert "the join token is unknown" in two.enrol("site-2", "0123abcd.guessed").stderr
    assert "the join token is unknown" in two.enrol("site-2", "../../gateway").stderr
    listed = net.tproxy("node", "token", "list").stdout
    assert "1/1" in listed
    assert "revoked" in listed
    assert (
        token
        not in subprocess.run(
            ["grep", "-r", ".", str(net.gateway.path("/run/state"))],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


def test_a_name_belongs_to_the_first_key(net: World) -> None:
    """fatedier/frp#2688: anyone claims any name."""
    token = token_of(net.token("site-*", "--count", "5"))
    owner, thief = Client(net, "owner"), Client(net, "thief")
    assert owner.enrol("site-3", token).returncode == 75
    done = thief.enrol("site-3", token)
    assert (done.returncode, done.stderr) == (77, "site-3 is the name of a node with another key\n")
    assert thief.join("certificate", "site-3").returncode == 77
    assert (
        net.tproxy("node", "key", "site-3").stdout.split()[1]
        in owner.host.path(f"{owner.key}.pub").read_text()
    )
    net.tproxy("node", "remove", "site-3")
    assert thief.enrol("site-3", token).returncode == 75


def test_a_node_may_offer_at_its_own_path_only_and_what_the_policy_allows(net: World) -> None:
    token = token_of(net.token("site-*", "--count", "5", "--approve"))
    client = Client(net, "offering")
    assert client.enrol("site-4", token).returncode == 0
    for path, reason in (
        ("/tunnel/site-1/ssh", "it may not offer '/tunnel/site-1/ssh'"),
        ("/tunnel/site-4/../site-1/ssh", "it may not offer"),
        ("/run/elsewhere", "it may not offer '/run/elsewhere'"),
        ("/tunnel/site-4/secret", "the policy does not allow it to offer secret"),
    ):
        refused(net, client, "node:site-4", reason, "-R", f"{path}:127.0.0.1:22")
    assert client.ssh("node:site-4", "-N", "-R", "1234:127.0.0.1:22", GATEWAY).returncode == 255
    done = client.ssh("node:site-4", "-W", "site-1:22", GATEWAY)
    assert "only operators use nodes" in done.stderr
    assert "there is no shell" in client.ssh("node:site-4", GATEWAY, "id").stderr
    assert client.ssh("node:site-1", "-N", GATEWAY).returncode == 255


def test_expired_and_foreign_certificates_are_refused(net: World) -> None:
    token = token_of(net.token("site-*", "--count", "5", "--approve"))
    client = Client(net, "certified")
    assert client.enrol("site-5", token).returncode == 0
    state = "/run/state"
    client.sign(f"{state}/nodes_ca", "node:site-5", "-2h:-1h", net.gateway)
    refused(net, client, "node:site-5", "the certificate has expired")
    client.sign(f"{state}/operators_ca", "node:site-5", "+1h", net.gateway)
    refused(net, client, "node:site-5", "a certificate of another authority")
    client.sign(f"{state}/nodes_ca", "node:site-1", "+1h", net.gateway)
    refused(net, client, "node:site-5", "a certificate for node:site-1")
    client.sign(f"{state}/nodes_ca", "operator:alice", "+1h", net.gateway)
    refused(net, client, "operator:alice", "a certificate of another authority")
    foreign = Client(net, "authority")
    client.sign(foreign.key, "node:site-5", "+1h")
    refused(net, client, "node:site-5", "a certificate of another authority")
    client.host.run("rm", f"{client.key}-cert.pub")
    refused(net, client, "node:site-5", "no certificate")
    refused(net, client, "root", "unknown user")


def test_a_removed_node_is_refused_with_a_certificate_that_is_still_valid(net: World) -> None:
    token = token_of(net.token("site-*", "--count", "5", "--approve"))
    client = Client(net, "removed")
    assert client.enrol("site-6", token).returncode == 0
    net.tproxy("node", "remove", "site-6")
    refused(net, client, "node:site-6", "node site-6 has not enrolled, or was removed")
    assert client.enrol("site-6", token).returncode == 0


def test_more_than_is_allowed_ends_a_connection_and_nothing_else(net: World) -> None:
    client = Client(net, "loud")
    assert "the input is too long" in client.join("enrol", "site-9", text="x" * 70000).stderr
    assert "is not the name of a node" in client.join("enrol", "../site", text="x\n").stderr
    assert client.join("enrol", text="x\n").returncode == 64
    assert net.sites[0].host.run("ssh", "-V", check=False).returncode == 0
    assert net.nodes()


def test_a_nodes_certificate_is_renewed_through_its_tunnel(net: World) -> None:
    net.stop()
    net.serve("--node-certificate", "8")
    site = net.sites[0]
    site.configure(net.token("node-*", "--approve"), name="node-a", offer="{ssh: '127.0.0.1:22'}")
    site.start()
    net.await_offer("node-a", "ssh")
    file = site.host.path("/run/node/key-cert.pub")
    for _ in eventually():  # on a busy machine the link itself may end meanwhile
        since, first = net.nodes()["node-a"]["since"], file.read_text()
        for _ in eventually():
            if file.read_text() != first:
                break
        if since and net.nodes()["node-a"]["since"] == since:
            break
    site.stop()
    net.await_state("node-a", "offline since")
    last = file.stat().st_mtime
    for _ in eventually():
        if time.time() > last + 8:
            break
    site.start()  # with a certificate that has expired, it asks for another one by its key
    assert net.await_state("node-a", "up")
