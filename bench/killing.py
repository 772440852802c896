"""Counts connections that guests lose, and that are refused, while the daemon is killed under load."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

from bench import costs
from bench.bridges import CONFIG, Client, Site, bridges
from bench.checkout import Checkout
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import PATIENCE

# How often the daemon is killed, and the seconds of load after it starts, and after its end.
TIMES = 5
PAUSE = 0.5

# Connections of the load: idle ones, ones with requests, and new ones at a time.
IDLE, BUSY, NEW = 100, 64, 16


def measure(code: Checkout, site: Site, _: float) -> dict[str, float]:
    """Kill the daemon again and again under load; a hook starts it each time.

    Returns how many connections were lost and refused in all, and the longest wait for an answer, in ms.
    """
    client = Client(site.guests[0][0], 0)
    argv = [sys.executable, "-m", "bench.client", SERVICE_ADDRESS, str(client.http)]
    process = client.guest.popen(
        *argv, *map(str, (IDLE, BUSY, NEW)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "ready\n":
            raise ProcessError("bench.client did not start")
        for _ in range(TIMES):
            time.sleep(PAUSE)
            kill_daemon(site)
            time.sleep(PAUSE)
            for bridge in bridges(len(site.guests)):
                code.tproxy(site.host, "hook", "up", "--bridge", bridge, "--config", CONFIG)
        said = process.communicate(timeout=PATIENCE)[0]
    finally:
        process.kill()
        process.wait()
    counted: dict[str, float] = json.loads(said)
    return {
        "kill lost": counted["lost"],
        "kill refused": counted["refused"],
        "kill answers": counted["answers"],
        "kill connections": counted["connections"],
        "kill longest": counted["longest"] * 1000,
    }


def kill_daemon(site: Site) -> None:
    """Kill the daemon. Raises ProcessError when there is not exactly one."""
    daemons = costs.called(site.host, "one_tproxy")
    if len(daemons) != 1:
        raise ProcessError(f"{len(daemons)} daemons instead of one")
    site.host.run("kill", f"-{signal.SIGKILL.value}", str(daemons[0]))
