"""``tproxy start``, ``stop``, ``restart``, ``reload`` and ``status``: docs/contract.md, Commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.netns.conftest import StartEndpoint
from tests.netns.waiting import eventually
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Guest, Hypervisor
from tproxy.model import SERVICE_ADDRESS

ENDPOINT = "10.11.12.13"


class Lab:
    """A bridge that was plumbed by the hook, whose map the test then loads by hand."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        host.add_bridge("br0")
        self.guest: Guest = host.add_guest("guest", "br0")
        host.add_endpoint(ENDPOINT, 8080, "one")
        host.add_endpoint(ENDPOINT, 8081, "two")
        self.config = host.write(
            "/run/tproxy.yaml",
            f"tproxy: [{{service_port: 5030, remote_addr: {ENDPOINT}, remote_port: 8080}}]\n",
        )
        host.tproxy("hook", "up", "--bridge", "br0", "--config", self.config)

    def nft(self, *commands: str) -> None:
        self.host.run("nft", "; ".join(commands))

    def element(self, verb: str, port: int, remote: int = 8080) -> str:
        return f"{verb} element ip one_tproxy ep_br0 {{ {port} : {ENDPOINT} . {remote} }}"

    def ask(self, port: int = 5030) -> str:
        return self.guest.get(SERVICE_ADDRESS, port)

    def pids(self) -> dict[str, int]:
        lines = self.host.tproxy("status").stdout.splitlines()
        return {title: int(pid) for title, pid in (line.split(": ") for line in lines)}

    def kill_spawner(self) -> None:
        """Returns when it has ended, which is some time after the signal."""
        title = ("-f", "^tproxy-spawner *$")
        self.host.run("pkill", "-KILL", *title)
        for _ in eventually():
            if not self.host.run("pgrep", *title, check=False).stdout:
                break

    def listeners(self) -> dict[str, str]:
        """The listening sockets' inodes by port: another inode is another socket."""
        lines = self.host.run("ss", "-Hltne", netns="one_tproxy_br0").stdout.splitlines()
        return {line.split()[3].rpartition(":")[2]: str(re.search(r"ino:(\d+)", line)) for line in lines}


@pytest.fixture
def lab(hypervisor: Hypervisor) -> Lab:
    return Lab(hypervisor)


TALKER = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as sock:
    print('ready', flush=True)
    for line in sys.stdin:
        sock.sendall(line.encode())
        print(sock.recv(100).decode(), end='', flush=True)
"""

ECHO = """
import socket, sys, threading
def serve(sock):
    with sock:
        while data := sock.recv(65536):
            sock.sendall(data)
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as listener:
    print('ready', flush=True)
    while True:
        threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
