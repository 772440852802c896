"""docs/contract.md, section Commands: each row of its table, and what the commands have in common."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import jsonschema
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.contract import LIMITS, quoted, table
from tests.netns.one_bridge import OneBridge
from tests.netns.strictly import strict
from tests.netns.waiting import await_equal, eventually
from tproxy.cli import schemas
from tproxy.config.keys import SERVICE
from tproxy.errors import ProcessError
from tproxy.fleet import document, keys
from tproxy.lab.hypervisor import PATIENCE, Hypervisor


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    return OneBridge(hypervisor)


ENDPOINT = "10.11.12.13"
LIBVIRT = ("libvirt", "--hooks", "/run/hooks")
DOMAIN = """<domain type='kvm'><name>web</name><devices>
  <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br1'/></interface>
</devices></domain>"""

Done = subprocess.CompletedProcess[str]


def start(lab: OneBridge) -> list[Done]:
    lab.host.run("pkill", "-KILL", "-f", "^one_tproxy_br0 *$")
    done = lab.host.tproxy("start")
    assert lab.ask() == "one"
    lab.host.run("nft", "flush", "ruleset")
    without_table = lab.host.tproxy("start", check=False)
    assert (without_table.returncode, without_table.stderr.count("\n")) == (1, 1)
    assert lab.ask() == "one"
    lab.nft("add table ip one_tproxy")
    without_maps = lab.host.tproxy("start")
    assert lab.pids() == {}
    return [done, without_table, without_maps]


def reload(lab: OneBridge) -> list[Done]:
    lab.nft("flush map ip one_tproxy ep_br0", lab.element("add", 5030, 8081))
    done = lab.host.tproxy("reload")
    assert lab.ask() == "two"
    lab.host.add_endpoint("169.254.16.9", 5031, netns="one_tproxy_br0")
    lab.nft(lab.element("add", 5031))
    taken = lab.host.tproxy("reload", check=False)
    assert (taken.returncode, taken.stderr.count("\n")) == (1, 1)
    return [done, taken]


def reopen_logs(lab: OneBridge) -> list[Done]:
    log = lab.host.path("/var/log/one_tproxy.log")
    before = lab.pids()
    log.rename(log.with_suffix(".1"))
    lab.nft("flush map ip one_tproxy ep_br0")
    done = lab.host.tproxy("reopen-logs")
    assert log.exists()
    assert lab.ask() == "one"
    assert lab.pids() == before
    return [done]


def restart(lab: OneBridge) -> list[Done]:
    before = lab.pids()
    done = lab.host.tproxy("restart")
    assert not {*lab.pids().values()} & {*before.values()}
    assert lab.ask() == "one"
    return [done]


def stop(lab: OneBridge) -> list[Done]:
    done = lab.host.tproxy("stop")
    assert lab.host.run("pgrep", "-af", "^one_tproxy|^tproxy-", check=False).stdout == ""
    return [done]


def status(lab: OneBridge) -> list[Done]:
    before = lab.pids()
    done = lab.host.tproxy("status")
    assert re.fullmatch(r"one_tproxy: \d+\none_tproxy_br0: \d+\n", done.stdout)
    assert lab.pids() == before
    return [done]


def connections(lab: OneBridge) -> list[Done]:
    done = lab.host.tproxy("connections", "--interval", "0")
    assert done.stdout.endswith(" connections\n")
    lab.host.tproxy("stop")
    return [done, lab.host.tproxy("connections", check=False)]


def kill(lab: OneBridge) -> list[Done]:
    done = lab.host.tproxy("kill", "--all")
    assert re.fullmatch(r"(?s).*ended \d+ connections?\n", done.stdout)
    return [done, lab.host.tproxy("kill", "0123456789ab-1", check=False)]


def log_level(lab: OneBridge) -> list[Done]:
    done = lab.host.tproxy("log-level", "debug", "--for", "600")
    shown = table("Commands", "command").by_first_column()["log-level"]["stdout"]
    form = re.escape(quoted(shown)[0]).replace("600", r"\d+")
    assert re.fullmatch(form, done.stdout.strip())
    assert re.fullmatch(form, lab.host.tproxy("log-level").stdout.strip())
    lab.host.tproxy("stop")
    return [done, lab.host.tproxy("log-level", check=False)]


def metrics(lab: OneBridge) -> list[Done]:
    done = lab.host.tproxy("metrics")
    assert "# TYPE tproxy_" in done.stdout
    lab.host.tproxy("stop")
    return [done, lab.host.tproxy("metrics")]


def refresh(lab: OneBridge) -> list[Done]:
    lab.host.tproxy("hook", "up", "--bridge", "br0", "--network", "blue", "--config", lab.config)
    file = lab.host.path(lab.config)
    file.write_text(file.read_text().replace("8080", "8081"))
    done = lab.host.tproxy("refresh", "--config", lab.config)
    assert lab.ask() == "two"
    lab.host.add_bridge("br1")
    lab.host.ip("netns add one_tproxy_br1")
    lab.nft("add map ip one_tproxy ep_br1 { type inet_service : ipv4_addr . inet_service; }")
    skipping = lab.host.tproxy("refresh", "--config", lab.config, check=False)
    assert skipping.returncode == 3
    assert skipping.stderr.startswith("tproxy: br1: skipped: ")
    assert skipping.stderr.count("\n") == 1
    return [done, skipping]


def check(lab: OneBridge) -> list[Done]:
    good = lab.host.tproxy("check", lab.config)
    lab.host.write("/run/bad.yaml", "tproxy: 5\n")
    lab.host.write("/run/odd.yaml", f"tproxy: [{{remote_addr: {ENDPOINT}, remote_port: 1, colour: red}}]\n")
    bad, odd = (lab.host.tproxy("check", f"/run/{each}.yaml", check=False) for each in ("bad", "odd"))
    assert (bad.returncode, odd.returncode) == (1, 3)
    return [good, bad]


def doctor(lab: OneBridge) -> list[Done]:
    arguments = ("doctor", "--config", lab.config)
    await_equal(lambda: lab.host.tproxy(*arguments, check=False).returncode, 0)  # what starts has started
    good = lab.host.tproxy(*arguments)
    lab.host.ip("link set dev br0 down")
    bad = lab.host.tproxy(*arguments, check=False)
    assert bad.returncode == 1
    return [good, bad]


def probe(lab: OneBridge) -> list[Done]:
    good = lab.host.tproxy("probe", "br0:5030")
    bad = lab.host.tproxy("probe", "br0:5031", check=False)
    assert bad.returncode == 1
    return [good, bad]


def trace(lab: OneBridge) -> list[Done]:
    """One that fails is in trace/test_trace.py."""
    return [lab.host.tproxy("trace", "--port", lab.guest.port, "--for", "0.1")]


def route(lab: OneBridge) -> list[Done]:
    """Routes that lead to guests are in inward/test_routes.py."""
    listed = lab.host.tproxy("route", "list")
    unknown = lab.host.tproxy("route", "test", "nothing", check=False)
    assert unknown.returncode == 1
    return [listed, unknown]


def gateway(lab: OneBridge) -> list[Done]:
    """A gateway that serves is in inward/test_gateway.py."""
    lab.host.write("/run/empty/none", "")
    refused = lab.host.tproxy(
        *("gateway", "up", "--config", lab.config, "--certificates", "/run/empty"), check=False
    )
    assert refused.returncode == 1
    return [refused, lab.host.tproxy("gateway", "down", "--purge")]


def tunnel(lab: OneBridge) -> list[Done]:
    """Tunnels that lead somewhere are in tests/inward/tunnel."""
    printed = lab.host.tproxy("tunnel", "unit")
    assert "tproxy tunnel" in printed.stdout
    missing = lab.host.tproxy("tunnel", "--config", "/nowhere", check=False)
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    return [printed, missing]


def node(lab: OneBridge) -> list[Done]:
    state = ("--state", "/run/tunnel")
    made = lab.host.tproxy("node", "token", "add", "--nodes", "site-*", "--gateway", "192.0.2.1", *state)
    assert made.stdout.count("ssh-ed25519 ") == 1
    unknown = lab.host.tproxy("node", "approve", "site-a", *state, check=False)
    assert (unknown.returncode, unknown.stderr) == (1, "tproxy: there is no node 'site-a'\n")
    return [made, unknown, lab.host.tproxy("node", "list", *state)]


def operator(lab: OneBridge) -> list[Done]:
    state = ("--state", "/run/tunnel")
    added = ("operator", "add", "alice", "--nodes", "*", "--login", "root", "--gateway", "192.0.2.1", *state)
    done = lab.host.tproxy(*added)
    assert done.stdout.startswith("tproxy operator login alice --gateway 192.0.2.1:18000 ")
    again = lab.host.tproxy(*added, check=False)
    assert again.returncode == 1
    return [done, again, lab.host.tproxy("operator", "remove", "alice", *state)]


def names(lab: OneBridge) -> list[Done]:
    """Name servers are in tests/inward/names."""
    gateways = "gateways: [{name: g, addr: 192.0.2.1}]"
    zone = f"{{domain: a.example, powerdns: 'http://127.0.0.1:1', key_file: /run/key, {gateways}}}"
    lab.host.write("/run/key", "key")
    file = lab.host.write("/run/zones.yaml", f"tproxy_zones: [{zone}]\n")
    env = {"TPROXY_NAMES_STATE": "/run/names"}
    good = lab.host.tproxy("names", "check", "--config", file, env=env)
    down = lab.host.tproxy("names", "apply", "--config", file, check=False, env=env)
    lab.host.write("/run/zones.yaml", f"tproxy_zones: [{zone.replace('192.0.2.1', 'nowhere')}]\n")
    bad = lab.host.tproxy("names", "check", "--config", file, check=False, env=env)
    assert (down.returncode, bad.returncode) == (1, 3)
    return [good, down, bad]


def egress(lab: OneBridge) -> list[Done]:
    """What the subcommands do is in tests/egress."""
    policy = lab.host.write("/run/egress.yaml", "mode: sealed\nrules: []\n")
    good = lab.host.tproxy("egress", "check", "--policy", policy)
    lab.host.write("/run/egress.yaml", "mode: wide open\n")
    bad = lab.host.tproxy("egress", "check", "--policy", policy, check=False)
    assert (bad.returncode, bad.stderr.count("\n")) == (1, 1)
    return [good, bad]


def sync(lab: OneBridge) -> list[Done]:
    """Hosts that can be reached are in operations/test_sync.py."""
    arguments = ("--config", lab.config, "--ssh", "false", "node1")
    done = lab.host.tproxy("sync", *arguments, check=False)
    assert done.returncode == 1
    return [done]


def follow(lab: OneBridge) -> list[Done]:
    """What a host takes and refuses is in tests/fleet."""
    lab.host.run("mount", "-t", "tmpfs", "tmpfs", "/var/lib")  # this machine's otherwise
    key = keys.SecretKey(Ed25519PrivateKey.generate())
    trusted = lab.host.write("/run/trusted", key.public.line("test"))
    entry = f"{{service_port: 5031, remote_addr: {ENDPOINT}, remote_port: 8081}}"
    text = document.seal(f"host: one\nserial: 1\ntproxy: [{entry}]\n", 0, key)
    lab.host.write("/run/store/documents/one.yaml", text)
    command = ("follow", "file:///run/store", "--host", "one", "--trusted", trusted, "--config", lab.config)
    done = lab.host.tproxy(*command, "--once")
    assert (lab.ask(), lab.ask(5031)) == ("one", "two")
    lab.host.write("/run/store/documents/one.yaml", text.replace("8081", "8080"))
    refused = lab.host.tproxy(*command, "--once", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert lab.ask(5031) == "two"
    return [done, refused]


def fleet(lab: OneBridge) -> list[Done]:
    """What the subcommands do is in tests/fleet."""
    policy = lab.host.write("/run/fleet.yaml", "store: file:///run\ngroups: []\n")
    good = lab.host.tproxy("fleet", "check", "--policy", policy)
    lab.host.write("/run/fleet.yaml", "store: file:///run\ngroups: none\n")
    bad = lab.host.tproxy("fleet", "check", "--policy", policy, check=False)
    assert bad.stderr == f"tproxy: {policy}:2: groups 'none' is not a list\n"
    return [good, bad]


def hook(lab: OneBridge) -> list[Done]:
    lab.host.add_bridge("br1")
    up = ("hook", "up", "--bridge", "br1", "--config", lab.config)
    planned = lab.host.tproxy(*up, "--dry-run")
    assert planned.stdout
    return [lab.host.tproxy(*up), lab.host.tproxy("hook", "down", "--bridge", "br1")]


def watch(lab: OneBridge) -> list[Done]:
    log = lab.host.path("/var/log/one_tproxy.log")
    lab.host.write(
        "/run/watch.yaml", f"tproxy_bridges: [{{bridge: br0}}]\n{lab.host.path(lab.config).read_text()}"
    )
    end = ("pkill", "-TERM", "-f", "^tproxy-watch *$")
    return [until(lab, lambda: "watching" in log.read_text(), end, "watch", "--config", "/run/watch.yaml")]


def gc(lab: OneBridge) -> list[Done]:
    lab.host.ip("link del br0")
    done = lab.host.tproxy("gc", "--grace", "0")
    assert lab.pids() == {}
    assert "remove namespace one_tproxy_br0" in done.stdout.splitlines()
    return [done]


def install(lab: OneBridge) -> list[Done]:
    done = lab.host.tproxy("install", *LIBVIRT)
    changed = re.findall(r"/run/hooks/\S+", done.stdout)
    assert changed
    assert all(lab.host.path(each).exists() for each in changed)
    return [done]


def uninstall(lab: OneBridge) -> list[Done]:
    lab.host.tproxy("install", *LIBVIRT)
    done = lab.host.tproxy("uninstall", *LIBVIRT)
    removed = re.findall(r"/run/hooks/\S+", done.stdout)
    assert removed
    assert not any(lab.host.path(each).exists() for each in removed)
    return [done]


def daemon(lab: OneBridge) -> list[Done]:
    lab.host.tproxy("stop")
    end = (sys.executable, "-m", "tproxy", "stop")
    return [until(lab, lambda: "one_tproxy" in lab.pids(), end, "daemon")]


def event(lab: OneBridge) -> list[Done]:
    lab.host.add_bridge("br1")
    command = (sys.executable, "-m", "tproxy", "event")
    begin = ("libvirt", "qemu", "web", "prepare", "begin", "-")
    done = lab.host.run(*command, *begin, input=DOMAIN, env={"TPROXY_CONFIG": lab.config})
    assert "one_tproxy_br1" in lab.pids()
    assert lab.host.run(*command, "nobody", check=False).returncode == 2
    return [done]


def until(lab: OneBridge, ready: Callable[[], bool], end: tuple[str, ...], *arguments: str) -> Done:
    """Run a command that does not return by itself until it is ready; then end it by the command ``end``."""
    command = (sys.executable, "-m", "tproxy", *arguments)
    process = lab.host.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in eventually():
        assert process.poll() is None
        with suppress(OSError, ProcessError):  # it is starting
            if ready():
                break
    lab.host.run(*end)
    out, err = process.communicate(timeout=PATIENCE)
    # Ended by SIGTERM: for a service manager this is success, systemd.service(5), SuccessExitStatus=.
    code = 0 if process.returncode == -signal.SIGTERM else process.returncode
    return subprocess.CompletedProcess(command, code, out, err)


# A check for each row of the table: it returns how the commands ended. lab/test_lab.py checks ``lab``.
COMMANDS: dict[str, Callable[[OneBridge], list[Done]]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        *(start, reload, reopen_logs, restart, stop, status, connections, kill, log_level, metrics),
        *(refresh, check, doctor, probe, trace, route, gateway, tunnel, node, operator, names, sync),
        *(follow, fleet),
        *(hook, watch, gc, install, uninstall),
        *(daemon, egress, event),
    )
}


def test_each_command_of_the_contract_has_a_check() -> None:
    assert [*COMMANDS, "lab"] == table("Commands", "command").column("command")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_does_and_prints_what_the_contract_says(lab: OneBridge, command: str) -> None:
    row = table("Commands", "command").by_first_column()[command]
    codes = set(map(int, re.findall(r"\b\d+\b", row["exit codes"])))
    for done in COMMANDS[command](lab):
        assert done.returncode in codes
        if row["stdout"].startswith("nothing"):
            assert done.stdout == ""
        for form in quoted(row["stdout"]):
            if form.startswith("FILE: ") and done.returncode == 0:
                pattern = (
                    re.escape(form).replace("FILE", r"\S+").replace("N", r"\d+").replace("ies", "(?:ies|y)")
                )
                assert re.fullmatch(pattern.replace("entries", "(entry|entries)"), done.stdout.strip())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("status", 0),
        ("metrics --listen nowhere", 1),
        ("hook up --bridge nobody --config /run/tproxy.yaml", 1),
        ("check /nowhere", 1),
        ("hook up", 2),
        ("nonsense", 2),
        ("event nonsense", 2),
    ],
)
def test_an_exit_code_says_what_the_contract_says(lab: OneBridge, arguments: str, code: int) -> None:
    assert str(code) in table("Commands", "exit code").column("exit code")
    done = lab.host.tproxy(*arguments.split(), check=False)
    assert done.returncode == code
    assert done.stderr.count("\n") == (code != 0)


def test_status_as_json_has_the_keys_of_the_contract_and_no_other(lab: OneBridge) -> None:
    lab.nft("add map ip one_tproxy rt_br0 { type mark . mark : ipv4_addr . inet_service; }")
    lab.nft('add element ip one_tproxy rt_br0 { 0xd434f394 . 0 comment "id=web2" : 10.0.0.5 . 80 }')
    lab.host.tproxy("reload")
    lab.host.run("ip", "link", "set", "br0b", "nomaster")  # an obstacle
    shown = json.loads(lab.host.tproxy("status", "--json").stdout)
    keys = set(table("Output of `status`", "key", "value").column("key"))
    service = "daemon.bridges.*.services[]"
    named = {"daemon.bridges", f"{service}.limited", f"{service}.options"}
    named.add("daemon.bridges.*.routes[].limited")
    keys_there = table("Limits and time-outs", "key", page=LIMITS).column("key")
    limits = {key.removeprefix("tproxy_") for key in keys_there}
    for each in (one for bridge in shown["daemon"]["bridges"].values() for one in bridge["services"]):
        # The two that are left out are counted as failed dials, and as sessions that have finished.
        assert {*each["limited"]} == limits - {"connect_timeout", "udp_idle_timeout"} | {"network"}
        assert limits - {"max_connections"} <= {*each["options"]} == {*SERVICE}
    assert keys_of(shown, named) - {"processes[].title", "processes[].pid"} == keys
    jsonschema.validate(shown, strict(schemas.of_status()))
    lab.host.tproxy("stop")
    jsonschema.validate(json.loads(lab.host.tproxy("status", "--json").stdout), schemas.of_status())


def keys_of(value: object, names: set[str], at: str = "") -> set[str]:
    """Return the keys of a JSON value and of everything in it, such as ``daemon.bridges.*.relay``.

    The keys of the objects at ``names`` are names, and a ``*`` stands for each of them.
    """
    if isinstance(value, list):
        return set().union(*(keys_of(each, names, f"{at}[]") for each in value))
    if not isinstance(value, dict):
        return set()
    if at in names:
        return set().union(*(keys_of(each, names, f"{at}.*") for each in value.values()))
    inner = {f"{at}.{key}".removeprefix("."): each for key, each in value.items()}
    return {*inner}.union(*(keys_of(each, names, path) for path, each in inner.items()))
