"""The process table: which processes are ours, and their end."""

from __future__ import annotations

from tests.netns.program import program
from tproxy.lab.hypervisor import Hypervisor


def test_a_process_that_got_the_pid_of_an_earlier_one_is_found_and_ended(hypervisor: Hypervisor) -> None:
    assert hypervisor.run(*program("same_pid")).stdout == "-15\n"
