"""Fixtures that load a configuration file, with and without libyaml."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.unit.config.files import Load, written
from tproxy.config import reader
from tproxy.config.services import Config


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML with and without libyaml."""
    monkeypatch.setattr(reader, "_LOADER", getattr(yaml, request.param))


@pytest.fixture
def loaded(tmp_path: Path, loader: None) -> Load:
    """Load a file of this content."""

    def load_content(content: str | bytes) -> Config:
        return reader.load(written(tmp_path / "tproxy.yaml", content))

    return load_content
