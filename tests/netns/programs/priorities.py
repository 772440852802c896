"""Prints how the kernel favours each process of tproxy: ``python priorities.py``, as JSON by title."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import psutil


def main() -> None:
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):  # it has ended meanwhile
            title = " ".join(process.cmdline()).strip()
            if title.startswith(("one_tproxy", "tproxy-")):
                io_class = process.ionice().ioclass
                if io_class == psutil.IOPRIO_CLASS_NONE:  # some kernels report best effort for it
                    io_class = psutil.IOPRIO_CLASS_BE
                found[title] = [
                    os.sched_getscheduler(process.pid),
                    process.nice(),
                    int(io_class),
                    len(process.cpu_affinity()),
                    int(Path(f"/proc/{process.pid}/oom_score_adj").read_text()),
                ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
