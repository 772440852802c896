"""The report in a real browser: texts of guests are shown, run nothing and load nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.egress.upstream import site
from tproxy.egress.ledger.entries import Event
from tproxy.egress.model import Artifact, Caller
from tproxy.egress.report import page


def browse(folder: Path, path: Path) -> str:
    """Return the page's tree after a real browser has loaded it and run what it would run."""
    browser = shutil.which("chromium")
    if browser is None:
        if os.environ.get("CI") == "true":
            pytest.fail("needs chromium")
        pytest.skip("needs chromium")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [
        f"--user-data-dir={folder}/profile",
        "--virtual-time-budget=3000",
        "--dump-dom",
        path.as_uri(),
    ]
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_texts_of_guests_are_shown_and_do_nothing(tmp_path: Path) -> None:
    with site() as evil:
        texts = [
            "<script>document.title = 'taken over'</script>",
            f"<img src='{evil.url}x' onerror=\"document.title = 'taken over'\">",
            f'"><iframe src="{evil.url}y"></iframe>',
            f"</style><link rel=stylesheet href={evil.url}z>",
        ]
        entries = []
        for text in texts:
            caller = Caller(network=text, address="10.0.0.1")
            event = Event.of(caller, Artifact("uri", url=text), "denied", reason=text)
            entries.append({"time": "2026-01-01T00:00:00Z", **event.as_json()})
        file = tmp_path / "report.html"
        file.write_text(page(entries, texts, [("Fact", text) for text in texts], []))
        shown = browse(tmp_path, file)
        assert evil.requests == []
    assert "<title>Egress report</title>" in shown
    assert "&lt;script&gt;document.title" in shown
    for tag in ("<script", "<img", "<iframe", "<link"):
        assert tag not in shown
