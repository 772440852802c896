"""The units of systemd are valid, and `up` says what to do where systemd does not run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tproxy.egress.service import systemd


def test_systemd_accepts_the_units(engines: None, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    names = (*systemd.SERVICES, systemd.HOSTS, systemd.LINK, *systemd.OTHERS, *systemd.STARTED_BY_OTHERS)
    for name in names:
        (tmp_path / name).write_text(systemd.unit(name))
    command = ["systemd-analyze", "verify", *(str(tmp_path / name) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_unit_may_do_more_than_it_needs(engines: None, tmp_path: Path) -> None:
    """docs/security.md says how systemd rates them: from 0, which may do nothing, to 10."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    (tmp_path / "tproxy-egress-squid@a.service").write_text(systemd.unit("tproxy-egress-squid@.service"))
    for name in (*systemd.SERVICES, systemd.HOSTS, systemd.LINK, "tproxy-egress-reload.service"):
        (tmp_path / name).write_text(systemd.unit(name))
    command = ("systemd-analyze", "security", "--offline=yes", "--threshold=36", "--no-pager")
    for path in tmp_path.iterdir():
        done = subprocess.run([*command, path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_without_systemd_the_message_names_the_other_way(engines: None) -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("systemd runs here, and up would install the units")
    command = [sys.executable, "-m", "tproxy", "egress", "up"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "tproxy: systemd does not run here: tproxy egress up --foreground\n"
