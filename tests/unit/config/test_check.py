"""``tproxy check``: finds all problems of a file at once, for whichever network a hook may name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tproxy.cli.commands import cli
from tproxy.config import check, reader
from tproxy.config.resolver import Resolver

Problems = Callable[..., "list[str]"]
Run = Callable[..., Result]


def no_such_host(name: str) -> list[str]:
    raise OSError(-2, "Name or service not known")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tproxy.yaml"


@pytest.fixture
def problems(file: Path) -> Problems:
    """The problems of a file of these lines, each as its line number and text."""

    def find(*lines: str, resolve: Resolver = no_such_host) -> list[str]:
        file.write_text("\n".join(lines) + "\n")
        return [f"{each.line}: {each.text}" for each in check.problems(reader.load(file), resolve)]

    return find


@pytest.fixture
def run(file: Path) -> Run:
    def run(*lines: str, options: tuple[str, ...] = ()) -> Result:
        file.write_text("\n".join(lines) + "\n")
        return CliRunner().invoke(cli, ["check", *options, str(file)])

    return run


def test_all_faults_of_all_entries_are_named_with_their_lines(problems: Problems) -> None:
    assert problems(
        "tproxy_debug_level: 9",
        "tproxy:",
        "- service_port: 99999",
        "  remote_addr: 10.1",
        "  colour: green",
        "- {remote_addr: 10.0.0.1, remote_port: 80}",
        "- networks: []",
    ) == [
        "1: tproxy_debug_level '9' is not one of 0 to 3: 2 is used",
        "3: entry 1: service_port '99999' is not a port, 1 to 65535: entry skipped",
        "3: entry 1: remote_port is missing: entry skipped",
        "4: entry 1: remote_addr '10.1' is not an IP address or a host name: entry skipped",
        "5: entry 1: key 'colour' is unknown and ignored",
        "7: entry 3: remote_addr is missing: entry skipped",
        "7: entry 3: remote_port is missing: entry skipped",
    ]


def test_an_entry_that_no_network_can_use_is_reported_once(problems: Problems) -> None:
    assert problems(
        "tproxy:",
        "- {remote_addr: 10.0.0.1, remote_port: 80}",
        "- {remote_addr: 10.0.0.2, remote_port: 80}",
        "- {remote_addr: 10.0.0.3, remote_port: 90, networks: [a, b]}",
    ) == ["3: entry 2: service_port 80: entry 1 (line 2) has it on this network: entry ignored"]


def test_an_entry_that_some_networks_cannot_use_is_reported_with_these_networks(problems: Problems) -> None:
    assert problems(
        "tproxy:",
        "- {remote_addr: 10.0.0.1, remote_port: 80, networks: [7, vnet1]}",
        "- {remote_addr: 10.0.0.2, remote_port: 80}",
    ) == [
        "3: entry 2: service_port 80: entry 1 (line 2) has it on this network: entry ignored"
        " (networks: '7', 'vnet1')"
    ]


def test_one_service_port_on_two_networks_is_not_a_problem(problems: Problems) -> None:
    assert not problems(
        "tproxy:",
        "- {remote_addr: 10.0.0.1, remote_port: 80, networks: a}",
        "- {remote_addr: 10.0.0.2, remote_port: 80, networks: b}",
    )


def test_a_host_name_is_looked_up_once_for_all_networks(problems: Problems) -> None:
    asked = []

    def resolve(name: str) -> list[str]:
        asked.append(name)
        return no_such_host(name)

    (problem,) = problems(
        "tproxy:",
        "- {remote_addr: gone.example, remote_port: 80, networks: [a, b, c]}",
        "- {remote_addr: 10.0.0.2, remote_port: 81, networks: d}",
        resolve=resolve,
    )
    assert problem.startswith("2: entry 1: remote_addr 'gone.example' does not resolve: Name or service")
    assert asked == ["gone.example"]


def test_a_long_list_of_networks_is_shortened_in_the_line(problems: Problems) -> None:
    (problem,) = problems(
        "tproxy:",
        f"- {{remote_addr: gone.example, remote_port: 80, networks: [{', '.join(map(str, range(100)))}]}}",
    )
    assert problem.endswith(" and 95 more)")


def test_a_file_in_order_exits_0_and_says_so(run: Run, file: Path) -> None:
    result = run("tproxy:", "- {remote_addr: 10.0.0.1, remote_port: 80}")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{file}: in order, 1 entry\n", "")


def test_a_file_of_which_hooks_would_ignore_a_part_exits_3(run: Run, file: Path) -> None:
    result = run("tproxy:", "- {remote_addr: 10.0.0.1, remote_port: 0}")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith(f"{file}:2: entry 1: remote_port '0'")


@pytest.mark.parametrize(
    ("text", "place"), [("tproxy: {", ":2: not YAML"), ("tproxy: 5", ":1: tproxy is not a list")]
)
def test_a_file_that_hooks_could_not_use_exits_1(run: Run, file: Path, text: str, place: str) -> None:
    result = run(text)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"{file}{place}")
    assert result.stderr.count("\n") == 1


def test_a_missing_file_exits_1(file: Path) -> None:
    result = CliRunner().invoke(cli, ["check", str(file)])
    assert (result.exit_code, result.stderr) == (1, f"{file}: No such file or directory\n")


def test_no_resolve_does_not_look_up_host_names(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tproxy.cli.check.addresses_of", no_such_host)
    lines = ("tproxy:", "- {remote_addr: endpoint.invalid, remote_port: 80}")
    assert run(*lines).exit_code == 3
    assert run(*lines, options=("--no-resolve",)).exit_code == 0


def test_without_a_file_argument_the_file_that_hooks_find_is_checked(file: Path) -> None:
    file.write_text("tproxy: []\n")
    done = subprocess.run(
        [sys.executable, "-m", "tproxy", "check"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "TPROXY_CONFIG": str(file)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}: in order, 0 entries\n", "")


@pytest.mark.usefixtures("bounded_work")
def test_as_many_networks_as_a_file_can_hold_are_checked_in_seconds(problems: Problems) -> None:
    entry = "- {remote_addr: 10.0.0.1, remote_port: 1, networks: [n%d]}"
    (found,) = problems("tproxy:", *(entry % n for n in range(15_000)), entry % 7)
    assert "15002: entry 15001: service_port 1: entry 8 (line 9) has it on this network" in found
    assert found.endswith("(networks: 'n7')")
