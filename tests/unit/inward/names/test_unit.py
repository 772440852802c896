"""The unit of the service loop."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tproxy.inward.names import service


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = service.unit(["--config", "/etc/tproxy/100%.yaml", "--gateway", ""])
    assert "--config /etc/tproxy/100%%.yaml --gateway ''" in text
    (tmp_path / service.UNIT).write_text(text)
    command = ["systemd-analyze", "--man=no", "verify", str(tmp_path / service.UNIT)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.stderr == ""
