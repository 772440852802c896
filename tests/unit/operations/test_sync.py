"""The result of a session with a host, the command line of a session, and the file of hosts."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.netns.program import program
from tproxy.errors import ConfigError
from tproxy.operations import sync
from tproxy.operations.sync import Plan, Result

PLAN = Plan(b"tproxy: []\n", "/etc/tproxy/tproxy.yaml")
IN_PLACE = (
    f"at find\nat copy\ntemp /etc/tproxy/.x\nat check\nat replace\nat refresh\nrefreshed {PLAN.path}: fine\n"
)


def judge(status: int, said: str, complained: str = "", plan: Plan = PLAN) -> Result:
    return sync.judge(plan, "host", status, said, complained)


def test_the_checksum_from_the_host_proves_success() -> None:
    assert judge(0, f"{IN_PLACE}at verify\nsum {PLAN.sum}\n") == Result("host", "changed", "fine")


def test_another_checksum_is_a_failure() -> None:
    result = judge(0, f"{IN_PLACE}at verify\nsum {'0' * 64}\n")
    assert result == Result("host", "failed", "somebody else changed the file meanwhile")


def test_a_session_that_ends_early_is_never_a_success() -> None:
    for lines in range(len(IN_PLACE.splitlines()) + 1):
        assert judge(0, "\n".join(IN_PLACE.splitlines()[:lines])).failed


def test_a_lost_connection_is_reported_with_its_step() -> None:
    result = judge(255, "at find\nat copy\n", "client_loop: send disconnect: Broken pipe\r\n")
    assert result.detail == "connection lost in step 'copy': client_loop: send disconnect: Broken pipe"


def test_errors_of_the_hosts_shell_start_up_files_are_not_the_reason() -> None:
    shell = "echo 'manpath: cannot set locale' >&2; for last; do :; done; exec sh -c \"$last\""
    plan = PLAN._replace(ssh=("sh", "-c", shell), command="no-such-tproxy")
    missing = "tproxy is not installed there, or not in the PATH of ssh sessions"
    assert sync.to_host(plan, "host") == Result("host", "failed", missing)


@pytest.mark.parametrize(
    ("complaint", "reason"),
    [
        ("ssh: connect to host a port 22: Connection refused", "unreachable: connection refused"),
        ("ssh: connect to host a port 22: Connection timed out", "unreachable: timeout"),
        (
            "ssh: Could not resolve hostname a: Name or service not known",
            "unreachable: the name does not resolve",
        ),
        ("root@a: Permission denied (publickey,password).", "authentication failed"),
        ("Host key verification failed.", "host key not known or changed"),
        (
            "kex_exchange_identification: read: nobody knows",
            "kex_exchange_identification: read: nobody knows",
        ),
        ("", "ssh failed and did not say why"),
    ],
)
def test_errors_of_ssh_are_reported_in_an_operators_words(complaint: str, reason: str) -> None:
    assert judge(255, "", complaint + "\n") == Result("host", "failed", reason)


def test_the_first_problem_of_the_file_is_reported_with_the_target_path_and_the_number_of_others() -> None:
    said = "at find\nat copy\ntemp /etc/tproxy/.tproxy-sync.abc\nat check\n"
    file = "/etc/tproxy/.tproxy-sync.abc"
    complained = f"Welcome to host!\n{file}:3: entry 1: no\n{file}:4: entry 2: no\n"
    assert judge(3, said, complained).detail == (
        "check failed, the old file stays: /etc/tproxy/tproxy.yaml:3: entry 1: no (and 1 more)"
    )


def test_control_characters_from_a_host_do_not_reach_the_terminal() -> None:
    assert judge(1, "at copy\n", "\x1b]0;owned\x07\x1b[31mno space\n").detail == (
        "cannot copy: ?]0;owned??[31mno space"
    )


def test_a_host_name_is_never_taken_as_an_option_of_ssh(tmp_path: Path) -> None:
    # The arguments after "--" are a host and a command, whatever they begin with.
    assert sync.session(PLAN, "-v")[-3:-1] == ["--", "-v"]
    done = subprocess.run(
        sync.session(PLAN, f"-oProxyCommand=touch {tmp_path}/owned"), check=False, capture_output=True
    )
    assert done.returncode == 255
    assert not list(tmp_path.iterdir())


def test_the_hosts_shell_gets_the_arguments_unchanged() -> None:
    path = "/etc/it's here; rm -rf $HOME/tproxy.yaml"
    command = sync.session(PLAN._replace(path=path, command="/opt/my tproxy", sudo=True), "host")
    remote = shlex.split(command[-1])
    assert remote[:4] == ["sudo", "-n", "sh", "-c"]
    assert remote[5:] == ["tproxy-sync", "/opt/my tproxy", path, PLAN.sum, ""]


def test_an_interrupted_sync_does_not_start_sessions_with_further_hosts(tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text("tproxy: []\n")
    ssh = tmp_path / "ssh"
    # Sessions under way finish. This one runs until sync has handled the interruption.
    waiting = f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done"
    ssh.write_text(f"#!/bin/sh\necho reached >>{tmp_path}/reached\n{waiting}\n")
    ssh.chmod(0o755)
    options = ["--jobs", "1", "--ssh", str(ssh), "--config", str(tmp_path / "new.yaml")]
    # A test run in the background may ignore SIGINT, and its children inherit that.
    interruptible = ["env", "--default-signal=INT"]
    command = [
        *interruptible,
        *program("sync_that_notices", str(tmp_path / "go")),
        "sync",
        *options,
        "one",
        "two",
        "three",
    ]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as syncing:
        while not (tmp_path / "reached").exists():
            time.sleep(0.01)
        # Python loses an interrupt that comes while it is in a destructor, and people press Ctrl-C again.
        while not (tmp_path / "go").exists() and syncing.poll() is None:
            os.killpg(syncing.pid, signal.SIGINT)  # as a terminal does for Ctrl-C
            with suppress(subprocess.TimeoutExpired):
                syncing.wait(2)
    assert syncing.returncode == 130
    assert (tmp_path / "reached").read_text() == "reached\n"


def test_a_file_of_hosts_has_one_on_each_line_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# rack 1\nroot@one\n\n two  # the second\n")
    assert sync.hosts_in(file) == ["root@one", "two"]
    file.write_bytes("\ufeffone\r\ntwo\r\n".encode())  # as editors on Windows write it
    assert sync.hosts_in(file) == ["one", "two"]
    with pytest.raises(ConfigError, match="No such file"):
        sync.hosts_in(tmp_path / "none")
