"""Our processes, found and ended by a process that lives long."""

from __future__ import annotations

import sys

from tproxy.lab.hypervisor import Hypervisor

# Two after each other that call themselves the daemon, and have the same number.
SAME_NUMBER = """
import subprocess, sys
from tproxy.process import run_directory
from tproxy.process import table

SLEEPER = "import time, setproctitle as s; s.setproctitle('one_tproxy'); print(flush=True); time.sleep(60)"

def daemon():
    command, home = [sys.executable, "-c", SLEEPER], run_directory.prepare()
    process = subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process

first = daemon()
assert [each.pid for each in table.find().daemons] == [first.pid]
first.kill()
first.wait()
while True:
    with open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write(str(first.pid - 1))
    second = daemon()
    if second.pid == first.pid:
        break
    second.kill()
    second.wait()
table.terminate(list(table.find().daemons))
print(second.poll())
second.kill()
"""


def test_a_process_that_got_the_number_of_an_earlier_one_is_ended_too(hypervisor: Hypervisor) -> None:
    assert hypervisor.run(sys.executable, "-c", SAME_NUMBER).stdout == "-15\n"
