"""Runs a function in a forked process, for tests of limits and rights that a process cannot get back."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from typing import Any


def in_child(function: Callable[[], Any]) -> Any:
    """Return what the function returned, which must fit into JSON. An exception in it fails the test."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for fd in map(int, os.listdir("/proc/self/fd")):
                if fd > 2 and fd != writer:
                    os.closerange(fd, fd + 1)
            try:
                result = json.dumps(function())
            except BaseException:
                result = json.dumps({"exception": traceback.format_exc()})
            os.write(writer, result.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        answer = json.load(file)
    os.waitpid(pid, 0)
    assert not (isinstance(answer, dict) and "exception" in answer), answer["exception"]
    return answer
