"""Decides for each Python package that tproxy needs: the distribution's own, or one that we carry.

What is carried comes from PyPI, in the versions and with the hashes of carried.txt (``make lock``). pip
downloads it and refuses any other file. So a package for any distribution can be built on any machine.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
CHECKOUT = HERE.parent
CARRIED = HERE / "carried.txt"

# The oldest C library with which carried wheels run is that of Debian 11. Wheels say in one of these words
# which one they need (PEP 600 and the names before it).
LIBC = ("_2_31", "_2_28", "_2_17", "_2_12", "_2_5", "2014", "2010", "1")


class Distribution(NamedTuple):
    """A distribution of distributions.yaml; ``packages`` has the name and version of each of its packages."""

    codename: str
    title: str
    suffix: str
    python: str
    tested: bool
    packages: Mapping[str, tuple[str, str]]


class Choice(NamedTuple):
    """Dependencies in the words of Debian's control files, and the names of the packages to carry."""

    depends: list[str]
    carried: list[str]


def of_project() -> list[Requirement]:
    """Return what pyproject.toml says that tproxy needs to run."""
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = toml.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return [Requirement(each) for each in project["dependencies"]]


def distributions() -> dict[str, Distribution]:
    loaded = yaml.safe_load((HERE / "distributions.yaml").read_text())
    return {name: Distribution(name, **each) for name, each in loaded.items()}


def locked() -> dict[str, str]:
    """Return the lines of carried.txt for each package, by its canonical name."""
    blocks = re.split(r"^(?=\w)", CARRIED.read_text(), flags=re.MULTILINE)[1:]
    return {canonicalize_name(block.partition("==")[0]): block for block in blocks}


def version_of(name: str) -> str:
    """Return the version in which a package is carried. Raises KeyError when it is not locked."""
    return locked()[canonicalize_name(name)].partition("==")[2].split()[0]


def closure(names: Iterable[str]) -> list[str]:
    """Return packages with all that they need, by canonical name. The lock says for what ("via") each is."""
    found: list[str] = [canonicalize_name(each) for each in names]
    lock = locked()
    for parent in found:
        found += [
            name
            for name, block in lock.items()
            if name not in found and re.search(rf"# +(via )?{re.escape(parent)}$", block, re.MULTILINE)
        ]
    return found


def choose(wanted: Iterable[Requirement], distribution: Distribution) -> Choice:
    choice = Choice([], [])
    for each in wanted:
        package, version = distribution.packages.get(each.name, ("", ""))
        if package and each.specifier.contains(version):
            least = next((bound.version for bound in each.specifier if bound.operator == ">="), "0")
            choice.depends.append(f"{package} (>= {least})")
        else:
            choice.carried.append(each.name)
    return choice


def carry(names: Iterable[str], modules: Path, python: str, machine: str) -> None:
    """Install packages, and what they need, into a folder for another Python.

    Raises CalledProcessError, also for a file whose hash is not locked, and KeyError for a package that is
    not.
    """
    lock = locked()
    platforms = [f"--platform=manylinux{libc}_{machine}" for libc in LIBC]
    with NamedTemporaryFile("w") as wanted:
        wanted.write("".join(lock[each] for each in closure(names)))
        wanted.flush()
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", f"--target={modules}"),
                *("--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms),
                *("--no-deps", "--require-hashes", f"--requirement={wanted.name}"),
            ],
            check=True,
            stdin=subprocess.DEVNULL,
        )
