"""What only Debian packages do, on machines with a clean root of the distribution that each is for."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from packages import requirements
from packages.requirements import Distribution
from tests.contract import SECURITY, quoted, table
from tests.packages.conftest import SOURCE, Build
from tests.packages.kinds import Deb
from tests.packages.machine import Machine, booted
from tproxy.cli.commands import COMMANDS


@pytest.fixture(scope="module")
def deb(distribution: Distribution, build: Build) -> Path:
    return build("deb", distribution.codename, SOURCE)


@pytest.fixture(scope="module")
def installed(distribution: Distribution, deb: Path) -> Iterator[Machine]:
    """A machine on which the package is installed. Tests change nothing on it."""
    with booted(distribution.codename) as machine:
        Deb().install(machine, machine.put(deb))
        yield machine


def test_lintian_finds_nothing(deb: Path) -> None:
    (file,) = deb.iterdir()
    done = subprocess.run(["lintian", "--allow-root", file], check=False, capture_output=True, text=True)
    assert done.stdout == ""


def test_the_service_runs_and_the_command_answers(installed: Machine) -> None:
    assert installed.sh("systemctl is-active tproxy") == "active\n"
    assert installed.sh("systemctl is-enabled tproxy") == "enabled\n"
    assert installed.sh("systemctl is-enabled tproxy-watch || :") == "disabled\n"
    assert installed.sh("tproxy status").startswith("one_tproxy: ")
    assert "in order" in installed.sh("tproxy check")


def test_processes_can_be_started_as_modules(installed: Machine) -> None:
    """Processes start each other by ``sys.executable -m``."""
    assert "usage: tproxy.daemon" in installed.sh("/usr/lib/tproxy/bin/python3 -m tproxy.daemon --help")


def test_every_command_has_a_man_page(installed: Machine) -> None:
    for name in COMMANDS:
        page = installed.path(f"/usr/share/man/man1/tproxy-{name}.1.gz")
        command = ["man", "--encoding=ascii", "--warnings", "-l", "-"]
        unpacked = subprocess.run(["zcat", page], check=True, capture_output=True).stdout
        done = subprocess.run(command, input=unpacked, check=True, capture_output=True)
        assert f"tproxy-{name} - ".encode() in b" ".join(done.stdout.split())
        assert done.stderr == b""


def test_the_shell_completes_commands(installed: Machine) -> None:
    complete = ". /usr/share/bash-completion/completions/tproxy; COMP_WORDS=(tproxy st) COMP_CWORD=1;"
    complete += " _tproxy_completion tproxy; printf '%s\\n' ${COMPREPLY[@]}"
    found = set(installed.run("bash", "-c", complete).stdout.split())
    assert found == {name for name in COMMANDS if name.startswith("st")}


def test_modules_come_from_the_package_and_the_distribution_as_the_table_says(
    installed: Machine, distribution: Distribution
) -> None:
    wanted = requirements.of_project()
    carried = requirements.choose(wanted, distribution).carried
    for each in wanted:
        module = {"PyYAML": "yaml", "pip-nftables": "nftables"}.get(each.name, each.name).replace("-", "_")
        program = f"import {module}; print({module}.__file__)"
        file = installed.run("/usr/lib/tproxy/bin/python3", "-Ic", program).stdout
        assert file.startswith("/usr/lib/tproxy/" if each.name in carried else "/usr/lib/python3/"), file


def test_the_table_has_the_versions_of_the_distribution(
    installed: Machine, distribution: Distribution
) -> None:
    for package, version in distribution.packages.values():
        shown = installed.sh(f"apt-cache policy {package} | awk '/Candidate/ {{ print $2 }}'").strip()
        # As in 1:2.3+really4.5-6: the version is 4.5.
        assert re.split(r"[-+]", re.sub(r"^\d+:|.*really\.?", "", shown))[0] == version, package


def test_a_module_of_the_users_is_not_loaded(installed: Machine, distribution: Distribution) -> None:
    """A package that root installed with pip may be of any version."""
    site = f"/usr/local/lib/python{distribution.python}/dist-packages"
    installed.sh(f"mkdir -p {site} /root/own")
    installed.sh(f"echo 'raise SystemExit(9)' | tee {site}/click.py /root/own/yaml.py")
    try:
        installed.sh("tproxy check", PYTHONPATH="/root/own")
    finally:
        installed.sh(f"rm -r {site}/click.py /root/own")


def test_an_upgrade_starts_nothing_that_was_stopped(
    distribution: Distribution, build: Build, deb: Path, old_source: Path
) -> None:
    with booted(distribution.codename) as machine:
        Deb().install(machine, machine.put(build("deb", distribution.codename, old_source)))
        machine.sh("systemctl disable --now tproxy")
        Deb().upgrade(machine, machine.put(deb))
        assert machine.sh("tproxy status") == ""
        assert machine.sh("systemctl is-enabled tproxy || :") == "disabled\n"


@pytest.mark.parametrize("unit", ["tproxy", "tproxy-watch"])
def test_the_page_explains_each_point_of_systemd_analyze(installed: Machine, unit: str) -> None:
    rows = table("Units", "option", "value", page=SECURITY).rows
    explained = {
        (option, value) for row in rows for option in quoted(row[0]) for value in quoted(row[1]) or [""]
    }
    shown = installed.run("systemd-analyze", "security", "--json=short", f"{unit}.service").stdout
    points = [each["name"] for each in json.loads(shown) if each["exposure"]]
    assert [each for each in points if explained.isdisjoint(_options(each))] == []


def _options(point: str) -> set[tuple[str, str]]:
    """Return option and value for each part of the name of a point, ``X=/Y=`` or ``X=~CAP_(A|B)``."""
    option, _, value = point.partition("=~")
    if not value:
        return {(each.strip("="), "") for each in option.split("/")}
    start, _, alternatives = value.rstrip(")").partition("(")
    return {(option, start + each) for each in alternatives.split("|")}
