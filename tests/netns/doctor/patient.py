"""A host that is made ill: doctor or probe names the fault, and the command that they print cures it."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from tests.netns.one_bridge import OneBridge
from tests.netns.waiting import eventually
from tproxy.lab.hypervisor import Hypervisor

CONFIG = "/run/tproxy.yaml"
CONFIGURED = {"TPROXY_CONFIG": CONFIG}
PRINTED = "the command that the line names"


class Fault(NamedTuple):
    """A fault, and what doctor says of it.

    ``cause`` and ``repair`` are shell scripts. The first line that is not good must be of this ``check`` and
    ``level``, and hold these ``words``. ``afterwards`` undoes what else the cause needed.
    """

    cause: str
    check: str
    words: str
    repair: str = PRINTED
    afterwards: str = ""
    level: str = "bad"
    options: str = ""  # of doctor


class Line(NamedTuple):
    """A line that doctor printed."""

    level: str
    bridge: str
    check: str
    text: str
    repair: str


class Patient:
    """The host of all tests of a module: one bridge with a guest and a service, and nothing wrong with it."""

    def __init__(self, host: Hypervisor) -> None:
        self.host = host
        self.lab = OneBridge(host)

    def doctor(self, options: str = "") -> list[Line]:
        """Run doctor; return its lines. The exit code and the JSON form must say the same."""
        done = self.host.tproxy("doctor", *options.split(), check=False, env=CONFIGURED)
        assert done.stderr == ""
        lines = [_parse(line) for line in done.stdout.splitlines()]
        assert done.returncode == (1 if any(each.level == "bad" for each in lines) else 0)
        return lines

    def suffer(self, fault: Fault) -> None:
        """Cause the fault, have it named, and repair it; then nothing is bad any more."""
        repair = ""
        try:
            self.shell(fault.cause)
            found = self.first_wrong(fault)
            assert found is not None
            assert (found.level, found.check) == (fault.level, fault.check), found
            assert fault.words in found.text, found
            assert found.repair
            repair = found.repair if fault.repair == PRINTED else fault.repair
        finally:
            self.shell("; ".join(filter(None, (repair, fault.afterwards))) or ":")
        self.await_health()

    def first_wrong(self, fault: Fault) -> Line | None:
        """The first line that is bad, or for a fault that is a warning, the first that is not good."""
        levels = ("bad",) if fault.level == "bad" else ("bad", "warning")
        return first_wrong(self.doctor(fault.options), *levels)

    def shell(self, script: str) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.host.run("sh", "-euc", script, env=CONFIGURED | {"PATH": path})

    def await_health(self) -> None:
        """Wait until nothing is bad: processes may still be starting."""
        lines: list[Line] = []
        for _ in eventually():
            lines = self.doctor()
            if not first_wrong(lines, "bad"):
                return


_LINE = re.compile(r"(good|warning|bad) +(?:(\S+) )?([a-z-]+): (.*?)(?:; repair: (.*))?")


def _parse(line: str) -> Line:
    found = _LINE.fullmatch(line)
    assert found, line
    level, bridge, check, text, repair = found.groups()
    return Line(level, bridge or "", check, text, repair or "")


def first_wrong(lines: list[Line], *levels: str) -> Line | None:
    return next((each for each in lines if each.level in levels), None)


def findings(document: str) -> list[Line]:
    """The findings of the JSON form."""
    return [
        Line(each["level"], each["bridge"], each["check"], each["text"], each["repair"])
        for each in json.loads(document)["findings"]
    ]