"""


class Conversation:
    """A guest's connection that stays open."""

    def __init__(self, lab: Lab, port: int = 5030) -> None:
        self._process = lab.guest.popen(
            sys.executable, "-c", TALKER, SERVICE_ADDRESS, str(port),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def say(self, words: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(words, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().rstrip("\n")


@pytest.fixture
def echo(lab: Lab) -> Lab:
    lab.host.add_endpoint(ENDPOINT, 9000, program=(sys.executable, "-c", ECHO))
    lab.nft(lab.element("add", 7, 9000))
    lab.host.tproxy("reload")
    return lab


def test_status_prints_a_line_for_each_process_daemon_first(lab: Lab) -> None:
    lab.host.add_bridge("br1")
    lab.host.tproxy("hook", "up", "--bridge", "br1", "--config", lab.config)
    done = lab.host.tproxy("status")
    assert re.fullmatch(r"one_tproxy: \d+\none_tproxy_br0: \d+\none_tproxy_br1: \d+\n", done.stdout)
    for title, pid in lab.pids().items():
        cmdline = lab.host.run("cat", f"/proc/{pid}/cmdline").stdout
        assert cmdline.rstrip("\0") == title


def test_status_of_nothing_prints_nothing(hypervisor: Hypervisor) -> None:
    done = hypervisor.tproxy("status")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_start_with_no_map_is_quiet_and_stops_everything(lab: Lab) -> None:
    lab.host.run("nft", "flush", "ruleset")
    done = lab.host.tproxy("start")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert lab.host.tproxy("status").stdout == ""
    assert lab.host.tproxy("start").returncode == 0


def test_a_program_that_only_loads_maps_gets_its_service(lab: Lab) -> None:
    lab.host.tproxy("stop")
    lab.host.run("nft", "flush", "ruleset")
    for command in (
        "add table ip one_tproxy",
        "add map ip one_tproxy ep_br0 { type inet_service : ipv4_addr . inet_service; }",
        f"add element ip one_tproxy ep_br0 {{ 5055 : {ENDPOINT} . 8081 }}",
    ):
        lab.host.run("nft", command)
    for verb in ("start", "reload"):
        lab.host.tproxy(verb)
        assert lab.ask(5055) == "two"
        lab.host.tproxy("stop")


def test_start_is_idempotent_and_starts_only_what_is_missing(lab: Lab) -> None:
    before = lab.pids()
    lab.host.tproxy("start")
    assert lab.pids() == before
    lab.host.run("kill", "-9", str(before["one_tproxy"]))
    lab.host.tproxy("start")
    after = lab.pids()
    assert after["one_tproxy_br0"] == before["one_tproxy_br0"]
    assert after["one_tproxy"] != before["one_tproxy"]
    assert lab.ask() == "one"


def test_start_ends_relays_whose_map_is_gone(lab: Lab) -> None:
    lab.host.add_bridge("br1")
    lab.host.tproxy("hook", "up", "--bridge", "br1", "--config", lab.config)
    lab.nft("delete map ip one_tproxy ep_br0")
    lab.host.tproxy("start")
    assert set(lab.pids()) == {"one_tproxy", "one_tproxy_br1"}


def test_start_says_which_map_has_no_namespace_and_serves_the_others(lab: Lab) -> None:
    lab.nft(
        "add map ip one_tproxy ep_nons { type inet_service : ipv4_addr . inet_service; }",
        f"add element ip one_tproxy ep_nons {{ 80 : {ENDPOINT} . 8080 }}",
        lab.element("add", 5031, 8081),
    )
    done = lab.host.tproxy("start", check=False)
    assert done.returncode == 1
    assert "nons" in done.stderr
    assert done.stderr.count("\n") == 1
    assert lab.ask(5031) == "two"


def test_reload_leaves_listeners_and_connections_that_stay_alone(echo: Lab) -> None:
    conversation = Conversation(echo, 7)
    assert conversation.say("hello") == "hello"
    pids, listeners = echo.pids(), echo.listeners()
    echo.nft(echo.element("add", 5031, 8081))
    echo.host.tproxy("reload")
    assert echo.pids() == pids
    assert listeners.items() <= echo.listeners().items()
    assert echo.ask(5031) == "two"
    assert conversation.say("still here") == "still here"


def test_reload_dials_a_changed_endpoint_and_lets_open_connections_be(echo: Lab) -> None:
    conversation = Conversation(echo, 7)
    assert conversation.say("hello") == "hello"
    echo.nft(echo.element("delete", 7, 9000), echo.element("add", 7, 8081))
    echo.nft(echo.element("delete", 5030), echo.element("add", 5030, 8081))
    echo.host.tproxy("reload")
    assert echo.ask(5030) == "two"
    assert echo.ask(7) == "two"
    assert conversation.say("the old one") == "the old one"


def test_reload_drops_gone_ports_and_acts_on_an_emptied_map(echo: Lab) -> None:
    conversation = Conversation(echo, 7)
    echo.nft(echo.element("delete", 5030))
    echo.host.tproxy("reload")
    with pytest.raises(ProcessError, match=r"ECONNREFUSED"):
        echo.ask(5030)
    echo.nft("flush map ip one_tproxy ep_br0")
    echo.host.tproxy("reload")
    assert echo.listeners() == {}
    with pytest.raises(ProcessError, match=r"ECONNREFUSED"):
        echo.ask(7)
    assert conversation.say("open connections go on") == "open connections go on"


def test_a_gone_port_does_not_listen_when_reload_returns_however_slow_the_relay_is(echo: Lab) -> None:
    relay = str(echo.pids()["one_tproxy_br0"])
    slow = ("-e", "trace=close", "-e", "inject=close:delay_enter=3000000")
    tracer = echo.host.popen("strace", "-o", "/dev/null", "-p", relay, *slow, stderr=subprocess.PIPE)
    assert tracer.stderr is not None
    assert "attached" in tracer.stderr.readline()
    echo.nft(echo.element("delete", 5030))
    echo.host.tproxy("reload")
    with pytest.raises(ProcessError, match=r"ECONNREFUSED"):
        echo.ask(5030)
    assert set(echo.listeners()) == {"7"}
    tracer.terminate()


def test_restart_replaces_every_process_and_cuts_no_connection(echo: Lab) -> None:
    conversation = Conversation(echo, 7)
    assert conversation.say("before") == "before"
    for _ in range(3):
        before = echo.pids()
        echo.host.tproxy("restart")
        after = echo.pids()
        assert set(after) == set(before)
        assert not set(after.values()) & set(before.values())
        assert echo.ask() == "one"
        assert conversation.say("after") == "after"
    echo.host.tproxy("stop")
    titles = echo.host.run("ps", "-eo", "args").stdout.splitlines()
    assert [each for each in titles if each.startswith(("one_tproxy", "tproxy-"))] == []


def test_a_connection_from_before_a_restart_ends_when_its_bridge_goes(echo: Lab) -> None:
    echo.host.add_bridge("br1")  # the daemon stays for another one
    echo.host.tproxy("hook", "up", "--bridge", "br1", "--config", echo.config)
    conversation = Conversation(echo, 7)
    echo.host.tproxy("restart")
    assert conversation.say("after") == "after"
    echo.host.tproxy("hook", "down", "--bridge", "br0", "--force")
    for _ in eventually():
        if echo.host.run("ss", "-Htn", "dport = :9000").stdout == "":
            break


def test_no_guest_is_refused_while_it_restarts(echo: Lab) -> None:
    asker = echo.guest.popen(
        sys.executable, "-c", ASKER, SERVICE_ADDRESS, "5030", stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert asker.stdout is not None
    for _ in range(3):
        for _ in range(7):
            assert asker.stdout.readline() == "asked\n"
        echo.host.tproxy("restart")
    out, _ = asker.communicate("stop\n")
    assert json.loads(out.splitlines()[-1]) == []


ASKER = """
import json, select, socket, sys
failed = []
while not select.select([sys.stdin], [], [], 0)[0]:
    print('asked', flush=True)
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as sock:
            sock.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
            answer = b''.join(iter(lambda: sock.recv(4096), b''))
            if not answer.endswith(b'one'):
                failed.append(repr(answer))
    except OSError as error:
        failed.append(repr(error))
print(json.dumps(failed))
"""


def test_stop_ends_all_and_what_is_stopped_can_start_again(lab: Lab) -> None:
    pids = lab.pids()
    lab.host.tproxy("stop")
    assert lab.host.tproxy("status").stdout == ""
    for pid in pids.values():
        assert lab.host.run("kill", "-0", str(pid), check=False).returncode != 0
    lab.host.tproxy("stop")
    lab.host.tproxy("start")
    assert lab.ask() == "one"


def test_commands_from_everywhere_at_once_end_in_a_working_state(lab: Lab) -> None:
    commands = ["start", "reload", "restart", "status", "stop", "start", "restart", "reload"]
    running = [
        lab.host.popen(sys.executable, "-m", "tproxy", each, stderr=subprocess.PIPE) for each in commands
    ]
    assert [each.communicate()[1] for each in running] == [""] * len(commands)
    lab.host.tproxy("start")
    assert set(lab.pids()) == {"one_tproxy", "one_tproxy_br0"}
    assert lab.ask() == "one"


def test_a_relay_that_dies_is_replaced(lab: Lab) -> None:
    before = lab.pids()
    lab.host.run("kill", "-9", str(before["one_tproxy_br0"]))
    for _ in eventually():
        if lab.pids().get("one_tproxy_br0", before["one_tproxy_br0"]) != before["one_tproxy_br0"]:
            break
    for _ in eventually():
        if lab.listeners():
            break
    assert lab.pids()["one_tproxy"] == before["one_tproxy"]
    assert lab.ask() == "one"


def test_a_spawner_that_is_killed_is_replaced_when_a_relay_is_wanted(lab: Lab) -> None:
    """As by the kernel when memory is short: services come and relays are replaced all the same."""
    before = lab.pids()
    lab.kill_spawner()
    lab.host.add_bridge("br1")
    lab.host.tproxy("hook", "up", "--bridge", "br1", "--config", lab.config)
    lab.kill_spawner()
    lab.host.run("kill", "-9", str(before["one_tproxy_br0"]))
    for _ in eventually():
        after = lab.pids()
        if len(after) == 3 and after["one_tproxy_br0"] != before["one_tproxy_br0"] and lab.listeners():
            break
    assert lab.ask() == "one"
    assert lab.pids()["one_tproxy"] == before["one_tproxy"]
    assert "[tproxy-spawner] <defunct>" not in lab.host.run("ps", "-ef").stdout
    lab.host.tproxy("stop")
    titles = lab.host.run("ps", "-eo", "args").stdout.splitlines()
    assert [each for each in titles if each.startswith(("one_tproxy", "tproxy-"))] == []


def test_guests_wait_while_the_daemon_is_away(lab: Lab) -> None:
    lab.host.run("kill", "-9", str(lab.pids()["one_tproxy"]))
    asker = lab.guest.popen(sys.executable, "-m", "tproxy.lab.hypervisor",
                            "ask", SERVICE_ADDRESS, "5030", "20", stdout=subprocess.PIPE)  # fmt: skip
    time.sleep(0.5)
    assert asker.poll() is None, "it was refused instead of waiting"
    lab.host.tproxy("start")
    assert asker.communicate()[0] == "one"


@pytest.mark.parametrize("lost", ["daemon killed", "restart cut short"])
def test_the_next_hook_for_any_bridge_serves_all_of_them_again(lab: Lab, lost: str) -> None:
    lab.host.add_bridge("br1")
    hook = ("--bridge", "br1", "--config", lab.config)
    lab.host.tproxy("hook", "up", *hook)
    before = lab.pids()
    if lost == "daemon killed":
        lab.host.run("kill", "-9", str(before["one_tproxy"]))
    else:
        lab.host.run(sys.executable, "-c", CUT_SHORT, "restart")
    lab.host.tproxy("hook", "up", *hook)
    assert lab.ask() == "one"
    for _ in eventually():
        after = lab.pids()
        if lost == "daemon killed" or not set(after.values()) & set(before.values()):
            break
    lab.host.tproxy("hook", "down", *hook)
    assert lab.ask() == "one"
    assert lab.pids().items() >= {"one_tproxy": after["one_tproxy"]}.items()


# As if it had been killed when the new daemon was there, and knew of no map yet.
CUT_SHORT = """
from tproxy.cli import main
from tproxy.operations import life
life._apply_all = lambda *_, **__: []
main.main()
"""


def test_a_process_with_a_borrowed_title_is_neither_shown_nor_ended(lab: Lab) -> None:
    code = """
import setproctitle, time
setproctitle.setproctitle('one_tproxy')
print('ready', flush=True)
time.sleep(60)
"""
    impostor = lab.host.serve(sys.executable, "-c", code)
    assert len(lab.pids()) == 2
    lab.host.tproxy("stop")
    assert impostor.poll() is None


def test_status_tells_of_each_service(lab: Lab) -> None:
    lab.nft(
        lab.element("add", 5031, 1),
        'add element ip one_tproxy ep_br0 { 5032 comment "name=web" : 10.11.12.13 . 8081 }',
    )
    lab.host.tproxy("reload")
    assert lab.ask() == "one"
    with pytest.raises(ProcessError, match=r"ECONNRESET"):
        lab.ask(5031)
    services: dict[int, Any] = {}
    for _ in eventually():  # a guest has its answer before the daemon hears that it needs no more
        status = json.loads(lab.host.tproxy("status", "--json").stdout)
        services = {each["port"]: each for each in status["daemon"]["bridges"]["br0"]["services"]}
        if not services[5030]["open"]:
            break
    assert [each["title"] for each in status["processes"]] == ["one_tproxy", "one_tproxy_br0"]
    assert services[5030]["endpoint"] == f"{ENDPOINT}:8080"
    assert services[5030]["listening"]
    assert (services[5030]["total"], services[5030]["open"]) == (1, 0)
    assert services[5030]["bytes_to_endpoint"] > 10
    assert services[5030]["bytes_to_guest"] > 10
    assert "refused" in services[5031]["last_error"]
    assert services[5031]["last_error_at"] > 1e9
    assert services[5032]["name"] == "web"
    table = lab.host.tproxy("status", "--verbose").stdout
    assert "one_tproxy_br0: " in table
    assert f"{ENDPOINT}:8081" in table
    assert "refused" in table


def test_status_shows_names_that_the_terminal_has_no_letters_for(lab: Lab) -> None:
    lab.host.tproxy("hook", "up", "--bridge", "br0", "--config", lab.config, "--network", "网络")
    latin = {"PYTHONIOENCODING": "latin-1:strict"}  # as in a locale of ISO 8859-1
    assert r"\u7f51\u7edc" in lab.host.tproxy("status", "--verbose", env=latin).stdout
    assert "网络" in lab.host.tproxy("status", "--verbose", env={"LC_ALL": "C.UTF-8"}).stdout


def test_the_log_has_a_line_for_each_connection_and_is_reopened(lab: Lab) -> None:
    log = lab.host.path("/var/log/one_tproxy.log")
    lab.ask()
    pattern = (
        rf"bridge=br0 guest={lab.guest.address}:\d+ port=5030 endpoint={ENDPOINT}:8080 "
        r"to_endpoint=\d+ to_guest=\d+ seconds=[\d.]+ end=finished"
    )
    for _ in eventually():
        if re.search(pattern, log.read_text()):
            break
    log.rename(log.with_suffix(".1"))
    lab.host.run("kill", "-HUP", str(lab.pids()["one_tproxy"]))
    for _ in eventually():
        if log.exists():
            break
    lab.ask()
    for _ in eventually():
        if re.search(pattern, log.read_text()):
            break
    assert lab.host.path("/var/log/one_tproxy_br0.log").exists()


def test_the_log_level_follows_the_configuration(lab: Lab) -> None:
    lab.host.write("/run/tproxy.yaml", "tproxy_debug_level: 1\n")
    lab.host.tproxy("reload", env={"TPROXY_CONFIG": "/run/tproxy.yaml"})
    lab.ask()
    lab.ask()
    assert "to_guest" not in lab.host.path("/var/log/one_tproxy.log").read_text()


def test_a_broken_configuration_does_not_keep_start_from_starting(lab: Lab) -> None:
    lab.host.write("/run/tproxy.yaml", "tproxy: [")
    done = lab.host.tproxy("start", env={"TPROXY_CONFIG": "/run/tproxy.yaml"})
    assert "/run/tproxy.yaml" in done.stderr
    assert lab.ask() == "one"


def test_more_ports_than_descriptors_are_named_and_the_others_are_served(lab: Lab) -> None:
    lab.host.tproxy("stop")
    ports = range(5030, 7130)
    elements = ", ".join(f"{port} : {ENDPOINT} . 8080" for port in ports)
    lab.nft("flush map ip one_tproxy ep_br0", f"add element ip one_tproxy ep_br0 {{ {elements} }}")
    start = "ulimit -n 2000; exec python3 -m tproxy start".replace("python3", sys.executable)

    done = lab.host.run("sh", "-c", start, check=False)

    assert done.returncode == 1
    lines = done.stderr.splitlines()
    named = {int(re.findall(r"port (\d+) cannot listen: Too many open files", line)[0]) for line in lines}
    listening = set(map(int, lab.listeners()))
    assert named == set(ports) - listening
    assert 5030 in listening
    assert lab.ask() == "one"


@pytest.mark.parametrize("descriptors", [256, 1024])
def test_with_few_descriptors_guests_are_served_all_the_same(lab: Lab, descriptors: int) -> None:
    lab.host.run("sh", "-c", f"ulimit -n {descriptors}; exec {sys.executable} -m tproxy restart")
    for _ in range(3):
        assert lab.ask() == "one"


def test_a_daemon_that_has_no_descriptor_left_for_a_while_goes_on(echo: Lab) -> None:
    # Somebody's watcher, so that the daemon keeps looking whether there is one.
    config = echo.host.write("/run/tproxy.yaml", "tproxy_watch: true\n")
    echo.host.popen(sys.executable, "-m", "tproxy", "watch", "--config", config)
    log = echo.host.path("/var/log/one_tproxy.log")
    for _ in eventually():
        if "watching bridges" in log.read_text():
            break
    echo.host.tproxy("reload", env={"TPROXY_CONFIG": config})
    conversation = Conversation(echo, 7)
    before = echo.pids()
    prlimit = ("prlimit", "--pid", str(before["one_tproxy"]))
    echo.host.run(*prlimit, "--nofile=3:")
    asked = echo.host.popen(sys.executable, "-m", "tproxy", "status", "--json", stdout=subprocess.PIPE)
    for _ in eventually():
        if "no request can be accepted for now: Too many open files" in log.read_text():
            break
    echo.host.add_guest("second", "br0", "10.0.0.6/24")
    for _ in eventually():
        if "guards of br0 could not be kept current" in log.read_text():
            break
    time.sleep(2.5)  # a look for the watcher
    assert conversation.say("still here") == "still here"
    echo.host.run(*prlimit, "--nofile=1000:")
    asked.communicate()
    assert echo.ask() == "one"
    assert echo.pids() == before


def test_a_relay_that_hangs_when_the_daemon_comes_back_is_replaced(lab: Lab) -> None:
    code = """
from tproxy.daemon import __main__
from tproxy.daemon import relays
relays.GREETING = 5.0
__main__.main()
"""
    before = lab.pids()
    directory = lab.host.run("readlink", f"/proc/{before['one_tproxy']}/cwd").stdout.strip()
    lab.host.run("kill", "-STOP", str(before["one_tproxy_br0"]))
    lab.host.run("kill", "-KILL", str(before["one_tproxy"]))
    lab.host.popen("sh", "-c", f"cd {directory}; exec {sys.executable} -c '{code}' --stay")
    log = lab.host.path("/var/log/one_tproxy.log")
    for _ in eventually():
        if log.read_text().count(" started\n") == 2:
            break
    done = lab.host.tproxy("start", check=False)
    assert (done.returncode, done.stderr) == (1, "tproxy: bridge br0: relay did not answer\n")
    lab.host.tproxy("start")
    assert lab.ask() == "one"
    assert lab.pids()["one_tproxy_br0"] != before["one_tproxy_br0"]


def test_what_the_daemon_dies_of_is_in_its_log(lab: Lab) -> None:
    code = """
from tproxy.daemon import __main__
from tproxy.daemon.daemon import Daemon
Daemon._reopen_logs = lambda self: 1 / 0
__main__.main()
"""
    directory = lab.host.run("readlink", f"/proc/{lab.pids()['one_tproxy']}/cwd").stdout.strip()
    lab.host.tproxy("stop")
    broken = lab.host.popen("sh", "-c", f"cd {directory}; exec {sys.executable} -c '{code}' --stay")
    log = lab.host.path("/var/log/one_tproxy.log")
    for _ in eventually():
        if log.read_text().count(" started\n") == 2:
            break
    lab.host.run("kill", "-HUP", str(lab.pids()["one_tproxy"]))
    assert broken.wait(30) == 1
    assert "ZeroDivisionError" in log.read_text()


HOLDER = """
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4000, 4000))
held = []
for number in range(int(sys.argv[3])):
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex((sys.argv[1], int(sys.argv[2])))
    held.append(sock)
    if number % 50 == 49:
        time.sleep(0.05)  # the listener's backlog has an end
print('ready', flush=True)
sys.stdin.read()
"""


def test_a_guest_with_all_connections_there_can_be_keeps_no_other_bridge_from_coming_and_going(
    lab: Lab, start_endpoint: StartEndpoint
) -> None:
    start_endpoint("sink", ENDPOINT, 8082)
    lab.nft(lab.element("delete", 5030), lab.element("add", 5030, 8082))
    lab.host.run("sh", "-c", f"ulimit -n 2000; exec {sys.executable} -m tproxy restart")
    holder = lab.guest.popen(
        *(sys.executable, "-c", HOLDER, SERVICE_ADDRESS, "5030", "800"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    log = lab.host.path("/var/log/one_tproxy.log")
    for _ in eventually():
        if "connections are open: no more are accepted" in log.read_text():
            break
    lab.host.add_bridge("br1")
    lab.host.tproxy("hook", "up", "--bridge", "br1", "--config", lab.config)
    assert "one_tproxy_br1" in lab.pids()
    lab.host.tproxy("hook", "down", "--bridge", "br1", "--force")
    lab.host.tproxy("hook", "down", "--bridge", "br0", "--force")
    assert lab.pids() == {}
