"""The audit log: a line of JSON for each login, stream, change of a node, and refusal."""

from __future__ import annotations

import json
import logging
import os
import time

# In a directory of the gateway's user, who makes a new file where logrotate(8) has moved the old one.
FILE = "/var/log/tproxy-tunnel/audit.log"

_log = logging.getLogger("tproxy.tunnel")


class Audit:
    """Writes to a file, which may be moved away at any time: it is opened for each line."""

    def __init__(self, path: str = FILE) -> None:
        self._path = path
        self._failed = False

    def write(self, event: str, **said: object) -> None:
        """Add a line; what is empty is left out."""
        now = time.time()
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03}Z"
        line = {"time": moment, "event": event} | {
            key: value for key, value in said.items() if value not in ("", None)
        }
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                os.write(file, json.dumps(line).encode() + b"\n")
            finally:
                os.close(file)
        except OSError as error:
            if not self._failed:
                _log.error("cannot write %s: %s", self._path, error.strerror)
            self._failed = True
        else:
            self._failed = False
