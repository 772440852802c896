"""Another checkout of tproxy, to compare with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.checkout import HERE, checkout


def make(root: Path) -> Path:
    (root / "tproxy").mkdir()
    (root / "tproxy/__main__.py").write_text("print('hello')\n")
    return root


def test_a_checkout_without_a_virtual_environment_runs_with_ours(tmp_path: Path) -> None:
    assert checkout(str(make(tmp_path))) == (tmp_path, sys.executable)
    assert list((tmp_path / "tproxy/__pycache__").iterdir()), "it is compiled, as an installed one is"


def test_a_checkout_runs_with_its_own_virtual_environment(tmp_path: Path) -> None:
    own = make(tmp_path) / ".venv/bin/python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)

    assert checkout(str(tmp_path)).python == str(own)


def test_a_folder_without_tproxy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a checkout"):
        checkout(str(tmp_path))


def test_a_folder_that_git_does_not_know_is_described_by_its_path(tmp_path: Path) -> None:
    assert HERE._replace(path=tmp_path).described() == str(tmp_path)
