"""Builds one file that runs tproxy with the Python of a host, for trees that are copied to hosts as files.

The file carries everything but libnftables, which must be on the host as for any installation. Of extension
modules it carries those for each Python in PYTHONS and for one kind of processor. When it is called for the
first time, it unpacks itself (zipapp_main.py).

pex and shiv make such files too. They unpack to a path that has a hash of the file in it. Hooks that `tproxy
install` has written would name that path, and go on running the old version after the file was replaced.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import click

from packages import requirements, tree
from packages.deb import version_of
from packages.requirements import CHECKOUT, HERE

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")  # zipapp_main.py names the first and the last
FIRST_LINE = b"#!/usr/bin/python3 -IS\n"

# The time of each member, so that the same source makes the same file.
EPOCH = (1980, 1, 1, 0, 0, 0)


@click.command()
@click.option("--source", type=click.Path(path_type=Path), default=CHECKOUT, help="Source tree to package.")
@click.option("--machine", default=platform.machine(), help="Processor.", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=CHECKOUT / "dist")
def main(source: Path, machine: str, output: Path) -> None:
    """Make one file that runs with any Python from 3.10 on."""
    output.mkdir(parents=True, exist_ok=True)
    target = output / f"tproxy-{version_of(source)}-{machine}.pyz"
    with TemporaryDirectory() as work:
        build(source.resolve(), Path(work), machine, target)
    click.echo(target)


def build(source: Path, work: Path, machine: str, target: Path) -> None:
    """Build the file of a source tree in an empty folder. Raises as ``requirements.carry`` does."""
    names = [each.name for each in requirements.of_project()]
    for python in PYTHONS:
        tree.fill(work / f"python{python}", source, names, python, machine)
        for path in sorted(each for each in (work / f"python{python}").rglob("*") if each.is_file()):
            _share(path, path.relative_to(work / f"python{python}"), work / "common")
    (work / "bin").mkdir()
    (work / "bin/tproxy").write_text(tree.COMMAND.format(home="@HOME@"))
    shutil.copy(tree.REMOVE, work / "bin")
    with target.open("wb") as file:
        file.write(FIRST_LINE)
        with ZipFile(file, "w", ZIP_DEFLATED) as archive:
            _add(archive, "__main__.py", HERE / "zipapp_main.py")
            for path in sorted(each for each in work.rglob("*") if each.is_file()):
                _add(archive, str(path.relative_to(work)), path)
    target.chmod(0o755)


def _share(path: Path, name: Path, common: Path) -> None:
    """Move a file to what all Pythons have in common, or drop it where the same one is there already."""
    shared = common / name
    if not shared.exists() and ".cpython-" not in path.name:
        shared.parent.mkdir(parents=True, exist_ok=True)
        path.rename(shared)
    elif shared.exists() and shared.read_bytes() == path.read_bytes():
        path.unlink()


def _add(archive: ZipFile, name: str, path: Path) -> None:
    entry = ZipInfo(name, EPOCH)
    entry.external_attr = 0o644 << 16
    entry.compress_type = ZIP_DEFLATED
    archive.writestr(entry, path.read_bytes())


if __name__ == "__main__":
    main()
