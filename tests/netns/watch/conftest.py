"""Fixtures of the watcher's tests."""

from __future__ import annotations

import pytest

from tests.netns.watch.watched_host import Host
from tproxy.lab.hypervisor import Hypervisor


@pytest.fixture
def host(hypervisor: Hypervisor) -> Host:
    return Host(hypervisor)
