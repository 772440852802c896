"""The end of programs that run in a stand-in hypervisor."""

from __future__ import annotations

import subprocess

import psutil

from tests.netns.waiting import eventually


def end(process: subprocess.Popen[str]) -> None:
    """Kill a program that ``Hypervisor.popen`` has started; return when its descriptors are closed.

    The process that ``popen`` returns is nsenter(1), and the kernel kills the program some time after that.
    """
    programs = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for _ in eventually():
        if not any(map(_runs, programs)):
            return


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
