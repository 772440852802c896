"""Imports that end at any moment: by SIGKILL, by a power cut, or because the medium holds only a part."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tproxy.egress.bundle.creating import create
from tproxy.egress.bundle.importing import import_bundle
from tproxy.egress.bundle.manifest import BundleError
from tproxy.egress.signing import KeyPair
from tproxy.egress.store.records import Record
from tproxy.egress.store.store import Store

# Python's audit events for what changes a disk.
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link"}
WRITES = os.O_WRONLY | os.O_RDWR

IMPORT = """
import sys; from pathlib import Path
from tproxy.egress.bundle.importing import import_bundle; from tproxy.egress.store.store import Store
import_bundle(Store(Path(sys.argv[1])), Path(sys.argv[2]))
"""


class Site:
    """A sealed site with one bundle, and a second one that it may import."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "sealed"
        self.key = KeyPair(folder / "keys", "bundle")
        dmz = Store(folder / "dmz")
        _, (first,) = create(dmz, self._records(dmz, "ab"), folder / "first.tar", self.key)
        self.second = self._records(dmz, "bcde")
        self.paths = {
            "whole": create(dmz, self.second, folder / "whole.tar", self.key)[1],
            "delta": create(dmz, self.second, folder / "delta.tar", self.key, base=1)[1],
            "parts": create(dmz, self.second, folder / "parts.tar", self.key, split=50_000)[1],
        }
        dmz.close()
        sealed = Store(self.root)
        import_bundle(sealed, first, self.key.fingerprint)
        sealed.close()

    @staticmethod
    def _records(store: Store, names: str) -> list[Record]:
        found = []
        for name in names:
            content = hashlib.shake_256(name.encode()).digest(40_000)
            file = f"{name}-1.0-py3-none-any.whl"
            found.append(Record("pypi", name, file, store.blobs.put(content), len(content), "1.0"))
        return found

    def names_served(self, root: Path) -> str:
        """Return the packages that a mirror which starts now serves, after a look at each blob."""
        store = Store(root)
        try:
            store.blobs.adopt_all()
            assert store.blobs.scrub() == []
            for record in store.active.all():
                assert store.blobs.find(record.sha256), record
            return "".join(sorted(record.name for record in store.active.all()))
        finally:
            store.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def killed(root: Path, path: Path, at: int) -> bool:
    """Import in a process that is killed just before its change with this number. Tell whether it was."""
    child = os.fork()
    if child == 0:
        left = at

        def count(event: str, values: tuple[object, ...]) -> None:
            nonlocal left
            if event in CHANGES or (event == "open" and int(str(values[2])) & WRITES):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            import_bundle(Store(root), path)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("kind", ["whole", "delta", "parts"])
def test_killed_before_any_change_an_import_leaves_the_old_or_the_new_state(
    made: Site, tmp_path: Path, kind: str
) -> None:
    root, path, seen, at = tmp_path / "store", made.paths[kind][0], list[str](), 1
    # The whole bundle before each change; the others are read in another way, and written in the same.
    step = 1 if kind == "whole" else 5
    while True:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(made.root, root, symlinks=True)
        ended = not killed(root, path, at)
        seen.append(made.names_served(root))
        assert seen[-1] in ("ab", "bcde"), at
        if ended:
            break
        store = Store(root)
        before = {sha256: store.blobs.path(sha256).stat().st_ino for sha256 in store.blobs.all()}
        import_bundle(store, path)
        # What had arrived is not written again.
        assert {sha256: store.blobs.path(sha256).stat().st_ino for sha256 in before} == before
        store.close()
        assert made.names_served(root) == "bcde"
        at += step
    assert at > 30
    assert seen == sorted(seen)  # the old one up to the rename, and then the new one
    assert (seen[0], seen[-1]) == ("ab", "bcde")


def calls(trace: str) -> Iterator[tuple[str, list[str]]]:
    """Yield name and paths of each call of the kernel that strace wrote down, when it has returned."""
    unfinished = dict[str, tuple[str, list[str]]]()
    for line in trace.splitlines():
        thread, _, rest = line.partition(" ")
        begun = re.match(r" *(\w+)\((.*)", rest)
        if begun:
            paths = re.findall(r'"([^"]*)"', begun[2]) or re.findall(r"<([^>]*)>", begun[2])
            unfinished[thread] = (begun[1], paths)
        if rest.endswith(" = 0"):
            yield unfinished.pop(thread)


def test_all_that_a_new_bundle_needs_is_on_the_disk_before_it_is_active(made: Site, tmp_path: Path) -> None:
    """A rename may reach the disk before what was written earlier, unless that was synced (fsync(2))."""
    root, trace = tmp_path / "store", tmp_path / "trace"
    shutil.copytree(made.root, root, symlinks=True)
    wanted = "trace=rename,renameat,renameat2,mkdir,mkdirat,symlink,symlinkat,fsync,fdatasync"
    strace = ["strace", "-f", "-qq", "-y", "-s", "400", "-e", wanted, "-o", str(trace)]
    command = [sys.executable, "-c", IMPORT, str(root), str(made.paths["whole"][0])]
    subprocess.run([*strace, *command], check=True)
    # Files that were synced; new names of files and directories that are not on the disk yet.
    synced, pending, renamed = set[str](), set[str](), list[str]()
    for name, paths in calls(trace.read_text()):
        if name in ("fsync", "fdatasync"):
            synced.add(paths[0])
            pending = {each for each in pending if os.path.dirname(each) != paths[0]}
        elif name.startswith("rename") and str(root) in paths[1]:
            if paths[1].endswith("/current"):
                assert pending == {paths[0]}  # the link that gets this name now
                pending.clear()
            else:
                assert paths[0] in synced, f"{paths[1]} has its name before its content"
            renamed.append(paths[1])
            pending.add(paths[1])
        elif name.startswith(("mkdir", "symlink")) and str(root) in paths[-1]:
            pending.add(paths[-1])
    assert renamed[-1].endswith("/bundles/current")
    assert sum("/blobs/" in path for path in renamed) == 3
    assert pending == set()  # when the import says that it is done


@pytest.mark.parametrize("kind", ["whole", "delta", "parts"])
def test_a_medium_that_holds_only_a_part_changes_nothing_and_the_import_goes_on_later(
    made: Site, tmp_path: Path, kind: str
) -> None:
    root = tmp_path / "store"
    shutil.copytree(made.root, root, symlinks=True)
    whole = {path.name: path.read_bytes() for path in made.paths[kind]}
    chosen = random.Random(kind)
    store = Store(root)
    for _ in range(12):
        name = chosen.choice(sorted(whole))
        shutil.rmtree(tmp_path / "medium", ignore_errors=True)
        (tmp_path / "medium").mkdir()
        for each, content in whole.items():
            # The end of a tar is zeros, which nobody misses.
            cut = content[: chosen.randrange(len(content) - 10_240)] if each == name else content
            (tmp_path / "medium" / each).write_bytes(cut)
        before = {sha256: store.blobs.path(sha256).stat().st_ino for sha256 in store.blobs.all()}
        with pytest.raises(BundleError):
            import_bundle(store, tmp_path / "medium" / next(iter(whole)))
        assert made.names_served(root) == "ab"
        after = {sha256: store.blobs.path(sha256).stat().st_ino for sha256 in before}
        assert after == before
    import_bundle(store, made.paths[kind][0])
    store.close()
    assert made.names_served(root) == "bcde"
