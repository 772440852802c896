"""Log files: where lines go, which levels are written, rotation, and files that cannot be written."""

from __future__ import annotations

import logging
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tproxy.log import output
from tproxy.log.file import Log, open_log

log = logging.getLogger("tproxy.somewhere")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory in place of /var/log; afterwards the logging of this process is restored."""
    monkeypatch.setattr("tproxy.log.file.DIRECTORY", tmp_path)
    monkeypatch.setattr(output, "_handler", None)
    ours = logging.getLogger("tproxy")
    before = ours.handlers[:], ours.propagate, ours.level
    yield tmp_path
    for handler in ours.handlers:
        handler.close()
    ours.handlers[:], ours.propagate = before[0], before[1]
    ours.setLevel(before[2])


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_line_shows_time_pid_and_level(directory: Path) -> None:
    output.to_file("one_tproxy.log", logging.INFO)
    log.info("port %d listens", 5030)
    (line,) = lines(directory / "one_tproxy.log")
    when = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}"
    assert re.fullmatch(rf"{when} {os.getpid()} INFO port 5030 listens", line)


def test_lines_are_appended_to_an_existing_file(directory: Path) -> None:
    (directory / "one_tproxy.log").write_text("from before\n")
    output.to_file("one_tproxy.log", logging.INFO)
    log.info("now")
    assert lines(directory / "one_tproxy.log")[0] == "from before"
    assert len(lines(directory / "one_tproxy.log")) == 2


@pytest.mark.parametrize("level", [logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG])
def test_only_lines_of_the_level_or_above_are_written(directory: Path, level: int) -> None:
    output.to_file("one_tproxy.log", logging.CRITICAL)
    output.set_level(level)
    assert output.level() == level
    for each in (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG):
        log.log(each, "a line")
    names = [line.split()[2] for line in lines(directory / "one_tproxy.log")]
    order = ["ERROR", "WARNING", "INFO", "DEBUG"]
    assert names == order[: order.index(logging.getLevelName(level)) + 1]


def a_relays_log(name: str = "one_tproxy_br0.log") -> Log:
    """Return the log of a process that was given the descriptor of its file."""
    relays = Log()
    relays.use(open_log(name))
    return relays


def test_after_a_rotation_and_a_reopen_lines_go_to_a_new_file(directory: Path) -> None:
    output.to_file("one_tproxy.log", logging.INFO)
    path, old = directory / "one_tproxy.log", directory / "one_tproxy.log.1"
    log.info("one")
    path.rename(old)
    log.info("two")
    output.reopen()
    log.info("three")
    assert [line.split()[-1] for line in lines(old)] == ["one", "two"]
    assert [line.split()[-1] for line in lines(path)] == ["three"]


def test_a_relay_writes_to_the_file_that_it_was_given_last_and_closes_the_one_before(directory: Path) -> None:
    relays = a_relays_log("one")
    relays.info("one")
    relays.use(open_log("two"))
    relays.info("two")
    assert [line.split()[-1] for line in lines(directory / "one")] == ["one"]
    assert [line.split()[-1] for line in lines(directory / "two")] == ["two"]
    held = [each.path for each in psutil.Process().open_files()]
    assert str(directory / "one") not in held


def test_without_a_file_lines_are_dropped(directory: Path) -> None:
    output.reopen()
    Log().error("nowhere")
    assert list(directory.iterdir()) == []


def test_without_a_directory_lines_are_lost_until_a_reopen_finds_one(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tproxy.log.file.DIRECTORY", directory / "missing")
    output.to_file("one_tproxy.log", logging.INFO)
    log.info("lost")
    (directory / "missing").mkdir()
    output.reopen()
    log.info("kept")
    assert [line.split()[-1] for line in lines(directory / "missing/one_tproxy.log")] == ["kept"]
    assert capsys.readouterr() == ("", "")


def test_a_full_disk_loses_lines_and_raises_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tproxy.log.file.DIRECTORY", Path("/dev"))
    output.to_file("full", logging.INFO)
    log.info("lost")
    assert capsys.readouterr() == ("", "")


def test_a_log_call_with_wrong_arguments_raises_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", True)
    output.to_file("one_tproxy.log", logging.INFO)
    log.info("port %d listens", "http")
    assert "port %d listens" in capsys.readouterr().err  # the mistake in our code can be found
    output.for_command(logging.INFO, debug=False)
    log.info("port %d listens", "http")
    log.info("all is well")
    assert capsys.readouterr() == ("", "")  # operators do not see it
    assert [line.split()[-1] for line in lines(directory / "one_tproxy.log")] == ["well"]


def test_bytes_that_are_not_utf_8_are_written_as_escapes(directory: Path) -> None:
    output.to_file("one_tproxy.log", logging.INFO)
    log.info("network %s", "\udcff é")
    assert lines(directory / "one_tproxy.log")[0].endswith(r"network \udcff é")


def test_a_second_file_replaces_the_first(directory: Path) -> None:
    """A relay does this: it is forked from a process that has a log."""
    output.to_file("one_tproxy.log", logging.INFO)
    output.to_file("one_tproxy_br0.log", logging.INFO)
    log.info("of the relay")
    assert lines(directory / "one_tproxy.log") == []
    assert len(lines(directory / "one_tproxy_br0.log")) == 1
    held = [each.path for each in psutil.Process().open_files()]
    assert str(directory / "one_tproxy.log") not in held


def test_a_command_prints_warnings_on_stderr_and_logs_all_lines(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.for_command(logging.INFO, debug=False)
    log.debug("d")
    log.info("i")
    output.warn("100% of w")
    log.error("e, which ends the command, and is printed where it is caught")
    assert capsys.readouterr() == ("", "tproxy: 100% of w\n")
    assert [line.split()[2] for line in lines(directory / "one_tproxy.log")] == ["INFO", "WARNING", "ERROR"]


def test_a_command_with_debug_prints_and_logs_all_lines(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.for_command(logging.ERROR, debug=True)
    log.debug("d")
    log.info("i")
    assert capsys.readouterr().err == "tproxy: d\ntproxy: i\n"
    assert len(lines(directory / "one_tproxy.log")) == 2


def test_libraries_do_not_write_into_our_log(directory: Path) -> None:
    output.to_file("one_tproxy.log", logging.DEBUG)
    logging.getLogger("pyroute2").warning("a message")
    assert lines(directory / "one_tproxy.log") == []


def test_a_relay_writes_lines_in_the_format_of_logging(directory: Path) -> None:
    output.to_file("one_tproxy.log", logging.INFO)
    relays = a_relays_log()
    both = []
    for name, each in ("one_tproxy.log", log), ("one_tproxy_br0.log", relays):
        each.info("network %s", "\udcff é")
        each.warning("w")
        each.error("e")
        both.append([re.sub(r"\d", "0", line) for line in lines(directory / name)])
    assert both[0] == both[1]
    assert len(both[0]) == 3


@pytest.mark.parametrize("level", [logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG])
def test_a_relay_writes_lines_of_its_level_or_above(directory: Path, level: int) -> None:
    relays = a_relays_log()
    relays.level = level
    for write in (relays.error, relays.warning, relays.info):
        write("a line")
    names = [line.split()[2] for line in lines(directory / "one_tproxy_br0.log")]
    assert names == [logging.getLevelName(each) for each in (40, 30, 20) if each >= level]


def test_a_full_disk_loses_lines_of_a_relay_and_raises_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tproxy.log.file.DIRECTORY", Path("/dev"))
    a_relays_log("full").info("lost")


def test_a_relay_without_a_directory_for_its_log_writes_nowhere(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tproxy.log.file.DIRECTORY", directory / "missing")
    a_relays_log().info("lost")
    assert list(directory.iterdir()) == []


def test_reopening_works_at_the_limit_of_descriptors(directory: Path) -> None:
    output.to_file("one_tproxy.log", logging.INFO)
    path = directory / "one_tproxy.log"
    path.rename(directory / "one_tproxy.log.1")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open("/dev/null", os.O_RDONLY)  # the lowest free number; the limit refuses all above it
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 1, hard))
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/dev/null", os.O_RDONLY)
        output.reopen()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(spare)
    log.info("kept")
    assert len(lines(path)) == 1
