"""``tproxy metrics``: docs/metrics.md. One host for all tests, in any order: each looks at what grows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.netns.metrics import unix_http
from tests.netns.metrics.scraped import ENDPOINT, PORT, SOCKET, Key, Samples, Scraped, key, parse, service
from tests.netns.waiting import await_equal, eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.lab.hypervisor import Hypervisor
from tproxy.metrics import declared


@pytest.fixture(scope="module")
def host(real_kernel: None) -> Iterator[Scraped]:
    with Hypervisor() as hypervisor:
        scraped = Scraped(hypervisor)
        scraped.serve()
        yield scraped


def await_growth(host: Scraped, before: Samples, *grown: Key) -> Samples:
    """Wait until each of these series is greater than before; return all samples."""
    for _ in eventually():
        now = host.scrape()
        if all(now[each] > before.get(each, 0.0) for each in grown):
            return now
    raise AssertionError


def test_every_declared_metric_is_there_and_no_other(host: Scraped) -> None:
    host.ask(5032)  # otherwise no endpoint was dialled yet
    samples: Samples = {}
    for _ in eventually():
        samples = host.scrape()
        if any(name == "tproxy_endpoint_up" for name, _ in samples):
            break
    found: dict[str, set[frozenset[str]]] = {}
    for name, labels in samples:
        stem = re.sub("_(bucket|sum|count)$", "", name)
        found.setdefault(stem, set()).add(frozenset(word for word, _ in labels) - {"le"})
    assert found == {each.full_name: {frozenset(each.labels)} for each in declared.ALL}


def test_a_connection_is_counted_once_in_everything(host: Scraped) -> None:
    before = host.scrape()
    assert host.ask() == "one"
    ended = service("tproxy_connections_ended_total", "packages:5030", outcome="finished")
    once = {
        "tproxy_connections_accepted_total": {},
        "tproxy_connect_duration_seconds_count": {},
        "tproxy_connect_duration_seconds_bucket": {"le": "+Inf"},
        "tproxy_connection_duration_seconds_count": {},
        "tproxy_connection_duration_seconds_bucket": {"le": "86400.0"},
    }
    counted = [service(name, "packages:5030", **labels) for name, labels in once.items()]
    now = await_growth(host, before, ended, *counted)
    for series in counted:
        assert now[series] - before[series] == 1, series
    for direction in ("to_endpoint", "to_guest"):
        series = service("tproxy_transferred_bytes_total", "packages:5030", direction=direction)
        assert now[series] > before[series]
    assert now[key("tproxy_event_loop_lag_seconds_count", process="worker")] > 0
    assert now[key("tproxy_process_resident_memory_bytes", process="relay", bridge="br0", worker="")] > 0
    assert now[key("tproxy_process_open_fds", process="worker", bridge="", worker="0")] > 0


def test_open_connections_are_counted_with_their_bytes(host: Scraped) -> None:
    before = host.scrape()
    asked = host.guest.popen(
        *("python3", "-c", f"import socket; s = socket.create_connection(('{SERVICE_ADDRESS}', 7)); "
          "s.sendall(b'hello'); print(s.recv(5), flush=True); s.recv(1)"),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert asked.stdout is not None
    assert asked.stdout.readline() == "b'hello'\n"
    sent = service("tproxy_transferred_bytes_total", "echo:7", direction="to_endpoint")
    now = await_growth(host, before, sent)
    assert now[service("tproxy_connections_open", "echo:7")] == 1
    assert now[sent] - before[sent] == 5
    asked.kill()
    reset = service("tproxy_connections_ended_total", "echo:7", outcome="finished")
    now = await_growth(host, before, reset)
    assert now[service("tproxy_connections_open", "echo:7")] == 0


def test_an_endpoint_that_refuses_shows_in_outcome_and_reason(host: Scraped) -> None:
    before = host.scrape()
    assert host.ask(5031) == ""
    failed = service("tproxy_dial_failures_total", "5031", reason="refused")
    ended = service("tproxy_connections_ended_total", "5031", outcome="dial_failed")
    now = await_growth(host, before, failed, ended)
    assert now[failed] - before[failed] == now[ended] - before[ended] == 1
    assert now[service("tproxy_endpoint_up", "5031", endpoint=f"{ENDPOINT}:1")] == 0


def test_a_dial_that_failed_shows_although_another_endpoint_answered(host: Scraped) -> None:
    before = host.scrape()
    assert host.ask(5032) == "one"  # the first time, the good endpoint is not known yet
    now = await_growth(host, before, service("tproxy_connections_ended_total", "5032", outcome="finished"))
    assert now[service("tproxy_endpoint_up", "5032", endpoint="10.11.12.14:8080")] == 0
    assert now[service("tproxy_endpoint_up", "5032", endpoint=f"{ENDPOINT}:8080")] == 1
    assert now[service("tproxy_dial_failures_total", "5032", reason="refused")] >= 1


def test_connections_beyond_a_limit_show_as_limited(host: Scraped) -> None:
    before = host.scrape()
    four = (
        f"import socket; s = [socket.create_connection(('{SERVICE_ADDRESS}', 7)) for _ in range(4)]; "
        "[each.sendall(b'x') for each in s[:3]]; print(b''.join(each.recv(1) for each in s[:3]))"
    )
    host.guest.run("python3", "-c", four, check=False)
    limited = service("tproxy_connections_limited_total", "echo:7", limit="max_connections_per_guest")
    refused = service("tproxy_connections_ended_total", "echo:7", outcome="limited")
    now = await_growth(host, before, limited, refused)
    assert now[limited] - before[limited] == now[refused] - before[refused] == 1


def test_open_and_ended_connections_make_the_accepted_ones(host: Scraped) -> None:
    for _ in eventually():
        now = host.scrape()
        accepted = [labels for name, labels in now if name == "tproxy_connections_accepted_total"]
        names = {label for labels in accepted for word, label in labels if word == "service"}
        if all(
            now[service("tproxy_connections_accepted_total", name)]
            == now[service("tproxy_connections_open", name)]
            + sum(
                now[service("tproxy_connections_ended_total", name, outcome=each)]
                for each in declared.ENDED.values
            )
            for name in names
        ):
            break
    assert len(names) == 4


def test_a_lost_worker_costs_no_count(host: Scraped) -> None:
    finished = service("tproxy_connections_ended_total", "packages:5030", outcome="finished")
    before = host.scrape()
    assert host.ask() == "one"
    before = await_growth(host, before, finished)
    turns = key("tproxy_event_loop_lag_seconds_count", process="worker")
    host.kill(host.worker())
    after = await_growth(host, before, key("tproxy_worker_restarts_total"))
    assert after[finished] == before[finished]
    assert after[turns] >= before[turns]
    await_equal(host.ask, "one")
    await_growth(host, after, finished)


def test_a_relay_that_ends_is_counted(host: Scraped) -> None:
    before = host.scrape()
    host.kill(int(host.host.run("pgrep", "-x", "one_tproxy_br0").stdout))
    restarts = key("tproxy_relay_restarts_total", bridge="br0", network="vnet1")
    await_growth(host, before, restarts)
    for _ in eventually():
        now = host.scrape()
        if now[key("tproxy_relay_up", bridge="br0", network="vnet1")]:
            break
    assert now[service("tproxy_service_listening", "5031")] in (0, 1)
    await_equal(host.ask, "one")


def test_a_repair_is_counted(host: Scraped) -> None:
    before = host.scrape()
    with_watch = host.host.write(
        "/run/tproxy.yaml", "tproxy_watch: true\n" + host.host.path(host.config).read_text()
    )
    host.host.tproxy("refresh", env={"TPROXY_CONFIG": with_watch})
    repairs = key("tproxy_repairs_total", bridge="br0", network="vnet1", result="done")
    log = host.host.path("/var/log/one_tproxy.log")
    for _ in eventually():  # the watcher knows the bridge when it runs
        if host.host.run("pgrep", "-xf", "tproxy-watch", check=False).stdout:
            break
    for _ in eventually():
        if before[repairs] < host.scrape()[repairs]:
            break
        # Again, until the watcher has seen the bridge in order before.
        host.host.run("ip", "link", "set", "br0b", "down")
    assert "was broken; repaired" in log.read_text()


def test_metrics_can_be_printed_once(host: Scraped) -> None:
    printed = host.host.tproxy("metrics").stdout
    assert parse(printed)[key("tproxy_up")] == 1
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=printed, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_server_answers_at_an_address_too_and_compresses(host: Scraped) -> None:
    assert "tproxy_up 1.0" in host.host.get("127.0.0.1", PORT)
    if shutil.which("curl"):
        packed = host.host.run("curl", "-s", "--compressed", f"http://127.0.0.1:{PORT}/metrics").stdout
        assert "tproxy_up 1.0" in packed


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("GET / HTTP/1.0\r\n\r\n", "200 OK"),
        ("HEAD /metrics HTTP/1.1\r\n\r\n", "200 OK"),
        ("GET /metrics?x=y HTTP/1.1\r\n\r\n", "200 OK"),
        ("GET /etc/passwd HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("\x00\x01\r\n\r\n", "400 Bad Request"),
        ("x" * 20_000, "431 Request Header Fields Too Large"),
    ],
)
def test_only_the_page_is_served(host: Scraped, request_: str, status: str) -> None:
    try:
        answer = host.fetch(request_)
    except ConnectionError:  # reset, because it left a part of the request unread
        answer = f"HTTP/1.1 {status}" if len(request_) > 8192 else ""
    assert answer.startswith(f"HTTP/1.1 {status}")
    if request_.startswith("HEAD"):
        assert answer.endswith("\r\n\r\n")


def test_who_says_nothing_keeps_nobody_else_out(host: Scraped) -> None:
    with ExitStack() as silent:
        for _ in range(10):
            silent.enter_context(unix_http.connected(host.host.path(SOCKET)))
        assert host.scrape()[key("tproxy_up")] == 1


def test_the_process_that_answers_has_no_rights(host: Scraped) -> None:
    pid = host.host.run("pgrep", "-xf", "tproxy metrics server").stdout.strip()
    parent = host.host.run("pgrep", "-xf", "tproxy metrics").stdout.strip()
    status = dict(
        line.split(":\t", 1) for line in host.host.run("cat", f"/proc/{pid}/status").stdout.splitlines()
    )
    assert status["Uid"].split()[0] == str(1_900_000_000 + int(pid))
    assert {status[each] for each in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert host.host.run("ls", "-A", f"/proc/{pid}/root/").stdout == ""
    of_parent = host.host.run("cat", f"/proc/{parent}/status").stdout
    assert re.search(r"^CapEff:\t0{15}4$", of_parent, re.MULTILINE)
    assert re.search(r"^CapBnd:\t0{15}4$", of_parent, re.MULTILINE)


def test_the_socket_is_for_root_or_a_group(host: Scraped) -> None:
    assert host.host.run("stat", "-c", "%a %U", SOCKET).stdout == "600 root\n"


def test_a_group_can_be_let_in(host: Scraped) -> None:
    path = "/run/for-group.sock"
    serving = host.host.popen(
        sys.executable, "-m", "tproxy", "metrics", "--listen", path, "--group", "daemon"
    )
    await_equal(lambda: host.host.run("stat", "-c", "%a %U %G", path).stdout, "660 root daemon\n")
    serving.terminate()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--listen", "no-port"), "cannot listen at no-port: "),
        (("--listen", "/nowhere/x.sock"), "cannot listen at /nowhere/x.sock: No such file or directory"),
        (("--listen", f"127.0.0.1:{PORT}"), f"cannot listen at 127.0.0.1:{PORT}: Address already in use"),
        (("--listen", SOCKET), f"cannot listen at {SOCKET}: Address already in use"),
        (("--listen", "/run/y.sock", "--group", "nobody-has-it"), "there is no group nobody-has-it"),
    ],
)
def test_a_place_that_cannot_be_used_is_named(
    host: Scraped, arguments: tuple[str, ...], problem: str
) -> None:
    done = host.host.tproxy("metrics", *arguments, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"tproxy: {problem}")
    assert len(done.stderr.splitlines()) == 1


def test_without_a_daemon_metrics_say_so(host: Scraped) -> None:
    host.host.tproxy("stop")
    assert host.scrape() == {key("tproxy_up"): 0}
    assert parse(host.host.tproxy("metrics").stdout) == {key("tproxy_up"): 0}
    host.host.tproxy("start")
    for _ in eventually():
        if host.scrape()[key("tproxy_up")]:
            break
    assert service("tproxy_connections_open", "packages:5030") in host.scrape()
