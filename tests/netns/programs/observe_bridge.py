"""Observe bridge br0 while its port br0b is deleted: ``observe_bridge.py FUNCTION``.

The port is deleted before each call of the built-in FUNCTION. Prints a traceback when the bridge cannot be
observed.
"""

from __future__ import annotations

import subprocess
import sys
from types import FrameType
from typing import Any

from tproxy.bridge import plumbing


def main(function: str) -> None:
    def delete_port(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and called.__name__ == function:
            subprocess.run(["ip", "link", "del", "br0b"], check=False)

    sys.setprofile(delete_port)
    plumbing.require_bridge("br0")
    plumbing.observe_links("br0")


if __name__ == "__main__":
    main(sys.argv[1])
