"""Nodes of tunnels: behind NAT, by `tproxy tunnel` and by OpenSSH alone, when connections break."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.inward.tunnel.sites import ENV, GATEWAY, NAT, World, signalled, world
from tests.netns.waiting import eventually


@pytest.fixture(scope="module")
def net(real_kernel: None) -> Iterator[World]:
    """A gateway with an operator, and the node site-a, whose image has the configuration."""
    with world(2) as found:
        found.serve()
        found.sites[0].configure(found.token("site-*"), name="site-a", offer="{ssh: '127.0.0.1:22'}")
        found.sites[0].start()
        found.await_state("site-a", "waiting")
        found.tproxy("node", "approve", "site-a")
        found.await_offer("site-a", "ssh")
        found.add_operator("alice", "site-*")
        yield found


def address_of(net: World, node: str) -> str:
    """Return the addresses that a node has, by ssh."""
    return net.ssh(node, "hostname", "-I").stdout


def test_a_node_that_was_approved_is_reached_by_plain_ssh(net: World) -> None:
    assert net.sites[0].address in address_of(net, "site-a")
    shown = net.tproxy("node", "list").stdout
    assert "site-a" in shown
    assert NAT in shown  # the gateway sees the NAT's address
    assert net.audit("login", who="node:site-a")
    assert net.audit("login", who="operator:alice")
    assert net.await_audit("ended", who="operator:alice", node="site-a", offer="ssh")["received"] > 100


def test_check_says_what_a_tunnel_needs(net: World) -> None:
    done = net.sites[0].tproxy("tunnel", "--check", "--config", "/run/tunnel.yaml", check=False)
    assert f"ok: gateway {GATEWAY}:18000 can be reached" in done.stdout
    assert "ok: certificate of node site-a" in done.stdout
    assert "ok: offer ssh: 127.0.0.1:22 accepts" in done.stdout
    site = net.sites[1]
    site.configure(net.token("other-*"), name="site-b", offer="{ssh: '127.0.0.1:2', api: '127.0.0.1:1'}")
    done = site.tproxy("tunnel", "--check", "--config", "/run/tunnel.yaml", check=False)
    assert done.returncode == 1
    assert "missing: no certificate: join token" in done.stdout
    assert "missing: offer api: 127.0.0.1:1: Connection refused" in done.stdout
    assert "TrustedUserCAKeys /run/node/operators.pub" in done.stdout


def test_openssh_alone_is_a_node_by_a_printed_script_and_unit(net: World) -> None:
    site = net.sites[1]
    script = net.tproxy("node", "command", "site-o").stdout
    site.host.write("/run/tproxy-node", script)
    token = net.token("site-o", "--approve").split("token: ")[1].split()[0]
    site.host.run("sh", "/run/tproxy-node", "enrol", input=f"{token}\n", env=ENV)
    process = site.host.popen("sh", "/run/tproxy-node", "run", env=ENV)
    net.await_offer("site-o", "ssh")
    net.at_desk("node", "ssh-config", "--operator", "/run/operator")
    assert site.address in address_of(net, "site-o")
    assert (
        "ExecStart=/usr/local/sbin/tproxy-node run"
        in net.tproxy("node", "command", "site-o", "--unit").stdout
    )
    process.kill()
    process.wait()
    net.await_state("site-o", "offline since")
    refused = net.ssh("site-o", "true", check=False)
    assert "site-o is offline since 20" in refused.stderr


def test_operators_know_a_nodes_sshd_by_its_key_also_by_a_new_one(net: World) -> None:
    site = net.sites[0]
    known = net.desk.path("/run/operator/known_hosts")
    assert site.host.path("/run/ssh/host_key.pub").read_text().split()[1] in known.read_text()
    known.write_text("".join(line for line in known.open() if not line.startswith("site-a ")))
    assert "Host key verification failed" in net.ssh("-o", "BatchMode=yes", "site-a", check=False).stderr
    site.host.run("ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-C", "", "-f", "/run/ssh/other")
    site.host.run("mv", "/run/ssh/other.pub", "/run/ssh/host_key.pub")
    new = site.host.path("/run/ssh/host_key.pub").read_text().split()[1]
    site.stop()
    site.start()
    for _ in eventually():
        net.at_desk("node", "ssh-config", "--operator", "/run/operator")
        if new in known.read_text():
            break
    site.host.run("sh", "-c", "ssh-keygen -y -f /run/ssh/host_key > /run/ssh/host_key.pub")
    site.stop()
    site.start()
    for _ in eventually():
        net.at_desk("node", "ssh-config", "--operator", "/run/operator")
        if new not in known.read_text():
            break
    net.await_offer("site-a", "ssh")
    assert site.address in address_of(net, "site-a")


def test_a_frozen_node_is_noticed_and_takes_over_again(net: World) -> None:
    """teleport#13673: listed as up without a tunnel."""
    site = net.sites[0]
    before = net.await_state("site-a", "up")["address"]
    assert site.tunnel is not None
    signalled(site.tunnel, signal.SIGSTOP)
    net.await_state("site-a", "offline since")
    signalled(site.tunnel, signal.SIGCONT)
    assert net.await_state("site-a", "up")["address"] != before
    net.await_offer("site-a", "ssh")
    assert site.address in address_of(net, "site-a")


