"""Services that lead to UNIX sockets of this host, which the daemon dials for the workers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.netns.datapath.test_fail_over import CALLERS, CONFIG, FIRST, PORT, Site
from tests.netns.waiting import eventually
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Hypervisor

HOME = "/run/program"
PATH = "/usr/sbin:/usr/bin"
SOCKET = f"{HOME}/x.sock"
UNIX = f"unix:{SOCKET}"
WEB = f"unix:{HOME}/web.sock"

NGINX = f"""
daemon off;
master_process off;
pid {HOME}/pid;
error_log {HOME}/error.log;
events {{}}
http {{
    access_log {HOME}/access.log;
    client_body_temp_path {HOME}/body;
    proxy_temp_path {HOME}/proxy;
    fastcgi_temp_path {HOME}/fastcgi;
    uwsgi_temp_path {HOME}/uwsgi;
    scgi_temp_path {HOME}/scgi;
    server {{
        listen {WEB};
        return 200 "nginx";
    }}
}}
"""


class Local(Site):
    """A site with an endpoint whose socket is in a folder that only root may enter."""

    def __init__(self, host: Hypervisor) -> None:
        super().__init__(host)
        host.write(f"{HOME}/nginx.conf", NGINX)
        host.path(HOME).chmod(0o700)

    def start_local(self, backlog: int = 100) -> None:
        self.start(SOCKET, backlog)

    def pid_file(self, address: str) -> str:
        return super().pid_file(address.replace("/", "_"))

    def ask(self) -> str:
        """Return the answer of an endpoint of HTTP; "" where the guest gets none."""
        with suppress(ProcessError):
            return self.guest.get(SERVICE_ADDRESS, PORT)
        return ""

    def await_answer(self, answer: str) -> None:
        for _ in eventually():
            if self.ask() == answer:
                return

    def await_state(self, endpoint: str, state: str) -> str:
        """Wait until an endpoint has this state, and return why."""
        for _ in eventually():
            found = self.states().get(endpoint)
            if found is not None and found["state"] == state:
                return str(found["why"])
        raise AssertionError

    def pids(self, title: str) -> list[str]:
        return self.host.run("pgrep", "-xf", f"{title} *", check=False).stdout.split()


@pytest.fixture
def site(hypervisor: Hypervisor) -> Iterator[Local]:
    made = Local(hypervisor)
    yield made
    made.go_on()


@pytest.fixture
def nginx() -> str:
    found = shutil.which("nginx", path=PATH)
    if found is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs nginx")
    return found


def test_nginx_at_a_unix_socket_is_replaced_by_an_address_while_it_is_stopped(
    site: Local, nginx: str
) -> None:
    site.host.add_endpoint(FIRST, 9000, "address")
    running = site.host.popen(nginx, "-p", HOME, "-c", f"{HOME}/nginx.conf")
    site.serve(WEB, FIRST)
    site.await_answer("nginx")
    site.host.run("kill", site.host.path(f"{HOME}/pid").read_text().strip())
    running.wait(60)
    assert site.ask() == "address"
    assert site.await_state(WEB, "failed") == "missing"
    site.host.popen(nginx, "-p", HOME, "-c", f"{HOME}/nginx.conf")
    site.await_state(WEB, "good")  # without a guest that finds out
    assert site.ask() == "nginx"


def test_a_killed_server_resets_what_is_open_there_and_no_new_connection_fails(site: Local) -> None:
    site.start_local()
    site.start(FIRST)
    site.serve(UNIX, FIRST)
    load = site.load()
    site.wait_until_served(SOCKET)
    site.kill(SOCKET)
    site.wait_until_served(FIRST)
    assert site.await_state(UNIX, "failed") == "refused"
    site.start_local()
    site.await_state(UNIX, "good")
    site.wait_until_served(SOCKET)
    load.go_on()
    report = load.end()
    assert set(report["failed"]) <= {"ECONNRESET", "another answer: b''"}
    assert len(report["failed"]) <= CALLERS


def test_guests_are_served_through_restarts_and_the_death_of_the_daemon(site: Local) -> None:
    site.start_local()
    site.serve(UNIX, more="connect_timeout: 100")
    load = site.load(callers=2, streams=2)
    site.host.tproxy("restart")
    load.go_on()
    (daemon,) = site.pids("one_tproxy")
    site.host.run("kill", "-KILL", daemon)
    load.go_on()  # new ones have waited for the next daemon
    report = load.end()
    assert report["failed"] == []
    assert report["streams"] == ["whole"] * 2


def test_a_guest_is_reset_when_its_worker_is_killed(site: Local) -> None:
    site.start_local()
    site.serve(UNIX)
    load = site.load(callers=0, streams=2)
    shown = json.loads(site.host.tproxy("connections", "--json").stdout)["connections"]
    assert [each["endpoint"] for each in shown] == [UNIX] * 2
    site.host.run("kill", "-KILL", *site.pids("tproxy-worker"))
    for _ in eventually():
        if len(load.look()["streams"]) == 2:
            break
    assert load.end()["streams"] == ["ECONNRESET"] * 2


def test_a_unix_socket_stands_beside_the_map_and_doctor_dials_it(site: Local) -> None:
    site.start_local()
    site.serve(UNIX)
    nft = site.host.run("nft", "list table ip one_tproxy").stdout
    assert f'{PORT} . 0x00010000 comment "endpoints=unix%3A%2Frun%2Fprogram%2Fx.sock"' in nft
    assert "elements" not in nft.partition("map ep_br0")[2].partition("}")[0]
    site.host.tproxy("hook", "up", "--bridge", "br0", "--config", CONFIG)
    assert site.host.run("nft", "list table ip one_tproxy").stdout == nft
    assert [*site.states()] == [UNIX]
    command = ("doctor", "--bridge", "br0", "--config", CONFIG)
    lines = site.host.tproxy(*command, check=False).stdout.splitlines()
    assert [line for line in lines if f"endpoint {UNIX} accepts after " in line and line.startswith("good")]
    site.kill(SOCKET)
    lines = site.host.tproxy(*command, check=False).stdout.splitlines()
    (line,) = (each for each in lines if f"endpoint {UNIX}" in each)
    assert line.startswith("bad")
    assert line.endswith(f"refuses the connection; repair: nc -zvU {SOCKET}")
    site.start(FIRST)
    site.serve(UNIX, FIRST)
    nft = site.host.run("nft", "list table ip one_tproxy").stdout
    assert f": {FIRST} . 9000" in nft
    assert "op_br0" not in nft
