"""The command line of the hook: its help, its options and its errors."""

from __future__ import annotations

import re

import pytest

from tproxy.cli import hook
from tproxy.console import EXIT_USAGE

OPTION = re.compile(r"^  (--[a-z-]+)(?: ([A-Z]+))?", re.MULTILINE)


@pytest.mark.parametrize(
    "arguments", [["-h"], ["--help"], ["up", "--help"], ["down", "--bridge", "br0", "-h"]]
)
def test_help_is_shown_for_its_option_at_any_place(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        hook.run(arguments)
    assert not ended.value.code
    assert capsys.readouterr().out == hook.HELP + "\n"


def test_the_help_names_all_options_and_no_others() -> None:
    told = OPTION.findall(hook.HELP)
    assert {name for name, value in told if value} == set(hook.VALUES)
    assert {name for name, value in told if not value} == set(hook.FLAGS)


def test_the_last_value_of_an_option_counts_and_uplinks_add_up() -> None:
    options = hook.parse(
        "up",
        [
            "--bridge",
            "br0",
            "--network=-a",
            "--network",
            "--b",
            "--network-id",
            "0",
            "--uplink",
            "eth0",
            "--uplink",
            "eth1",
            "--dry-run",
        ],
    )
    assert (options.bridge, options.network, options.network_id) == ("br0", "--b", "0")
    assert options.uplinks == {"eth0", "eth1"}
    assert (options.dry_run, options.force, options.config) == (True, False, None)


def test_a_port_belongs_to_the_mac_before_it() -> None:
    one, two = "02:00:0a:00:00:05", "02:00:0a:00:00:06"
    options = hook.parse(
        "up", ["--port", "tap0", "--mac", one, "--port=vnet0", "--port=vnet1", f"--mac={two}"]
    )
    assert options.macs == {one, two}
    assert options.ports == {("tap0", ""), ("vnet0", one), ("vnet1", one)}


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("down", ["--bridge", "br0", "--f"], "unexpected argument '--f'"),
        ("up", ["--br", "br0"], "unexpected argument '--br'"),
        ("up", ["--bridge", "br0", "--force"], "unexpected argument '--force'"),
        ("up", ["--bridge", "br0", "--dry-run=1"], "unexpected argument '--dry-run=1'"),
        ("up", ["--bridge", "br0", "--"], "unexpected argument '--'"),
        ("up", ["br0"], "unexpected argument 'br0': did you mean tproxy hook up --bridge br0?"),
        (
            "down",
            ["br0", "--force"],
            "unexpected argument 'br0': did you mean tproxy hook down --bridge br0?",
        ),
        ("up", ["a b"], "unexpected argument 'a b'"),
        ("up", ["--bridge", "br0", "br1"], "unexpected argument 'br1'"),
        ("up", ["--bridge"], "--bridge needs a value"),
        # An empty variable of a driver that does not quote it.
        ("up", ["--bridge", "br0", "--uplink", "--dry-run"], "--uplink needs a value"),
        ("down", ["--bridge", "br0", "--uplink", "--force"], "--uplink needs a value"),
        ("up", ["--bridge", "br0", "--network", "--network-id=5"], "--network needs a value"),
    ],
)
def test_a_wrong_argument_is_a_usage_error_of_one_line(
    command: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        hook.parse(command, arguments)
    assert ended.value.code == EXIT_USAGE
    assert capsys.readouterr().err == f"tproxy: hook {command}: {said}\n"


def test_a_value_may_be_empty_or_an_option_behind_an_equals_sign() -> None:
    options = hook.parse("up", ["--network", "", "--network-id=", "--bridge=--force", "--uplink="])
    assert (options.network, options.network_id, options.bridge) == ("", "", "--force")
    assert options.uplinks == {""}
