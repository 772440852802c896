"""The hook's command line: what it takes is what it says it takes."""

from __future__ import annotations

import re

import pytest

from tproxy.cli import hook

OPTION = re.compile(r"^  --([a-z-]+)(?: ([A-Z]+))?", re.MULTILINE)


@pytest.mark.parametrize(
    "arguments", [["-h"], ["--help"], ["up", "--help"], ["down", "--bridge", "br0", "-h"]]
)
def test_help_is_shown_wherever_it_is_asked_for(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        hook.run(arguments)
    assert not ended.value.code
    assert capsys.readouterr().out == hook.HELP + "\n"


def test_the_help_names_all_options_and_no_others() -> None:
    told = {name + ("=" if value else "") for name, value in OPTION.findall(hook.HELP)}
    assert told == {*hook.FLAGS, *hook.VALUES, "force"}


def test_the_last_value_counts_and_all_uplinks() -> None:
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
