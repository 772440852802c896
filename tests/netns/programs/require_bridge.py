"""Check bridge br0 while its port br0b is deleted: ``require_bridge.py FUNCTION``.

Every hook makes this check before it waits for the lock, so another hook may take the bridge down meanwhile.
The port is deleted at each call of the built-in FUNCTION. Prints a traceback when the check fails.
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


if __name__ == "__main__":
    main(sys.argv[1])
