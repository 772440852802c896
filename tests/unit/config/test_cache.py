"""A configuration from the cache equals the one that would be read, whatever happened in between."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tproxy.config import cache, reader
from tproxy.config.services import Config
from tproxy.errors import ConfigError
from tproxy.process import run_directory

TEXT = """
tproxy_debug_level: 3
tproxy_workers: 3
tproxy_watch: true
tproxy_watch_grace: 2.5
tproxy_bridges:
- {bridge: "onebr*", network: blue, network_id: 7, uplinks: [eth0, eth1]}
- {bridge: br0}
- {bridge: 5 5}
tproxy:
- {service_port: 80, remote_addr: one.example, remote_port: 8080, networks: [blue, 7], name: a,
   connect_timeout: 1}
- {remote_addr: 10.0.0.1, remote_port: 5030}
- {remote_addr: 10.0.0.1}
other: [1, 2]
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache."""
    monkeypatch.setattr(run_directory, "ROOT", str(tmp_path / "run"))
    return Path(run_directory.prepare())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "tproxy.yaml", TEXT)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def load(file: Path, *, remember: bool = True) -> Config:
    return cache.load(str(file), remember=remember)


def cached(file: Path, monkeypatch: pytest.MonkeyPatch) -> Config | None:
    """Load the file from the cache only; None when it is not there."""
    with monkeypatch.context() as patched:
        patched.delattr(reader, "parse")
        try:
            return load(file)
        except AttributeError:
            return None


def test_a_file_is_parsed_once(home: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(file)
    assert first == reader.load(file)
    assert first.warnings
    again = cached(file, monkeypatch)
    assert again == first
    assert again is not None
    # Equal is not enough: 1 equals True, and a list would not be found in a set.
    assert repr(sorted(again.entries[0].networks)) == repr(sorted(first.entries[0].networks))
    assert [type(each) for each in again] == [type(each) for each in first]
    assert [type(each) for each in again.entries[0]] == [type(each) for each in first.entries[0]]
    assert [type(each) for each in again.bridges[0]] == [type(each) for each in first.bridges[0]]
    assert [each.at(again.path) for each in again.warnings] == [
        each.at(first.path) for each in first.warnings
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(), st.text(), st.text())
def test_any_text_comes_back_as_it_was(home: Path, file: Path, name: str, network: str, comment: str) -> None:
    entry = f"{{remote_addr: 10.0.0.1, remote_port: 80, name: {name!a}, networks: [{network!a}]}}"
    file.write_text(f"# {comment!a}\ntproxy: [{entry}]\n")
    try:
        first = reader.load(file)
    except ConfigError:
        return
    assert load(file) == first
    assert load(file) == first


READERS = ["addresses.py", "cache.py", "merging.py", "model.py", "reader.py", "services.py", "values.py"]


@pytest.mark.parametrize("change", ["text", "path", "code", "version", *READERS])
def test_a_change_of_file_path_or_code_has_the_file_read_anew(
    home: Path, file: Path, change: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load(file)
    if change == "text":
        status = file.stat()
        written(file, TEXT.replace("5030", "5031"))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "path":
        file = file.rename(tmp_path / "other.yaml")
    elif change == "code":
        module = written(tmp_path / "module.py", "pass\n")
        monkeypatch.setattr(cache, "_code", lambda: [str(module)])
        load(file)
        written(module, "something else\n")
    elif change in READERS:
        stamp = cache._stamp
        monkeypatch.setattr(cache, "_stamp", lambda path: [] if Path(path).name == change else stamp(path))
    else:
        monkeypatch.setattr(cache, "__version__", "0.0")
    assert cached(file, monkeypatch) is None
    assert load(file) == reader.load(file)
    assert cached(file, monkeypatch) == reader.load(file)


def test_an_error_of_a_file_is_not_hidden_by_the_cache(home: Path, file: Path) -> None:
    load(file)
    written(file, "tproxy: 5\n")
    for _ in range(2):
        with pytest.raises(ConfigError, match="tproxy is not a list"):
            load(file)
    file.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        load(file)


@pytest.mark.parametrize("left", ["", "[", "5", "{}", "[1, 2]", "[1, 2, 3]", "\xff", "[" * 100_000])
def test_a_damaged_cache_is_replaced(
    home: Path, file: Path, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / cache.FILE).write_text(left, "latin-1")
    assert load(file) == reader.load(file)
    assert cached(file, monkeypatch) == reader.load(file)


@pytest.mark.parametrize("said", [5, [1], [1, 2, 3, 4], {}])
def test_a_cache_that_holds_something_else_than_a_configuration_is_replaced(
    home: Path, file: Path, said: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(file)
    kept = home / cache.FILE
    key, _ = json.loads(kept.read_text())
    kept.write_text(json.dumps([key, said]))
    assert load(file) == reader.load(file)
    assert cached(file, monkeypatch) == reader.load(file)


def test_a_cache_that_cannot_be_written_leaves_no_file_behind(home: Path, file: Path) -> None:
    (home / cache.FILE).mkdir()  # which no file can replace
    assert load(file) == reader.load(file)
    assert [each.name for each in home.iterdir()] == [cache.FILE]


def test_a_file_is_read_where_no_cache_can_be_made(
    home: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_directory, "ROOT", str(file))  # which is no directory
    assert load(file) == reader.load(file)


def test_nothing_is_written_to_the_cache_unless_asked_to(home: Path, file: Path) -> None:
    load(file, remember=False)
    assert not list(home.iterdir())
    load(file)
    assert [each.name for each in home.iterdir()] == [cache.FILE]
