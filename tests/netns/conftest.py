"""Fixtures of tests on a real kernel: each test has a stand-in hypervisor of its own.

Everything that a test does or leaves there is gone with the stand-in (tproxy/lab/hypervisor.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tproxy.lab.hypervisor import Hypervisor

ENDPOINTS = Path(__file__).with_name("programs") / "endpoints.py"

PROGRAMS = ("ip", "nft", "nsenter", "setpriv", "ss", "sysctl", "unshare")

# The command that runs another one as nobody, who may still read this checkout and its Python.
_MAY_READ = "+dac_read_search"
NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *(f"--inh-caps={_MAY_READ}", f"--ambient-caps={_MAY_READ}"),
)

StartEndpoint = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def real_kernel() -> None:
    """Skip the test without root or without a program. In CI it fails: nobody would notice the skip."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    reason = "needs root" if os.geteuid() else f"needs {', '.join(missing)}" if missing else ""
    if reason and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture
def hypervisor(real_kernel: None) -> Iterator[Hypervisor]:
    with Hypervisor() as host:
        yield host


@pytest.fixture
def start_endpoint(hypervisor: Hypervisor) -> StartEndpoint:
    """Return ``start(behaviour, address, port, *options)``, which starts programs/endpoints.py."""

    def start(behaviour: str, address: str, port: int, *options: str) -> subprocess.Popen[str]:
        program = (sys.executable, str(ENDPOINTS), behaviour, *options)
        return hypervisor.add_endpoint(address, port, program=program)

    return start


@pytest.fixture
def blackhole(hypervisor: Hypervisor) -> str:
    """Return an address at which every packet vanishes, as behind a firewall that drops."""
    hypervisor.ip(
        "link add void type veth peer name nobody",  # not every kernel has dummy links
        "address add 10.99.0.254/24 dev void",
        "link set void up",
        "link set nobody up",
        "neigh add 10.99.0.1 lladdr 02:00:00:00:00:99 dev void",
    )
    return "10.99.0.1"


@pytest.fixture
def unreachable(hypervisor: Hypervisor) -> str:
    """Return an address for which the kernel says at once that it is unreachable."""
    hypervisor.ip("route add unreachable 10.98.0.1")
    return "10.98.0.1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of the stand-in with a failure, because they are gone afterwards."""
    report = yield
    host = getattr(item, "funcargs", {}).get("hypervisor")
    if report.when == "call" and report.failed and host is not None and host.pid:
        for path in sorted(host.path("/var/log").glob("one_tproxy*.log")):
            report.sections.append((path.name, path.read_text(errors="replace")))
    return report
