"""Fixtures of all tests of the egress: sites on 127.0.0.1, which end with the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.egress.upstream import Site, site


@pytest.fixture
def upstream() -> Iterator[Site]:
    with site() as found:
        yield found
