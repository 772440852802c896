"""The owner of a stand-in hypervisor: ``lab_owner.py [--keep]``.

Prints ``ready`` and the pid of the stand-in's process 1. Then it waits until it is killed; with ``--keep`` it
lets the stand-in outlive it, and ends.
"""

from __future__ import annotations

import signal
import sys

from tproxy.lab.hypervisor import Hypervisor


def main() -> None:
    host = Hypervisor().start()
    host.add_bridge("br0")
    host.add_guest("guest", "br0")
    host.add_endpoint("10.11.12.13", 5030)
    print("ready", host.pid, flush=True)
    if "--keep" in sys.argv:
        host.keep()
    else:
        signal.pause()


main()
