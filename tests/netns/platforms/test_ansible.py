"""The Ansible role, run by ansible-playbook over ssh on stand-in hypervisors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns import fleet as ssh
from tests.netns.fleet import CONFIG, NEW, OLD, SOURCE, Fleet
from tproxy.addresses import SERVICE_ADDRESS

PLAYBOOK = SOURCE / "drivers/ansible/site.yml"
NEW_FILE = "/run/new.yaml"

# This file passes a check without name look-ups; no host resolves the name, RFC 6761.
UNRESOLVABLE = "tproxy: [{remote_addr: endpoint.invalid, remote_port: 80}]\n"

CHECK = "tproxy : Check the configuration, and put it in place of the old one"

# All paths are below /run, which each stand-in has to itself.
ENVIRONMENT = {
    "ANSIBLE_HOME": "/run/ansible",
    "ANSIBLE_REMOTE_TEMP": "/run/ansible-remote",
    "ANSIBLE_SSH_CONTROL_PATH_DIR": "/run/ansible-ssh",
    "ANSIBLE_PIPELINING": "1",  # half as many ssh sessions
    "ANSIBLE_SSH_ARGS": f"-F {ssh.SSH_CONFIG} -o ControlMaster=auto -o ControlPersist=60",
    "ANSIBLE_NOCOLOR": "1",
    "LC_ALL": "C.UTF-8",
}


@pytest.fixture
def fleet(real_kernel: None) -> Iterator[Fleet]:
    with ssh.fleet(2) as found:
        for host in found.hosts.values():
            host.write(CONFIG, OLD)
        yield found


class Play:
    """The result of a run of the playbook."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.text = done.stdout + done.stderr
        self.ok = done.returncode == 0
        # For each host that failed: the task, and the message.
        self.failures: dict[str, str] = {}
        self.changed: dict[str, int] = {}
        task = ""
        for line in done.stdout.splitlines():
            if begun := re.match(r"(TASK|RUNNING HANDLER) \[(.+)\]", line):
                task = begun[2]
            elif failed := re.match(r"fatal: \[(.+?)\]: (.+)", line):
                self.failures[failed[1]] = f"{task}: {failed[2]}"
            elif recap := re.match(r"(\S+) +: ok=\d+ +changed=(\d+)", line):
                self.changed[recap[1]] = int(recap[2])
        assert self.changed, self.text  # the playbook ran to its end


def play(fleet: Fleet, text: str, *options: str, hosts: list[str] | None = None) -> Play:
    """Run the playbook with a configuration file of this text."""
    program = shutil.which("ansible-playbook", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program, "needs ansible-core (make venv)"
    fleet.workstation.write(NEW_FILE, text)
    variables = {
        "ansible_python_interpreter": sys.executable,
        "tproxy_config_src": NEW_FILE,
        "tproxy_config_path": CONFIG,
        "ansible_become": False,  # ssh logs in as root, and a stand-in has no sudo of its own
    }
    inventory = ",".join([*(hosts or fleet.addresses), ""])
    arguments = ["-i", inventory, "-e", json.dumps(variables), *options, str(PLAYBOOK)]
    return Play(fleet.workstation.run(program, *arguments, check=False, env=ENVIRONMENT, timeout=250))


def test_hosts_get_the_file_bridges_get_the_services_and_a_second_run_changes_nothing(fleet: Fleet) -> None:
    one, two = fleet.addresses
    guest = fleet.add_guest(one)
    fleet.add_map_of_another_program(two)

    dry = play(fleet, NEW, "--check")
    assert dry.ok, dry.text
    assert fleet.files() == [OLD, OLD]

    first = play(fleet, NEW)
    assert first.ok, first.text
    assert first.changed == {one: 3, two: 2}  # the file, what the bridge offers, the processes
    assert fleet.files() == [NEW, NEW]
    assert guest.get(SERVICE_ADDRESS, 80) == "new"

    again = play(fleet, NEW)
    assert (again.ok, again.changed) == (True, {one: 0, two: 0}), again.text


def test_a_host_that_fails_keeps_its_old_file_and_does_not_stop_the_others(fleet: Fleet) -> None:
    one, two = fleet.addresses
    # This host looks no name up, so it finds nothing wrong with the file.
    script = fleet.hosts[two].path("/run/bin/tproxy")
    lenient = 'if [ "$1" = check ]; then shift; set -- check --no-resolve "$@"; fi\nexec'
    script.write_text(script.read_text().replace("exec", lenient))
    done = play(fleet, UNRESOLVABLE, hosts=["10.77.0.9", one, two])
    assert not done.ok
    assert set(done.failures) == {"10.77.0.9", one}
    assert "UNREACHABLE" in done.failures["10.77.0.9"]
    assert done.failures[one].startswith(CHECK)
    assert "endpoint.invalid" in done.failures[one]
    assert fleet.files() == [OLD, UNRESOLVABLE]


def test_a_host_that_uses_another_file_fails(fleet: Fleet) -> None:
    one, two = fleet.addresses
    host = fleet.hosts[one]
    host.write("/run/one.conf", OLD)
    script = host.path("/run/bin/tproxy")
    script.write_text(script.read_text().replace(f"-{CONFIG}", "-/run/one.conf"))
    done = play(fleet, NEW)
    assert list(done.failures) == [one]
    assert "/run/one.conf" in done.failures[one]
    assert fleet.files() == [NEW, NEW]
    assert done.changed[two] == 2
