"""The keys of the configuration file for the watcher (hookless mode)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tproxy.config.reader import load
from tproxy.config.services import DEFAULT_WATCH_GRACE, Config, WatchedBridge
from tproxy.errors import ConfigError

KEYS = """
tproxy_watch: true
tproxy_watch_grace: 12.5
tproxy_bridges:
- bridge: br0
  network: blue
  network_id: 7
  uplinks: [eth0, eth1.100]
- bridge: "onebr*"
- bridge: br1
  uplinks: eth2
- bridge: br2
  uplinks: ""
"""
WANTED = (
    WatchedBridge("br0", "blue", "7", frozenset({"eth0", "eth1.100"})),
    WatchedBridge("onebr*"),
    WatchedBridge("br1", uplinks=frozenset({"eth2"})),
    WatchedBridge("br2"),
)


def loaded(path: Path, text: str) -> Config:
    (path / "tproxy.yaml").write_text(text)
    return load(path / "tproxy.yaml")


@pytest.mark.parametrize("text", [KEYS, KEYS.replace("tproxy_", ":tproxy_").replace("bridge:", ":bridge:")])
def test_keys_are_read_with_and_without_a_colon(tmp_path: Path, text: str) -> None:
    config = loaded(tmp_path, text)
    assert (config.watch, config.watch_grace, config.bridges) == (True, 12.5, WANTED)
    assert not config.warnings


def test_without_the_keys_nothing_is_watched(tmp_path: Path) -> None:
    config = loaded(tmp_path, "tproxy: []\n")
    assert (config.watch, config.watch_grace, config.bridges) == (False, DEFAULT_WATCH_GRACE, ())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tproxy_watch: maybe", "tproxy.yaml:1: tproxy_watch 'maybe' is not true or false: false is used"),
        ("tproxy_watch_grace: -1", "tproxy_watch_grace '-1' is not a time"),
        ("tproxy_watch_grace: 1e9", "tproxy_watch_grace '1e9' is not a time"),
        ("tproxy_bridges: [br0]", "tproxy_bridges: entry 1: 'br0' is not a mapping"),
        ("tproxy_bridges: [{network: blue}]", "tproxy_bridges: entry 1: bridge is missing"),
        ("tproxy_bridges: [{bridge: 'a;b'}]", "bridge 'a;b' is not a bridge's name, or a pattern"),
        (
            "tproxy_bridges: [{bridge: br0, uplinks: [eth0, 'x y']}]",
            "uplinks 'x y' is not the name of a link",
        ),
        ("tproxy_bridges: [{bridge: br0, colour: red}]", "tproxy_bridges: entry 1: key 'colour' is unknown"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_and_the_rest_applies(
    tmp_path: Path, text: str, said: str
) -> None:
    config = loaded(tmp_path, text + "\ntproxy_debug_level: 3\n")
    (warning,) = config.warnings
    assert said in warning.at(config.path)
    assert config.log_level == 10
    assert not config.watch
    assert config.watch_grace == DEFAULT_WATCH_GRACE


def test_bridges_that_are_not_a_list_are_an_error_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tproxy_bridges is not a list"):
        loaded(tmp_path, "tproxy_bridges: br0\n")