def test_the_same_key_takes_over_from_a_dead_connection_at_once(net: World) -> None:
    """jpillora/chisel#168: a dead client holds its name."""
    site = net.sites[0]
    old = site.tunnel
    assert old is not None
    signalled(old, signal.SIGSTOP)
    site.start()
    assert net.await_audit("replaced", who="node:site-a", alive=False)
    assert net.await_state("site-a", "up")
    old.kill()
    old.wait()
    assert net.await_state("site-a", "up")


def test_a_node_whose_address_changed_comes_again(net: World) -> None:
    net.await_state("site-a", "up")
    net.rebind("192.0.2.9")
    for _ in eventually():
        if net.nodes()["site-a"]["address"].startswith("192.0.2.9:"):
            break
    net.await_offer("site-a", "ssh")
    assert net.sites[0].address in address_of(net, "site-a")


def test_a_node_comes_again_for_ever_and_resolves_the_gateway_anew(net: World) -> None:
    """fatedier/frp#4374: never connects again."""
    site = net.sites[0]
    site.stop()
    site.host.write("/run/hosts", "192.0.2.77 gw.example.com\n")
    site.host.run("mount", "--bind", "/run/hosts", "/etc/hosts")
    text = site.host.path("/run/tunnel.yaml").read_text()
    site.host.write("/run/tunnel.yaml", text.replace(f"gateway: {GATEWAY}:", "gateway: gw.example.com:"))
    net.stop()
    site.start()
    for _ in eventually():
        if "no tunnel to gw.example.com:18000" in site.log():
            break
    net.serve()
    assert net.nodes()["site-a"]["state"].startswith("offline since")
    site.host.path("/run/hosts").write_text(f"{GATEWAY} gw.example.com\n")
    net.await_state("site-a", "up")


def test_one_key_on_two_machines_suspends_both_until_an_operator_decides(net: World) -> None:
    one, two = net.sites
    two.host.run("rm", "-rf", "/run/node")
    two.host.run("mkdir", "-p", "/run/node")
    for name in ("key", "key.pub"):
        two.host.write(f"/run/node/{name}", one.host.path(f"/run/node/{name}").read_text())
    two.host.run("chmod", "600", "/run/node/key")
    two.configure(net.token("none"), name="site-a", offer="{ssh: '127.0.0.1:22'}")
    two.start()
    said = net.await_state("site-a", "suspended")["state"]
    assert "one key on two machines" in said
    assert net.await_audit("suspended", who="node:site-a")
    for site in net.sites:
        for _ in eventually():
            if "is suspended: one key on two machines" in site.log():
                break
    two.stop()
    assert net.ssh("site-a", "true", check=False).returncode != 0
    net.tproxy("node", "resume", "site-a")
    net.await_offer("site-a", "ssh")
    assert one.address in address_of(net, "site-a")
