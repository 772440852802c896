"""Two daemons, one after the other, with the same pid; the process table must know the second one.

Prints how the second one ended. With the argument ``daemon`` it is one of them, and prints a line when it is.
"""

from __future__ import annotations

import signal
import subprocess
import sys

from tests.netns.program import program
from tproxy.names import DAEMON_TITLE
from tproxy.process import run_directory, table
from tproxy.process.title import set_title


def start_daemon() -> subprocess.Popen[bytes]:
    """Start a process that has the title and the directory of a daemon."""
    command = program("same_pid", "daemon")
    process = subprocess.Popen(command, cwd=run_directory.prepare(), stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def start_daemon_with(pid: int) -> subprocess.Popen[bytes]:
    while True:
        # The kernel gives the next process the next free pid, proc(5).
        with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as last:
            last.write(str(pid - 1))
        process = start_daemon()
        if process.pid == pid:
            return process
        process.kill()
        process.wait()


def main() -> None:
    if sys.argv[1:] == ["daemon"]:
        set_title(DAEMON_TITLE)
        print(flush=True)
        signal.pause()
    first = start_daemon()
    assert [each.pid for each in table.find().daemons] == [first.pid]
    first.kill()
    first.wait()
    second = start_daemon_with(first.pid)
    table.terminate(table.find().daemons)
    print(second.poll())
    second.kill()


main()
