"""Processes are shown under their titles, without what the package for that imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tproxy.title

SAYS = "import sys; print(open('/proc/self/cmdline').read().rstrip(chr(0)), 'logging' in sys.modules)"


def test_a_title_is_shown_and_nothing_large_is_loaded() -> None:
    code = f"from tproxy.title import set_title; set_title('one_tproxy_br0'); {SAYS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "one_tproxy_br0 False\n"


def test_a_package_without_that_part_does_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    import setproctitle

    monkeypatch.setattr("tproxy.title.PathFinder.find_spec", lambda *_: None)
    assert tproxy.title._c_part() is setproctitle
