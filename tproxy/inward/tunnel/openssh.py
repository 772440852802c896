"""What plain OpenSSH needs as a node or as an operator: commands, units and configurations as text. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from tproxy.inward.tunnel.settings import Address

ALIAS = "tproxy-gateway"  # the gateway's name in known_hosts and in the operator's configuration

SCRIPT = "/usr/local/sbin/tproxy-node"

_NODE = """\
#!/bin/sh
# Makes this host node {name} of a gateway by OpenSSH alone; install as {script}.
# `tproxy-node enrol` once, with the join token as standard input. `tproxy-node run` is the tunnel.
set -eu
umask 077
directory=${{TPROXY_NODE_DIRECTORY:-/var/lib/tproxy-tunnel-node}}
mkdir -p "$directory"
cd "$directory"
[ -e key ] || ssh-keygen -q -t ed25519 -N '' -C '' -f key
echo {known} >known_hosts

by=
gateway() {{
    user=$1
    shift
    $by ssh -F none -T -p {port} -l "$user" -i "$directory/key" -o IdentitiesOnly=yes -o BatchMode=yes \\
        -o HostKeyAlias={alias} -o UserKnownHostsFile="$directory/known_hosts" \\
        -o GlobalKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes -o ConnectTimeout=15 \\
        -o ServerAliveInterval=2 -o ServerAliveCountMax=2 "$@"
}}

case ${{1-run}} in
enrol)
    {{ head -n 1; cat ${{TPROXY_HOST_KEYS:-/etc/ssh/ssh_host_*_key.pub}}; }} |
        gateway join {host} enrol {name} >new
    mv new key-cert.pub
    gateway join {host} operators-ca </dev/null >operators.pub
    ;;
run)
    gateway join {host} certificate {name} </dev/null >new
    mv new key-cert.pub
    by=exec
    gateway node:{name} -N -o ExitOnForwardFailure=yes{offers} {host}
    ;;
esac
"""

_UNIT = """\
# Node {name} of a gateway by OpenSSH: install as /etc/systemd/system/tproxy-node.service.
[Unit]
Description=Tunnel to the gateway {gateway}
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart={script} run
Restart=always
RestartSec=3
StateDirectory=tproxy-tunnel-node
NoNewPrivileges=true
ProtectHome=true
ProtectSystem=strict
PrivateTmp=true

[Install]
WantedBy=multi-user.target
"""


def node_script(name: str, gateway: Address, key: str, offers: Mapping[str, Address]) -> str:
    """Return a shell script for a node. ``key`` is the gateway's public key."""
    paths = "".join(
        f" \\\n        -R /tunnel/{name}/{offer}:{shlex.quote(address.path or str(address))}"
        for offer, address in offers.items()
    )
    known = shlex.quote(f"{ALIAS} {key}")
    return _NODE.format(
        name=name,
        script=SCRIPT,
        known=known,
        alias=ALIAS,
        port=gateway.port,
        host=shlex.quote(gateway.host),
        offers=paths,
    )


def node_unit(name: str, gateway: Address) -> str:
    """Return the unit for systemd that runs the script."""
    return _UNIT.format(name=name, gateway=gateway, script=SCRIPT)


def gateway_options(directory: str, identity: str, gateway: Address) -> list[str]:
    """Return the options by which ssh(1) reaches the gateway as an operator does."""
    said = {
        "IdentityFile": identity,
        "IdentitiesOnly": "yes",
        "HostKeyAlias": ALIAS,
        "UserKnownHostsFile": f"{directory}/known_hosts",
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "ConnectTimeout": "15",
    }
    options = [word for key, value in said.items() for word in ("-o", f"{key}={value}")]
    return ["ssh", "-F", "none", "-T", "-p", str(gateway.port), *options]


def operator_config(
    operator: str, directory: str, identity: str, gateway: Address, nodes: Iterable[Mapping[str, Any]]
) -> str:
    """Return a configuration of ssh(1) by which `ssh NODE` reaches nodes."""
    known = [*nodes]
    files = f"""\
    IdentityFile {identity}
    CertificateFile {directory}/certificate.pub
    IdentitiesOnly yes
    UserKnownHostsFile {directory}/known_hosts
    GlobalKnownHostsFile /dev/null
"""
    text = f"""\
# Made by `tproxy node ssh-config`.
Host {ALIAS}
    HostName {gateway.host}
    Port {gateway.port}
    User operator:{operator}
    HostKeyAlias {ALIAS}
    ServerAliveInterval 5
    ServerAliveCountMax 2
{files}"""
    for login in sorted({each["login"] for each in known}):
        names = " ".join(each["name"] for each in known if each["login"] == login)
        text += f"""
Host {names}
    User {login}
    ProxyJump {ALIAS}
{files}"""
    return text


def known_hosts(key: str, nodes: Iterable[Mapping[str, Any]]) -> str:
    """Return the text of a file of known hosts: the gateway, and nodes' sshd as of when they enrolled."""
    lines = [f"{ALIAS} {key}"]
    lines += [f"{each['name']} {host_key}" for each in nodes for host_key in each["host_keys"]]
    return "".join(f"{each}\n" for each in lines)
