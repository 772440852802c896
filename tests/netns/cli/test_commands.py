"""What all commands have in common: when they are quiet, what they refuse, and how they fail."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import tproxy
from tests.netns.conftest import NOBODY
from tests.netns.one_bridge import OneBridge
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture
def lab(hypervisor: Hypervisor) -> OneBridge:
    return OneBridge(hypervisor)


def test_without_any_map_every_command_is_quiet_and_succeeds(hypervisor: Hypervisor) -> None:
    for verb in ("start", "reload", "restart", "stop", "status"):
        done = hypervisor.tproxy(verb)
        assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert hypervisor.run("nft", "list", "ruleset").stdout == ""


def test_commands_that_succeed_print_nothing(lab: OneBridge) -> None:
    for verb in ("start", "reload", "restart", "stop", "start"):
        done = lab.host.tproxy(verb)
        assert (done.stdout, done.stderr) == ("", "")


def test_the_commands_take_no_argument_and_do_nothing_with_one(lab: OneBridge) -> None:
    before = lab.pids()
    for verb in ("start", "stop", "restart", "reload", "status"):
        done = lab.host.tproxy(verb, "br0", check=False)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert "br0" in done.stderr
    assert lab.pids() == before


def test_an_unknown_command_or_option_is_refused_in_one_line(hypervisor: Hypervisor) -> None:
    for arguments in (
        ["strat"],
        ["status", "--jsn"],
        ["--what"],
        ["hook", "sideways"],
        ["hook"],
        ["hook", "up"],
        ["hook", "up", "--bridge"],
        ["hook", "up", "--bridge", "br0", "br1"],
        ["hook", "up", "--bridge", "br0", "--force"],
        ["hook", "up", "--bridge", "br0", "--two\nlines \udcff"],
    ):
        done = hypervisor.tproxy(*arguments, check=False)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr


def test_the_commands_need_root_and_say_so(lab: OneBridge) -> None:
    before = lab.pids()
    hook_up = "hook up --bridge br0 --config /run/tproxy.yaml"
    for verb in ("start", "stop", "restart", "reload", "status", hook_up, "hook down --bridge br0"):
        done = lab.host.run(*NOBODY, sys.executable, "-m", "tproxy", *verb.split(), check=False)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "tproxy: must be run as root\n")
    assert lab.pids() == before


def test_a_traceback_comes_on_request_only(hypervisor: Hypervisor) -> None:
    command = ["hook", "up", "--bridge", "none", "--config", "/none"]
    plain = hypervisor.tproxy(*command, check=False)
    assert plain.stderr.count("\n") == 1
    for arguments, env in (([*command, "--debug"], {}), (command, {"TPROXY_DEBUG": "1"})):
        told = hypervisor.tproxy(*arguments, check=False, env=env)
        assert "Traceback" in told.stderr
        assert told.stderr.endswith(plain.stderr)
        assert told.returncode == plain.returncode == 1


def test_status_of_a_daemon_that_hangs_shows_the_processes_and_fails(lab: OneBridge) -> None:
    lines = lab.host.tproxy("status").stdout
    lab.host.run("pkill", "-STOP", "-f", "^one_tproxy *$")
    assert lab.host.tproxy("status").stdout == lines
    told = lab.host.tproxy("status", "--verbose", check=False)
    assert (told.returncode, told.stdout) == (1, lines)
    assert told.stderr == "tproxy: the daemon did not answer within 5 s\n"


def test_a_map_without_a_namespace_does_not_keep_the_old_daemon_alive_after_a_restart(lab: OneBridge) -> None:
    lab.nft("add map ip one_tproxy ep_nons { type inet_service : ipv4_addr . inet_service; }")
    for _ in range(2):
        done = lab.host.tproxy("restart", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "nons" in done.stderr
    for _ in eventually():
        if "tproxy-draining" not in lab.host.run("ps", "-eo", "args=").stdout:
            break
    assert lab.ask() == "one"


def test_restart_runs_the_code_that_is_installed_now(hypervisor: Hypervisor, tmp_path: Path) -> None:
    lab = OneBridge(hypervisor)
    shutil.copytree(tproxy.__path__[0], tmp_path / "tproxy", ignore=shutil.ignore_patterns("__pycache__"))
    init = tmp_path / "tproxy/__init__.py"
    init.write_text(init.read_text() + '\n__version__ = "99.9"\n')

    def version() -> str:
        return str(json.loads(hypervisor.tproxy("status", "--json").stdout)["daemon"]["version"])

    assert version() == tproxy.__version__
    hypervisor.run(sys.executable, "-m", "tproxy", "restart", env={"PYTHONPATH": str(tmp_path)})
    assert version() == "99.9"
    assert lab.ask() == "one"
