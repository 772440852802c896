"""A host that is made ill: doctor or probe names the fault, and the command that they print cures it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.netns.one_bridge import ENDPOINT, OneBridge
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor

CONFIG = "/run/tproxy.yaml"
CONFIGURED = {"TPROXY_CONFIG": CONFIG}
PRINTED = "the command that the line names"
TPROXY = (sys.executable, "-m", "tproxy")

# What scripts of faults can use. `later` starts a program and waits until its output has a word.
_FUNCTIONS = f"""
later() {{
    word=$1; shift
    "$@" >/run/later 2>&1 & echo $! >/run/later.pid
    until grep -q "$word" /run/later; do sleep 0.02; done
}}
inside() {{ ip netns exec one_tproxy_br0 "$@"; }}
process() {{ pgrep -f "^$1 *$"; }}
services() {{ echo "$1" >{CONFIG}; tproxy refresh >/dev/null; }}
PYTHON={sys.executable}
"""


class Fault(NamedTuple):
    """A fault, and what doctor or probe says of it.

    ``cause`` and ``repair`` are shell scripts. The first line that is not good must be of this ``check`` and
    ``level``, and hold these ``words``. ``afterwards`` undoes what else the cause needed. ``command`` is how
    tproxy is run, and ``options`` are those of doctor.
    """

    cause: str
    check: str
    words: str
    repair: str = PRINTED
    afterwards: str = ""
    level: str = "bad"
    options: str = ""
    command: tuple[str, ...] = TPROXY


class Line(NamedTuple):
    """A line that doctor or probe printed. ``where`` is a bridge or a way."""

    level: str
    where: str
    check: str
    text: str
    repair: str


class Patient:
    """The host of all tests of a module: one bridge with a guest and a service, and nothing wrong with it."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        self.lab = OneBridge(host)

    def doctor(self, options: str = "", command: tuple[str, ...] = TPROXY) -> list[Line]:
        """Run doctor, and return its lines."""
        done = self.host.run(*command, "doctor", *options.split(), check=False, env=CONFIGURED)
        return _lines(done)

    def probe(self, arguments: str = "br0") -> list[Line]:
        """Run probe, and return its lines."""
        return _lines(self.host.tproxy("probe", *arguments.split(), check=False, env=CONFIGURED))

    def suffer(self, fault: Fault, *, probe: bool = False) -> None:
        """Cause the fault, have it named, and repair it; then nothing is bad any more."""
        repair = ""
        try:
            self.shell(fault.cause)
            found = self._first_wrong(fault, probe=probe)
            assert found is not None
            assert (found.level, found.check) == (fault.level, fault.check), found
            assert fault.words in found.text, found
            assert found.repair
            repair = found.repair if fault.repair == PRINTED else fault.repair
        finally:
            self.shell("\n".join((repair, fault.afterwards)))
        self.await_health()

    def _first_wrong(self, fault: Fault, *, probe: bool) -> Line | None:
        levels = ("bad",) if fault.level == "bad" else ("bad", "warning")
        lines = self.probe(fault.options or "br0") if probe else self.doctor(fault.options, fault.command)
        return first_wrong(lines, *levels)

    def shell(self, script: str) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.host.run("sh", "-euc", _FUNCTIONS + script, env=CONFIGURED | {"PATH": path})

    def await_health(self) -> None:
        """Wait until nothing is bad: processes may still be starting."""
        for _ in eventually():
            if not first_wrong(self.doctor(), "bad"):
                return


_LINE = re.compile(r"(good|warning|bad) +(?:[0-9.]+ ms +)?(?:(\S+) )?([a-z-]+): (.*?)(?:; repair: (.*))?")


def _lines(done: subprocess.CompletedProcess[str]) -> list[Line]:
    """The lines of doctor or probe. The exit code must say the same."""
    assert done.stderr == ""
    lines = [_parse(line) for line in done.stdout.splitlines()]
    assert done.returncode == (1 if any(each.level == "bad" for each in lines) else 0)
    return lines


def _parse(line: str) -> Line:
    found = _LINE.fullmatch(line)
    assert found, line
    level, where, check, text, repair = found.groups()
    return Line(level, where or "", check, text, repair or "")


def first_wrong(lines: list[Line], *levels: str) -> Line | None:
    """The first line of one of these levels."""
    return next((each for each in lines if each.level in levels), None)


def findings(document: str) -> list[Line]:
    """The findings of doctor's JSON form."""
    return [
        Line(each["level"], each["bridge"], each["check"], each["text"], each["repair"])
        for each in json.loads(document)["findings"]
    ]


def configuration(port: int = 8080, address: str = ENDPOINT, more: str = "", options: str = "") -> str:
    """A configuration file like that of the patient, as one word of a shell script."""
    service = f"service_port: 5030, remote_addr: {address}, remote_port: {port}{options}"
    return f"'{more}tproxy: [{{{service}}}]'"


HEALTHY = f"services {configuration()}"
