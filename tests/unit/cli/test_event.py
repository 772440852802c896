"""``tproxy event``, which installed hooks of platforms call."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import tproxy
from tproxy.cli import event
from tproxy.cli.commands import cli
from tproxy.console import EXIT_USAGE
from tproxy.platforms import proxmox

DRIVERS = Path(tproxy.__file__).with_name("drivers")


@pytest.mark.parametrize("arguments", [[], [""], ["vmware", "100"], ["100", "pre-start"]])
def test_a_platform_that_is_not_known_is_a_usage_error_of_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert event.run(arguments) == EXIT_USAGE
    said = capsys.readouterr()
    platform = arguments[0] if arguments else ""
    assert (said.out, said.err) == (
        "",
        f"tproxy: event: the platform is libvirt or proxmox, not '{platform}'\n",
    )


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help_names_each_platform_and_shows_an_example(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert event.run(arguments) == 0
    said = capsys.readouterr().out
    assert all(f"  {platform} " in said for platform in event.PLATFORMS)
    assert "tproxy event proxmox 100 post-start" in said


@pytest.mark.parametrize("platform", event.PLATFORMS)
def test_each_platform_has_an_installed_hook_that_calls_it(platform: str) -> None:
    assert f"-m tproxy event {platform} " in (DRIVERS / platform / "hook").read_text()


@pytest.mark.parametrize(
    ("options", "environment", "debug"),
    [([], "", False), (["--debug"], "", True), ([], "1", True)],
)
def test_the_platform_gets_its_own_arguments_and_its_exit_code_is_the_commands(
    options: list[str], environment: str, debug: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def handle_event(arguments: list[str], *, debug: bool) -> int:
        calls.append((arguments, debug))
        return 1

    monkeypatch.setattr(proxmox, "handle_event", handle_event)
    done = CliRunner().invoke(
        cli, [*options, "event", "proxmox", "100", "--help"], env={"TPROXY_DEBUG": environment}, obj=None
    )
    assert done.exit_code == 1
    assert calls == [(["100", "--help"], debug)]
