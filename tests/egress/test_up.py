"""``tproxy egress up --foreground``: the whole node, as guests, hosts and operators see it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.egress.node import PATIENCE, PROGRAMS, Node
from tests.egress.official import publish
from tests.egress.up import TPROXY, up
from tests.netns.waiting import eventually
from tproxy import proxy_protocol
from tproxy.egress.policy import edit

POLICY = """\
rules:
  - networks: [build]
    pypi: [good]
    get: ["https://host.example/releases/*"]
"""
A = "https://host.example/releases/a"


@pytest.fixture(scope="module")
def node(engines: None) -> Iterator[Node]:
    with Node(POLICY, mirror=True, squid=False) as node:
        publish(node, "good", "1.0")
        node.site("host.example", "/releases/a", "file a\n")
        node.site("other.example", "/releases/a", "of another host\n")
        node.up = up(node)
        yield node


def test_the_start_up_log_shows_the_fingerprint(node: Node) -> None:
    shown = node.run(*TPROXY, "ca", "--root", str(node.root)).stdout
    fingerprint = next(line for line in shown.splitlines() if line.startswith("SHA-256"))
    assert fingerprint in (node.root / "up.log").read_text()


def test_pip_installs_through_proxy_and_mirror(node: Node) -> None:
    proxy = node.caller(network="build")
    done = node.pip_download(proxy, "good")
    assert done.returncode == 0, done.stdout + done.stderr
    assert node.pip_download(node.caller(network="lab"), "good").returncode != 0


def transparent(node: Node, url: str, **values: str) -> tuple[int, str]:
    """Fetch as a client does that knows no proxy: it connects to the service address, port 443."""
    listen = node.caller(port=443, **values).rpartition(":")[2]
    host = url.split("/")[2]
    done = node.run(
        *("curl", "-sS", "-m", "20", "-w", "\n%{http_code}", "--cacert", str(node.trusted)),
        *("--connect-to", f"{host}:443:127.0.0.1:{listen}", url),
        check=False,
    )
    body, _, code = done.stdout.rpartition("\n")
    return int(code), body + done.stderr


def test_a_client_that_knows_no_proxy_is_served_by_its_server_name(node: Node) -> None:
    assert transparent(node, A, network="build") == (200, "file a\n")
    assert transparent(node, "https://host.example/secret", network="build")[0] == 403


def test_a_client_that_knows_no_proxy_is_denied_by_the_policy(node: Node) -> None:
    for url, network in ((A, "lab"), ("https://other.example/releases/a", "build")):
        status, text = transparent(node, url, network=network)
        assert status != 200
        assert "of another host" not in text
        assert "file a" not in text


def test_the_resolver_leads_hosts_of_the_policy_to_the_service_address(node: Node) -> None:
    program = (
        "import dns.message as m, dns.query as q, sys\n"
        "for ask in (q.udp, q.tcp):\n"
        "    for name in sys.argv[1:]:\n"
        "        found = ask(m.make_query(name, 'A'), '127.0.0.1', 10, 5353).answer\n"
        "        print(*[data for records in found for data in records] or '-')\n"
    )
    done = node.run(sys.executable, "-c", program, "pypi.org", "host.example", "evil.example")
    assert done.stdout.split() == ["169.254.16.9", "169.254.16.9", "-"] * 2


def test_only_tproxys_own_users_may_send_headers(node: Node) -> None:
    """A program of another user on this host claims to be a guest of the network build."""
    head = proxy_protocol.encode(("10.0.0.5", 1), ("169.254.16.9", 80), {proxy_protocol.OF_NETWORK: "build"})
    request = (
        b"GET http://host.example/releases/none HTTP/1.1\r\nHost: host.example\r\nConnection: close\r\n\r\n"
    )
    words = (sys.executable, str(PROGRAMS / "raw.py"))
    for port in ("3128", "8443", "443", "3192"):
        as_nobody = node.run(
            "setpriv", "--reuid=65534", "--clear-groups", *words, port, (head + request).hex()
        )
        assert "ended: [Errno 111]" in as_nobody.stdout
    as_worker = node.run(
        "setpriv", "--reuid=1900000123", "--clear-groups", *words, "3128", (head + request).hex()
    )
    assert "403" in as_worker.stdout  # the proxy answers: http:// is not what the rule allows


def test_squid_itself_cannot_connect_to_inner_addresses(node: Node) -> None:
    """A name that changes its address after squid has looked at it. The last one is the node's own."""
    node.run("ip", "address", "add", "93.184.215.77/32", "dev", "lo")
    for address in ("10.9.9.9", "127.0.0.1", "169.254.16.9", "93.184.215.77"):
        words = ("setpriv", "--reuid=proxy", "--clear-groups", "curl", "-sS", "-m", "5", f"http://{address}/")
        assert "Failed to connect" in node.run(*words, check=False).stderr


