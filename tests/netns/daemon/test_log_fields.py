"""Fields of log lines: as JSON in the files (``tproxy_log_format``), and in systemd's journal."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from typing import Any

import pytest

from tests.netns.one_bridge import ENDPOINT, OneBridge
from tests.netns.waiting import await_equal, eventually
from tproxy.lab.hypervisor import Hypervisor

LOG, RELAY_LOG = "/var/log/one_tproxy.log", "/var/log/one_tproxy_br0.log"

CONFIG = f"""\
tproxy_log_format: %s
tproxy:
- {{service_port: 5030, name: packages, remote_addr: {ENDPOINT}, remote_port: 8080}}
- {{service_port: 5031, remote_addr: {ENDPOINT}, remote_port: 1}}
"""


class Logged(OneBridge):
    """A bridge of the network vnet1, with lines of this format."""

    def configure(self, form: str) -> None:
        self.host.write("/run/tproxy.yaml", CONFIG % form)
        self.host.tproxy("hook", "up", "--bridge", "br0", "--network", "vnet1", "--config", self.config)


@pytest.fixture
def lab(hypervisor: Hypervisor) -> Logged:
    return Logged(hypervisor)


def lines(lab: OneBridge, path: str, beginning: str = "{") -> list[str]:
    return [each for each in lab.host.path(path).read_text().splitlines() if each.startswith(beginning)]


def test_lines_are_json_objects_with_fields(lab: Logged) -> None:
    lab.configure("json")
    before = len(lines(lab, LOG, "2"))
    lab.ask()
    found: dict[str, Any] = {}
    for _ in eventually():
        ended = [json.loads(each) for each in lines(lab, LOG) if '"outcome"' in each]
        if ended:
            found = ended[-1]
            break
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert re.fullmatch(r"[0-9a-f]{12}-\d+", found.pop("connection"))
    assert found.pop("guest").startswith(f"{lab.guest.address}:")
    message = found.pop("message")
    assert message.startswith("bridge=br0 guest=")
    assert message.endswith(" end=finished")
    for name in ("pid", "seconds", "to_endpoint", "to_guest"):
        assert found.pop(name) > 0
    assert found == {
        "level": "INFO",
        "bridge": "br0",
        "network": "vnet1",
        "service": "packages:5030",
        "endpoint": f"{ENDPOINT}:8080",
        "outcome": "finished",
        "end": "finished",
    }
    # Lines of the daemon, and of the relay, name their bridge.
    assert any(json.loads(each).get("bridge") == "br0" and "leads to" in each for each in lines(lab, LOG))
    relay = [json.loads(each) for each in lines(lab, RELAY_LOG)]
    assert ("port 5031 listens", "br0") in [(each["message"], each["bridge"]) for each in relay]
    assert len(lines(lab, LOG, "2")) == before  # no text any more


def test_the_format_follows_the_configuration_both_ways(lab: Logged) -> None:
    lab.configure("json")
    lab.configure("text")
    before = len(lines(lab, LOG))
    lab.ask()
    pattern = (
        r"INFO bridge=br0 guest=\S+ port=5030 endpoint=\S+ to_endpoint=\d+ to_guest=\d+ seconds=\S+ end="
    )
    for _ in eventually():
        if re.search(pattern, lab.log()):
            break
    assert len(lines(lab, LOG)) == before


def test_a_command_writes_its_lines_in_the_same_format(lab: Logged) -> None:
    lab.configure("json")
    before = lab.log()
    lab.host.tproxy("hook", "down", "--bridge", "br0", "--force", "--config", lab.config)
    written = lab.log().removeprefix(before).splitlines()
    assert any('"bridge": "br0"' in each or "br0" in each for each in written)


JOURNALD = "/lib/systemd/systemd-journald"


class Journal:
    """A real journald in a stand-in hypervisor."""

    def __init__(self, host: Hypervisor) -> None:
        for program in (JOURNALD, "journalctl"):
            if shutil.which(program) is None:
                (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"needs {program}")
        self._host = host
        host.write("/run/systemd/journald.conf.d/test.conf", "[Journal]\nReadKMsg=no\nStorage=volatile\n")
        host.path("/run/systemd/journal").mkdir(parents=True)
        # It looks up the service of each process there.
        if host.run("mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup", check=False).returncode:
            pytest.skip("control groups (cgroup2) cannot be mounted here")
        host.popen(JOURNALD)
        for _ in eventually():
            if host.path("/run/systemd/journal/socket").exists():
                break

    def entries(self, *matches: str) -> list[dict[str, str]]:
        """The entries that have these fields, ``NAME=value`` each."""
        shown = self._host.run(
            "journalctl", "--directory=/run/log/journal", "-o", "json", *matches, check=False
        )
        return [json.loads(each) for each in shown.stdout.splitlines() if each.startswith("{")]

    def await_entry(self, *matches: str) -> dict[str, str]:
        for _ in eventually():
            if found := self.entries(*matches):
                return found[-1]
        raise AssertionError


@pytest.fixture
def journal(hypervisor: Hypervisor) -> Journal:
    return Journal(hypervisor)


# systemd sets this for services whose output goes to the journal.
AS_A_SERVICE = {"JOURNAL_STREAM": "9:12345"}


def test_a_service_logs_to_the_journal_with_fields(journal: Journal, lab: Logged) -> None:
    lab.host.tproxy("stop")
    lab.host.popen(sys.executable, "-m", "tproxy", "daemon", env=AS_A_SERVICE)
    for _ in eventually():
        if "one_tproxy" in lab.pids():
            break
    lab.configure("text")
    lab.ask()
    found = journal.await_entry("TPROXY_OUTCOME=finished")
    assert re.fullmatch(r"[0-9a-f]{12}-\d+", found["TPROXY_CONNECTION"])
    assert (found["TPROXY_BRIDGE"], found["TPROXY_NETWORK"]) == ("br0", "vnet1")
    assert (found["TPROXY_SERVICE"], found["TPROXY_ENDPOINT"]) == ("packages:5030", f"{ENDPOINT}:8080")
    assert found["TPROXY_GUEST"].startswith(lab.guest.address)
    assert (found["PRIORITY"], found["SYSLOG_IDENTIFIER"]) == ("6", "tproxy")
    # Without fields the message is the line of the file, which stays.
    assert found["MESSAGE"].startswith("bridge=br0 guest=")
    assert f"INFO {found['MESSAGE']}\n" in lab.log()
    assert journal.await_entry("TPROXY_BRIDGE=br0", "MESSAGE=port 5031 listens")  # of the relay
    # A worker that takes the place of another one logs there too.
    lab.host.run("pkill", "-KILL", "-x", "tproxy-worker")
    await_equal(lab.ask, "one")  # what is with a worker that dies is lost
    for _ in eventually():
        if len(journal.entries("TPROXY_OUTCOME=finished")) > 1:
            break
    for _ in eventually():  # a warning
        if any("is lost" in each["MESSAGE"] for each in journal.entries("PRIORITY=4")):
            break


def test_a_daemon_that_is_no_service_leaves_the_journal_alone(journal: Journal, lab: Logged) -> None:
    lab.host.tproxy("stop")
    # Hooks of libvirt run in its service, with its environment.
    environment = {**AS_A_SERVICE, "TPROXY_CONFIG": lab.config}
    lab.host.tproxy("hook", "up", "--bridge", "br0", env=environment)
    lab.ask()
    for _ in eventually():
        if "end=finished" in lab.log():
            break
    assert journal.entries("SYSLOG_IDENTIFIER=tproxy") == []
