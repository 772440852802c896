"""Installing files into a platform's folders: an interruption loses no file of the platform."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from tproxy.cli.commands import cli
from tproxy.config.file import SEARCH_PATH
from tproxy.errors import TproxyError
from tproxy.platforms.install import MARK, Piece, put, take_out

OURS = f"# {MARK}\n"
THEIRS = "theirs\n"

# The audit events of Python for changes of a file system, sys.addaudithook.
CHANGES = ("open", "os.mkdir", "os.chmod", "os.chown", "os.rename", "os.remove", "os.rmdir")


@pytest.fixture
def pieces(tmp_path: Path) -> list[Piece]:
    """A piece that replaces the platform's own command, and a hook in a folder that does not exist."""
    (tmp_path / "command").write_text(THEIRS)
    return [Piece(tmp_path / "command", OURS, replaces=True), Piece(tmp_path / "hooks/ours", OURS)]


def files(folder: Path) -> dict[str, str]:
    """Return all files with their text, without the marks of folders."""
    found = (each for each in folder.rglob("*") if each.is_file() and each.name != ".made-by-tproxy")
    return {str(each.relative_to(folder)): each.read_text() for each in found}


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow. Python ignores SIGXFSZ, so write(2) fails with EFBIG."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def killed_before(step: int, action: Callable[[], object]) -> bool:
    """Run the action in a process that dies at the change with this number; return whether there was one."""
    pid = os.fork()
    if pid == 0:

        def die_at(event: str, _: object, left: list[int] = [step]) -> None:  # noqa: B006 - it counts
            if event in CHANGES:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

        sys.addaudithook(die_at)
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def test_a_full_disk_leaves_the_platforms_file_in_its_place(tmp_path: Path, pieces: list[Piece]) -> None:
    with full_disk(), pytest.raises(TproxyError, match=r"cannot write .*/\.command\.new: File too large"):
        put(pieces)
    assert files(tmp_path) == {"command": THEIRS}


def test_uninstalling_restores_everything_wherever_installing_was_interrupted(
    tmp_path: Path, pieces: list[Piece]
) -> None:
    step = 0
    while killed_before(step, lambda: put(pieces)):
        take_out([each.path for each in pieces])
        assert files(tmp_path) == {"command": THEIRS}, step
        step += 1
    assert step > 5


def test_installing_and_uninstalling_at_once_neither_fail_nor_lose_a_file(
    tmp_path: Path, pieces: list[Piece]
) -> None:
    children = []
    for child in range(4):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                for _ in range(50):
                    put(pieces)
                    if child % 2:
                        take_out([each.path for each in pieces])
                os._exit(0)
            except BaseException as error:
                os.write(2, f"{error}\n".encode())
                os._exit(1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]
    take_out([each.path for each in pieces])
    assert files(tmp_path) == {"command": THEIRS}


@pytest.mark.parametrize("option", ["--command", "--config"])
def test_a_path_on_the_hypervisors_must_be_absolute(tmp_path: Path, option: str) -> None:
    (tmp_path / "vnm").mkdir()
    arguments = ["install", "opennebula", "--remotes", str(tmp_path), option, "tproxy"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert f"{option} must begin with /" in done.output
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("platform", "option", "hooks"),
    [
        ("libvirt", "--hooks", ["qemu.d/tproxy", "lxc.d/tproxy", "network.d/tproxy"]),
        ("proxmox", "--snippets", ["tproxy"]),
    ],
)
def test_install_and_uninstall_print_the_files_that_they_change(
    tmp_path: Path, platform: str, option: str, hooks: list[str]
) -> None:
    def run(command: str, *options: str) -> str:
        done = CliRunner().invoke(cli, [command, platform, option, str(tmp_path), *options])
        assert done.exit_code == 0
        return done.stdout

    paths = "".join(f"{tmp_path / hook}\n" for hook in hooks)
    assert run("install") == paths
    assert run("install") == "everything is in place\n"
    assert "strict=no" in files(tmp_path)[hooks[0]]
    assert run("install", "--strict") == paths
    assert "strict=yes" in files(tmp_path)[hooks[0]]
    assert run("uninstall") == paths
    assert run("uninstall") == "nothing of ours is there\n"
    assert files(tmp_path) == {}


def test_a_folder_that_was_made_for_several_folders_goes_with_the_last_of_them(tmp_path: Path) -> None:
    paths = [tmp_path / f"hooks/{name}.d/tproxy" for name in ("lxc", "network", "qemu")]
    put([Piece(path, OURS) for path in paths])
    take_out(paths[:2])
    assert files(tmp_path) == {"hooks/qemu.d/tproxy": OURS}
    take_out(paths[2:])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("platform", "option", "usual"), [("libvirt", "--hooks", "hooks"), ("proxmox", "--snippets", "snippets")]
)
def test_install_makes_no_folder_for_a_platform_that_is_not_there(
    tmp_path: Path, platform: str, option: str, usual: str
) -> None:
    for folder in (tmp_path / "mistyped", tmp_path / "not-there" / usual):
        done = CliRunner().invoke(cli, ["install", platform, option, str(folder)])
        assert isinstance(done.exception, TproxyError)
        assert str(done.exception) == (
            f"{folder} does not exist: is {platform} installed? Else give {option} DIR"
        )
    assert list(tmp_path.iterdir()) == []
    done = CliRunner().invoke(cli, ["install", platform, option, str(tmp_path / usual)])
    assert done.exit_code == 0  # the platform makes this folder only when it needs it


@pytest.mark.parametrize(
    ("content", "advised"),
    [("tproxy_watch: true\n", False), ("tproxy: []\n", True), ("tproxy: [", True), (None, True)],
    ids=["watcher", "no watcher", "broken", "missing"],
)
def test_install_proxmox_says_how_to_have_a_watcher_unless_the_configuration_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, advised: bool
) -> None:
    config = tmp_path / "tproxy.yaml"
    if content is not None:
        config.write_text(content)
    monkeypatch.setenv("TPROXY_CONFIG", str(config))
    done = CliRunner().invoke(cli, ["install", "proxmox", "--snippets", str(tmp_path)])
    assert done.exit_code == 0
    file = SEARCH_PATH[-1] if content is None else config
    expected = f"tproxy: add 'tproxy_watch: true' to {file} and run 'tproxy start'"
    assert (expected in done.stderr) == advised
    assert done.stderr.count("\n") == advised