def change(node: Node, text: str) -> None:
    """Write a policy that squid has to be told of, and wait until it has taken it."""
    log = node.layout.log / "squid.log"
    before = log.read_text().count("Accepting SSL bumped")
    node.write_policy(text)
    node.wait_for(lambda: log.read_text().count("Accepting SSL bumped") >= before + 2, "squid with it")


def test_a_change_of_ports_drops_no_download(node: Node) -> None:
    node.site("host.example", "/releases/large", os.urandom(20_000_000))
    proxy = node.caller(network="build")
    slow = node.popen_curl(proxy, "https://host.example/releases/large", "--limit-rate", "3M")
    node.wait_for(lambda: any("large" in line for line in node.requests()), "a download")
    text = node.policy.read_text()
    change(node, f"clients: {{10.88.0.0/16: office}}\n{text}")
    assert node.curl(node.caller(network="build"), A) == (200, "file a\n")
    output, _ = slow.communicate()
    assert (slow.returncode, output.strip()) == (0, "200 20000000")
    change(node, text)


def squids(node: Node) -> set[int]:
    return {
        each.pid
        for each in psutil.process_iter(["name", "cmdline"])
        if each.info["name"] == "squid" and any(str(node.root) in word for word in each.info["cmdline"] or ())
    }


def test_new_downloads_use_the_new_squid_at_once_and_the_old_one_ends_its_own(node: Node) -> None:
    """While the squids change, somebody connects again and again: he waits, and is never refused."""
    node.site("host.example", "/releases/long", os.urandom(40_000_000))
    proxy = node.caller(network="build")
    (old,) = squids(node)
    slow = node.popen_curl(proxy, "https://host.example/releases/long", "--limit-rate", "4M")
    node.wait_for(lambda: any("long" in line for line in node.requests()), "a download")
    knock = node.popen(
        *(sys.executable, str(PROGRAMS / "knock.py"), "3128"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert knock.stdout is not None
    assert knock.stdout.readline() == "ready\n"
    node.up.send_signal(signal.SIGHUP)
    node.wait_for(lambda: len(squids(node)) == 2, "a new squid")
    node.wait_for(lambda: int(node.layout.squid_pid.read_text()) != old, "it takes connections")
    assert knock.communicate()[0] == "0\n"
    assert psutil.pid_exists(old)  # with the download
    assert node.curl(proxy, A) == (200, "file a\n")
    output, _ = slow.communicate()
    assert (slow.returncode, output.strip()) == (0, "200 40000000")
    node.wait_for(lambda: old not in squids(node), "the old squid ends when nothing is under way")
    assert node.curl(proxy, A) == (200, "file a\n")


def test_an_edit_by_the_command_applies_to_the_next_request(node: Node) -> None:
    publish(node, "late", "1.0")
    proxy = node.caller(network="build")
    assert node.curl(proxy, "https://pypi.org/simple/late/")[0] == 403
    node.run(*TPROXY, "allow", "pypi", "late", "--network", "build", "--policy", str(node.policy))
    assert node.curl(proxy, "https://pypi.org/simple/late/")[0] == 200
    edit.set_pypi(node.policy, "late", "build", allow=False)


@pytest.fixture
def guest(node: Node) -> Iterator[tuple[str, ...]]:
    """Return words that run a command as root of a machine with files of its own."""
    own = node.root / "guest"
    shutil.copytree("/etc", own / "etc", symlinks=True)
    (own / "local").mkdir()
    # Of the machine that runs the tests; its hooks write elsewhere.
    (own / "etc/pip.conf").unlink(missing_ok=True)
    hooks = own / "etc/ca-certificates/update.d"
    shutil.rmtree(hooks, ignore_errors=True)
    hooks.mkdir(parents=True)
    (hooks / "tell").write_text("#!/bin/sh\ncat >>/etc/told\n")
    (hooks / "tell").chmod(0o755)
    mounts = f"mount --bind {own}/etc /etc && mount --bind {own}/local /usr/local/share/ca-certificates"
    yield (
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'mkdir -p /usr/local/share/ca-certificates; {mounts} && exec "$@"',
        "guest",
    )
    shutil.rmtree(own)


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of everything in a directory; a link's content is where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = (
            os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        )
        found[str(path.relative_to(folder))] = (mode, content)
    return found


def test_the_scripts_set_a_guest_up_check_it_and_undo_it(node: Node, guest: tuple[str, ...]) -> None:
    listen = node.caller(network="build").removeprefix("http://")
    address = "http://127.0.0.1:8480"
    setup, check = node.root / "setup.sh", node.root / "check.sh"
    setup.write_text(node.run("curl", "-sSf", f"{address}/setup?proxy={listen}").stdout)
    check.write_text(node.run("curl", "-sSf", f"{address}/check?proxy={listen}").stdout)
    own = node.root / "guest"
    # What an undo makes anew is in the order in which it makes it.
    node.run(*guest, "update-ca-certificates", "--fresh")
    told = own / "etc/told"
    told.unlink()
    untouched = tree(own)
    before = node.run(*guest, "sh", str(check), check=False)
    assert before.returncode == 1
    assert "tproxy-egress.crt is missing" in before.stdout
    assert tree(own) == untouched
    assert "written: /etc/pip.conf" in node.run(*guest, "sh", "-c", f"umask 077; sh {setup}").stdout
    done = tree(own)
    assert "written" not in node.run(*guest, "sh", str(setup)).stdout  # nothing to change
    assert tree(own) == done
    changed = {name for name, found in done.items() if untouched.get(name) != found}
    assert {mode & 0o777 for name, (mode, _) in done.items() if name in changed} <= {0o644, 0o755, 0o777}
    shell = ". /etc/profile.d/tproxy-egress.sh; "
    after = node.run(*guest, "sh", "-c", f"{shell} sh {check}", check=False)
    assert (after.returncode, after.stdout) == (0, "in order\n")
    fetched = node.run(*guest, "sh", "-c", f"{shell} curl -sS {A}")
    assert fetched.stdout == "file a\n"
    assert f"proxy = http://{listen}" in (own / "etc/pip.conf").read_text()
    assert "removed: /etc/pip.conf" in node.run(*guest, "sh", str(setup), "--undo").stdout
    ours = [line for line in told.read_text().splitlines() if "tproxy" in line]
    assert ours == ["+/etc/ssl/certs/tproxy-egress.pem", "-/etc/ssl/certs/tproxy-egress.pem"]
    told.unlink()
    assert tree(own) == untouched
    assert node.run(*guest, "sh", str(check), check=False).returncode == 1


# Something that is wrong on a machine, and what the check says of it.
SPOILS = {
    "rm /etc/containerd/certs.d/quay.io/hosts.toml": "quay.io/hosts.toml is missing, or has changed",
    "echo '[global]' >/etc/pip.conf": "somebody else wrote /etc/pip.conf",
    "echo >>/etc/profile.d/tproxy-egress.sh": "profile.d/tproxy-egress.sh is missing, or has changed",
    ": >/etc/ssl/certs/ca-certificates.crt": "the authority is not in",
    "unset REQUESTS_CA_BUNDLE": "REQUESTS_CA_BUNDLE is not /etc/ssl/certs/ca-certificates.crt",
    "https_proxy=http://127.0.0.1:1": "https_proxy is not",
    "echo 'Acquire::http::Proxy \"http://x:1\";' >/etc/apt/apt.conf.d/99x": "apt does not use",
}


def test_the_check_names_what_is_wrong(node: Node, guest: tuple[str, ...]) -> None:
    listen = node.caller(network="build").removeprefix("http://")
    setup, own = node.root / "setup.sh", node.root / "guest"
    setup.write_text(node.run("curl", "-sSf", f"http://127.0.0.1:8480/setup?proxy={listen}").stdout)
    node.run(*guest, "sh", str(setup))
    shutil.copytree(own / "etc", own / "right", symlinks=True)
    for spoil, words in SPOILS.items():
        command = f". /etc/profile.d/tproxy-egress.sh; {spoil}; sh {setup} --check"
        found = node.run(*guest, "sh", "-c", command, check=False)
        assert (found.returncode, len(found.stdout.splitlines())) == (1, 1), found.stdout + found.stderr
        assert words in found.stdout
        shutil.rmtree(own / "etc")
        shutil.copytree(own / "right", own / "etc", symlinks=True)


def test_the_set_up_leaves_files_of_others_alone(node: Node, guest: tuple[str, ...]) -> None:
    own = node.root / "guest/etc/pip.conf"
    own.write_text("[global]\ntimeout = 5\n")
    setup = node.root / "setup.sh"
    setup.write_text(node.run("curl", "-sSf", "http://127.0.0.1:8480/setup").stdout)
    done = node.run(*guest, "sh", str(setup))
    assert "left alone" in done.stderr
    node.run(*guest, "sh", str(setup), "--undo")
    assert own.read_text() == "[global]\ntimeout = 5\n"


def test_the_set_up_can_be_for_some_units_only(node: Node, guest: tuple[str, ...]) -> None:
    setup = node.root / "units.sh"
    setup.write_text(node.run("curl", "-sSf", "http://127.0.0.1:8480/setup?units=docker").stdout)
    node.run(*guest, "sh", str(setup))
    etc = node.root / "guest/etc"
    assert "HTTPS_PROXY=" in (etc / "systemd/system/docker.service.d/tproxy-egress.conf").read_text()
    assert not (etc / "profile.d/tproxy-egress.sh").exists()
    check = node.run("curl", "-sSf", "http://127.0.0.1:8480/check?units=docker").stdout
    assert node.run(*guest, "sh", "-c", check).stdout == "in order\n"
    node.run(*guest, "sh", str(setup), "--undo")
    assert not (etc / "systemd/system/docker.service.d").exists()


def test_a_policy_that_squid_may_not_read_is_refused_at_the_start(engines: None) -> None:
    with Node(POLICY, squid=False) as node:
        node.policy.chmod(0o600)
        done = node.run(*TPROXY, "run", "squid", "--root", str(node.root), check=False)
        assert done.returncode == 1
        assert "cannot be read by the user proxy: chmod o+r" in done.stderr


def test_a_taken_port_names_its_holder(engines: None) -> None:
    with Node(POLICY, squid=False) as node:
        holder = node.popen("python3", "-m", "http.server", "--bind", "127.0.0.1", "8443")
        node.wait_for(lambda: node.listens(8443), "the holder listens")
        done = node.run(*TPROXY, "up", "--foreground", "--root", str(node.root), check=False)
        assert done.returncode == 1
        assert "port 8443" in done.stderr
        assert f"python3 (process {holder.pid})" in done.stderr


def test_parts_that_are_killed_come_back_and_a_signal_ends_all_in_order(engines: None) -> None:
    with Node(POLICY, squid=False) as node:
        child = up(node)
        status = (*TPROXY, "status", "--root", str(node.root))
        for _ in eventually():  # the mirror has signed the ledger's head
            if node.run(*status, check=False).returncode == 0:
                break
        before = {each: pid_of(child.pid, each) for each in ("mirror", "squid", "front")}
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        for _ in eventually():
            with suppress(LookupError):
                now = {each: pid_of(child.pid, each) for each in before}
                changed = all(now[each] != before[each] for each in before)
                if changed and node.run(*status, check=False).returncode == 0:
                    break
        log = (node.root / "up.log").read_text()
        assert "squid has ended with status -9, and is started again" in log
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE * 2) == 0
        for port in (3128, 443, 3190, 8480):
            node.wait_for(lambda port=port: not node.listens(port), f"port {port} is free")


