"""Builds Debian packages, one for each distribution, with debhelper.

This module writes what differs between distributions: the tree (tree.py), Debian's changelog and control
file. The files in ``debian/`` beside it, which debhelper reads, do the rest. Nothing is compiled. So each
package can be built on any machine with debhelper, not only on the distribution that it is for.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from email.utils import formatdate
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from packages import manual, requirements, tree
from packages.requirements import CHECKOUT, HERE, Choice, Distribution

HOME = "/usr/lib/tproxy"
# As dch(1) and other tools of Debian take them from the environment.
MAINTAINER = "{} <{}>".format(
    os.environ.get("DEBFULLNAME", "The tproxy authors"), os.environ.get("DEBEMAIL", "tproxy@example.invalid")
)

# What debhelper takes from the source tree.
COPIED = ("README.md", "CHANGELOG.md", "SECURITY.md", "docs", "etc")


@click.command()
@click.argument("distributions", nargs=-1, type=click.Choice(sorted(requirements.distributions())))
@click.option("--source", type=click.Path(path_type=Path), default=CHECKOUT, help="Source tree to package.")
@click.option("--output", type=click.Path(path_type=Path), default=CHECKOUT / "dist")
def main(distributions: tuple[str, ...], source: Path, output: Path) -> None:
    """Make a Debian package for each of the DISTRIBUTIONS, or for all."""
    known = requirements.distributions()
    output.mkdir(parents=True, exist_ok=True)
    for name in distributions or known:
        with TemporaryDirectory() as folder:
            click.echo(build(source.resolve(), known[name], Path(folder), output))


def version_of(source: Path) -> str:
    """Return the version of tproxy in a source tree."""
    found = re.search(r'__version__ = "([^"]+)"', (source / "tproxy/__init__.py").read_text())
    assert found is not None
    return found[1]


def build(source: Path, distribution: Distribution, folder: Path, output: Path) -> Path:
    """Build the package of a source tree in an empty folder; return the file in ``output``.

    Raises CalledProcessError, and what ``requirements.carry`` raises.
    """
    work = folder / "work"
    work.mkdir()
    choice = requirements.choose(requirements.of_project(), distribution)
    modules = tree.lay_out(work / "tree", HOME, distribution.python)
    tree.fill(modules, source, choice.carried, distribution.python, platform.machine())
    for name in COPIED:
        (shutil.copytree if (source / name).is_dir() else shutil.copy)(source / name, work / name)
    shutil.copy(HERE / "tproxy.yaml", work)
    manual.generate(source, work / "manual")
    _add_debian(work, distribution, f"{version_of(source)}-1~{distribution.suffix}", choice)
    command = ["dpkg-buildpackage", "--build=binary", "--no-sign", "--no-check-builddeps"]
    subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)
    (built,) = folder.glob("*.deb")
    return Path(shutil.copy(built, output))


def _add_debian(work: Path, distribution: Distribution, version: str, choice: Choice) -> None:
    debian = work / "debian"
    shutil.copytree(HERE / "debian", debian)
    # debhelper finds units, and the snippet for logrotate, by these names.
    for unit in (work / "etc/systemd").glob("*.service"):
        shutil.copy(unit, debian / f"tproxy.{unit.name}")
    shutil.copy(work / "etc/logrotate.d/tproxy", debian / "tproxy.logrotate")
    major, minor = map(int, distribution.python.split("."))
    python = [f"python3 (>= {major}.{minor}~)", f"python3 (<< {major}.{minor + 1}~)"]
    carried = [f"{name} {requirements.version_of(name)}" for name in requirements.closure(choice.carried)]
    values = {
        "ARCHITECTURE": "any" if any(work.rglob("*.so")) else "all",
        "DEPENDS": ", ".join(python + choice.depends),
        "CARRIED": "\n  ".join(sorted(carried)),
        "TITLE": distribution.title + ("" if distribution.tested else " (untested)"),
        "MAINTAINER": MAINTAINER,
        "PYTHON": distribution.python,
        "VERSION": version,
        "CODENAME": distribution.codename,
        "DATE": formatdate(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())), localtime=False),
    }
    for path in debian.glob("*.in"):
        text = re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], path.read_text())
        path.with_suffix("").write_text(text)
        path.unlink()


if __name__ == "__main__":
    main()
