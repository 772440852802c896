"""More streams at once than a worker has pipes for, and than one user may have large pipes for (pipe(7))."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.netns.program import program
from tests.netns.waiting import eventually
from tests.netns.worker.crew import Crew, Load, whole
from tproxy.addresses import SERVICE_ADDRESS
from tproxy.datapath.splice import MAX_PIPES
from tproxy.lab.hypervisor import Hypervisor

STREAMS = 200
BLOCKS = 40


@pytest.mark.parametrize("workers", [1, 2])
def test_many_bulk_streams_of_one_guest_arrive_whole_while_other_guests_are_served(
    hypervisor: Hypervisor, workers: int
) -> None:
    assert STREAMS > MAX_PIPES
    crew = Crew(hypervisor, workers)
    crew.serve(90, "digest")
    storm = program("bulk_storm", SERVICE_ADDRESS, "90", str(STREAMS), str(BLOCKS))
    sending = crew.guests[0].popen(*storm, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert sending.stdout is not None
    assert sending.stdout.readline() == "ready\n"
    for _ in eventually():
        if crew.service(90)["open"] == STREAMS:
            break
    load = Load(crew.guests[1])
    assert sending.stdin is not None
    print(file=sending.stdin, flush=True)
    load.go_on(3)
    assert json.loads(sending.communicate()[0]) == []
    list(whole([load]))
    for _ in eventually():
        if crew.service(90)["open"] == 0:
            break
    assert crew.service(90)["bytes_to_endpoint"] == STREAMS * BLOCKS * 65536