def pid_of(parent: int, part: str) -> int:
    """Return the process id of a part; raise LookupError when it does not run."""
    for child in psutil.Process(parent).children():
        with suppress(psutil.Error):
            if part in child.cmdline() or child.name() == part:
                return child.pid
    raise LookupError(part)


def test_both_authorities_are_valid_during_a_rotation(engines: None) -> None:
    with Node(POLICY) as node:
        node.site("host.example", "/releases/a", "file a\n")
        proxy = node.caller(network="build")
        old = Path(node.root / "old.pem")
        old.write_text(node.trusted.read_text())
        assert node.curl(proxy, A)[0] == 200
        node.run(*TPROXY, "ca", "--rotate", "--root", str(node.root))
        node.restart_squid()
        new = node.root / "new.pem"
        new.write_bytes((node.layout.authority / "ca.pem").read_bytes())
        assert new.read_text() != old.read_text()
        for trusted in (old, new, node.trusted):
            assert node.curl(proxy, A, "--cacert", str(trusted)) == (200, "file a\n")
        node.run(*TPROXY, "ca", "--finish", "--root", str(node.root))
        node.restart_squid()
        assert node.curl(proxy, A, "--cacert", str(new))[0] == 200
        assert node.curl(proxy, A, "--cacert", str(old))[0] != 200
