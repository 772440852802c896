"""``tproxy status``: docs/contract.md, Commands."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest

from tests.netns.one_bridge import ENDPOINT, OneBridge
from tests.netns.program import program
from tests.netns.waiting import eventually
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    return OneBridge(hypervisor)


def test_status_prints_a_line_for_each_process_daemon_first(lab: OneBridge) -> None:
    lab.add_bridge("br1")
    done = lab.host.tproxy("status")
    assert re.fullmatch(r"one_tproxy: \d+\none_tproxy_br0: \d+\none_tproxy_br1: \d+\n", done.stdout)
    for title, pid in lab.pids().items():
        cmdline = lab.host.run("cat", f"/proc/{pid}/cmdline").stdout
        assert cmdline.rstrip("\0") == title


def test_status_prints_nothing_when_nothing_runs(hypervisor: Hypervisor) -> None:
    done = hypervisor.tproxy("status")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_a_process_with_a_borrowed_title_is_neither_shown_nor_ended(lab: OneBridge) -> None:
    impostor = lab.host.serve(*program("borrowed_title"))
    assert len(lab.pids()) == 2
    lab.host.tproxy("stop")
    assert impostor.poll() is None


def test_status_shows_each_service(lab: OneBridge) -> None:
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


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_terminal_gets_a_drawn_table(lab: OneBridge, encoding: str) -> None:
    command = f"{sys.executable} -m tproxy status --verbose"
    terminal = ("script", "-qec", command, "/dev/null")  # script(1) has a terminal of its own
    env = {"PYTHONIOENCODING": encoding, "TERM": "xterm", "COLUMNS": "120"}
    shown = lab.host.run(*terminal, env=env).stdout
    assert f"{ENDPOINT}:8080" in shown
    assert "\x1b[" in shown  # colours
    assert ("─" in shown) == (encoding == "utf-8")


def test_status_escapes_characters_that_the_terminal_cannot_show(lab: OneBridge) -> None:
    lab.host.tproxy("hook", "up", "--bridge", "br0", "--config", lab.config, "--network", "网络")
    latin = {"PYTHONIOENCODING": "latin-1:strict"}  # as in a locale of ISO 8859-1
    assert r"\u7f51\u7edc" in lab.host.tproxy("status", "--verbose", env=latin).stdout
    assert "网络" in lab.host.tproxy("status", "--verbose", env={"LC_ALL": "C.UTF-8"}).stdout
