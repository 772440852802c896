"""A file of any content is used or refused, and each message about it is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.config.files import ONE_LINE, said, services, written
from tproxy.config import reader
from tproxy.config.reader import load
from tproxy.errors import ConfigError
from tproxy.model import Service, ServiceKey

# A test must not fail because the machine is busy with other tests.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

KEYS = "tproxy: :tproxy: tproxy_debug_level: service_port: remote_addr: remote_port: :networks: name:"
MARKS = "connect_timeout: [ ] { } *a <<: ' \" \\ # 10.0.0.1 one.example 80 0123 yes ~ \\ud800 \\0"
SPACED = ["- ", "\n- ", "\n  ", "\n", " ", "? ", ": ", ", ", "&a ", "!!str ", "!!int ", "!x ", "|\n", ">-\n"]
LINES = ["---\n", "...\n", "%YAML 1.1\n", "%TAG ! x\n"]
CHARACTERS = ["\t", "\r", "\x00", "\x85", "\u2028", "\ufeff", "ü", "\U0001f600"]
WORDS = st.sampled_from([*KEYS.split(), *MARKS.split(), *SPACED, *LINES, *CHARACTERS])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(SCALARS, inner), max_leaves=10)
PORTS = st.integers(-1, 70000) | st.integers(1, 65535).map(str) | VALUES
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "service_port": PORTS,
        "remote_addr": st.sampled_from(["10.0.0.1", "one.example", "gone.example", "169.254.16.9"]) | VALUES,
        ":remote_port": PORTS,
        "networks": st.lists(st.integers(0, 9) | st.sampled_from(["vnet1", "vnet2"])) | VALUES,
        "name": VALUES,
        "connect_timeout": st.floats() | VALUES,
        "unknown": VALUES,
    },
)
DOCUMENTS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={"tproxy": st.lists(ENTRIES | VALUES) | VALUES, "tproxy_debug_level": VALUES, "other": VALUES},
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "tproxy.yaml"


def check(file: Path, content: str | bytes) -> None:
    """Assert that the file can be used, or is a ConfigError, and that each message is one line."""
    written(file, content)
    for loader in (yaml.CSafeLoader, yaml.SafeLoader):
        chosen: dict[ServiceKey, Service] = {}
        with mock.patch.object(reader, "_LOADER", loader):
            try:
                found = load(file)
                chosen, warnings = services(found)
                lines = [*said(found), *warnings]
            except ConfigError as error:
                lines = [str(error)]
        assert all(ONE_LINE.match(line) for line in lines)
        assert all(
            0 < key.port < 65536 and 0 < service.endpoint.port < 65536 for key, service in chosen.items()
        )
        assert all(key == service.key for key, service in chosen.items())
        assert "169.254.16.9" not in {service.endpoint.address for service in chosen.values()}


@unhurried
@given(st.binary())
def test_any_bytes_are_used_or_refused(file: Path, content: bytes) -> None:
    check(file, content)


@unhurried
@given(st.lists(WORDS).map("".join))
def test_anything_that_looks_like_yaml_is_used_or_refused(file: Path, content: str) -> None:
    check(file, content)


@unhurried
@given(DOCUMENTS)
def test_any_values_are_used_or_refused(file: Path, document: dict[str, Any]) -> None:
    check(file, yaml.safe_dump(document, allow_unicode=True))
