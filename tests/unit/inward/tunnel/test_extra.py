"""Commands of tunnels without the packages of the extra ``inward``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = "import sys; sys.modules['asyncssh'] = None; from tproxy.cli.main import main; main()"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", BLOCKED, *arguments]
    return subprocess.run(argv, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("command", ["tunnel", "tunnel serve --config /nowhere", "node token add --nodes a"])
def test_a_command_that_needs_the_extra_says_so_in_one_line(command: str, tmp_path: Path) -> None:
    done = run(*command.split())
    assert (done.returncode, done.stderr) == (
        1,
        "tproxy: tunnels need more packages: pip install one-tproxy[inward]\n",
    )


def test_commands_that_do_without_it_work(tmp_path: Path) -> None:
    state = ("--state", str(tmp_path / "state"))
    assert run("node", "token", "list", *state).returncode == 0
    assert run("operator", "list", *state).returncode == 0
    refused = run("operator", "login", "--directory", str(tmp_path))
    assert refused.stderr == f"tproxy: {tmp_path} is of no operator: tproxy operator login\n"
