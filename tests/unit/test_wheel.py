"""The wheel that users install: it holds all modules, and the files for platforms."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import tproxy

CHECKOUT = Path(tproxy.__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # From a copy: building leaves folders behind, and another test may build at the same time.
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("tproxy", "drivers"):
        clutter = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / name, copy / name, symlinks=True, ignore=clutter)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, copy)
    (copy / "packages").mkdir()
    shutil.copy(CHECKOUT / "packages/remove-tproxy", copy / "packages")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", copy, copy], check=True, stdout=subprocess.DEVNULL)
    (built,) = copy.glob("*.whl")
    return built


def test_the_wheel_holds_all_modules_and_all_drivers(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    modules = {os.fspath(each.relative_to(CHECKOUT)) for each in (CHECKOUT / "tproxy").rglob("*.py")}
    assert modules - names == set()
    files = {each for each in CHECKOUT.glob("drivers/*/*") if each.is_file()}
    drivers = {f"tproxy/{each.relative_to(CHECKOUT)}" for each in files}
    assert "tproxy/drivers/opennebula/hook" in drivers
    assert drivers - names == set()


def test_the_wheel_can_install_a_platform(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "vnm/bridge").mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "tproxy", "install", "opennebula", "--remotes", tmp_path],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.fspath(wheel)},
        stdout=subprocess.DEVNULL,
    )
    hook = CHECKOUT / "drivers/opennebula/hook"
    assert (tmp_path / "vnm/bridge/pre.d/tproxy").read_bytes() == hook.read_bytes()
