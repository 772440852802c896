"""What packages carry: the lock has every Python package that tproxy needs, in a version that will do."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from packages import requirements, zipapp_main
from packages.zipapp import PYTHONS


def test_the_lock_has_what_pyproject_asks_for() -> None:
    for each in requirements.of_project():
        try:
            version = requirements.version_of(each.name)
        except KeyError:
            pytest.fail(f"packages/carried.txt has no {each}: run `make lock`")
        assert each.specifier.contains(version), f"{each}, not {version}: run `make lock`"


def test_a_package_is_carried_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    via = {"one": "pyproject.toml", "two": "one", "three": "two", "other": "pyproject.toml"}
    lock = {name: f"{name}==1 \\\n    --hash=x\n    # via {parent}\n" for name, parent in via.items()}
    lock["three"] = "three==1 \\\n    --hash=x\n    # via\n    #   other\n    #   two\n"
    monkeypatch.setattr(requirements, "locked", lambda: lock)
    assert requirements.closure(["One"]) == ["one", "two", "three"]


def test_a_distributions_package_is_used_where_it_is_new_enough() -> None:
    known = requirements.distributions()["bookworm"]
    packages = {"click": ("python3-click", "8.1.3"), "pyroute2": ("python3-pyroute2", "0.7.2")}
    wanted = [Requirement(each) for each in ("click>=8.1,<9", "pyroute2>=0.9.1,<1", "rich")]
    choice = requirements.choose(wanted, known._replace(packages=packages))
    assert choice.depends == ["python3-click (>= 8.1)"]
    assert choice.carried == ["pyroute2", "rich"]


def test_the_zipapp_refuses_pythons_for_which_it_carries_nothing() -> None:
    named = [tuple(map(int, python.split("."))) for python in PYTHONS]
    assert (named[0], named[-1]) == (zipapp_main.OLDEST, zipapp_main.NEWEST)
