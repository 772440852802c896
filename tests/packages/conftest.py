"""Packages of this checkout and of an older version, which tests install on machines with a clean root."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from packages import requirements
from packages.requirements import Distribution
from tests.packages.kinds import KINDS, Kind
from tests.packages.machine import CHECKOUT, Machine, booted, download

# The version from which tests upgrade. It needs no other packages than this one, and its processes speak
# older versions of all protocols (relay.wire, worker.orders).
OLD = "a47e7c3"

TESTED = [each for each in requirements.distributions().values() if each.tested]

# Another source tree to package, with the tools of this one.
SOURCE = Path(os.environ.get("TPROXY_SOURCE", CHECKOUT))

Build = Callable[[str, str, Path], Path]


@pytest.fixture(scope="session", autouse=True)
def root_rights() -> None:
    """Skip all tests where they cannot make machines; in CI fail them."""
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("needs root")
        pytest.skip("needs root")


@pytest.fixture(scope="session", params=TESTED, ids=lambda each: each.codename)
def distribution(request: pytest.FixtureRequest) -> Distribution:
    found: Distribution = request.param
    return found


@pytest.fixture(scope="session", params=KINDS)
def name(request: pytest.FixtureRequest) -> str:
    """The name of a kind of package."""
    return str(request.param)


@pytest.fixture
def kind(name: str) -> Kind:
    return KINDS[name]


@pytest.fixture(scope="session")
def old_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source tree of an older version. A checkout without its history cannot upgrade from it."""
    command = ["git", "-C", os.fspath(CHECKOUT), "archive", OLD]
    archived = subprocess.run(command, check=False, capture_output=True)
    if archived.returncode:
        pytest.skip(f"the history has no {OLD}")
    folder = tmp_path_factory.mktemp("old")
    subprocess.run(["tar", "-x", "-C", folder], input=archived.stdout, check=True)
    # Its version was the same, because nothing has been released yet, and it had another name for PyPI.
    changes = {"tproxy/__init__.py": ("__version__", "0.0.9"), "pyproject.toml": ("name", "one-tproxy")}
    for file, (key, value) in changes.items():
        text = (folder / file).read_text()
        (folder / file).write_text(re.sub(f'^{key} = ".*"', f'{key} = "{value}"', text, flags=re.MULTILINE))
    return folder


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Return a function that builds a package once, and returns the folder with its files.

    What it needs is then in the archive of the clean root.
    """

    @cache
    def make(name: str, codename: str, source: Path) -> Path:
        output = tmp_path_factory.mktemp(name)
        KINDS[name].build(source, requirements.distributions()[codename], output)
        download(codename, *(KINDS[name].needs or output.glob("*.deb")))
        return output

    return make


@pytest.fixture
def new(name: str, distribution: Distribution, build: Build) -> Path:
    """The folder with the package of this checkout."""
    return build(name, distribution.codename, SOURCE)


@pytest.fixture
def old(name: str, distribution: Distribution, build: Build, old_source: Path) -> Path:
    """The folder with the package of an older version."""
    return build(name, distribution.codename, old_source)


@pytest.fixture
def machine(distribution: Distribution) -> Iterator[Machine]:
    """A machine of the distribution, with nothing installed."""
    with booted(distribution.codename) as made:
        yield made
