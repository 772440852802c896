"""Which configuration file is used, and why one cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.config.files import written
from tproxy.config.file import search, text_of
from tproxy.errors import ConfigError


def test_search_takes_the_option_before_the_environment(tmp_path: Path) -> None:
    option, variable = written(tmp_path / "option", ""), written(tmp_path / "variable", "")
    environ = {"TPROXY_CONFIG": str(variable)}
    assert search(str(option), environ) == str(option)
    assert search(None, environ) == str(variable)


def test_search_takes_the_first_standard_path_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / "opennebula", tmp_path / "own"]
    monkeypatch.setattr("tproxy.config.file.SEARCH_PATH", tuple(map(str, places)))
    assert search(None, {}) is None
    written(places[1], "")
    assert search(None, {"TPROXY_CONFIG": ""}) == str(places[1])
    written(places[0], "")
    assert search(None, {}) == str(places[0])


def test_search_returns_a_dangling_link_instead_of_the_next_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, other = tmp_path / "link", written(tmp_path / "other", "")
    link.symlink_to("nowhere")
    monkeypatch.setattr("tproxy.config.file.SEARCH_PATH", (str(link), str(other)))
    assert search(None, {}) == str(link)


@pytest.mark.parametrize(
    ("option", "environ"), [("", {}), ("no/such", {}), (None, {"TPROXY_CONFIG": "no/such"})]
)
def test_a_named_file_that_is_missing_is_an_error(option: str | None, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        search(option, environ)


@pytest.mark.parametrize(
    ("name", "reason"), [("missing", "No such file or directory"), ("", "Is a directory")]
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        text_of(str(tmp_path / name))
    assert str(error.value) == f"{tmp_path / name}: {reason}"


def test_a_hostile_file_name_cannot_forge_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        text_of(f"{tmp_path}/a\nERROR forged\udc80")
    assert str(error.value) == rf"{tmp_path}/a\nERROR forged\udc80: No such file or directory"
