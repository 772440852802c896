"""A process with the daemon's title that is not the daemon. Prints ``ready`` and stays until it is killed."""

from __future__ import annotations

import signal

from tproxy.names import DAEMON_TITLE
from tproxy.process.title import set_title

set_title(DAEMON_TITLE)
print("ready", flush=True)
signal.pause()
