"""The policy of a running process: read again when the file has changed, kept when the new one is broken."""

from __future__ import annotations

import os
from pathlib import Path

from tproxy.egress.policy.reader import load
from tproxy.egress.policy.rules import Policy
from tproxy.errors import ConfigError


class Current:
    """The policy as the file is now. ``problem`` says why the file as it is now is not used; "" if it is.

    A file that cannot be read at the start denies everything. One that breaks later changes nothing: the
    policy stays as it was until the file is in order again.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._policy = Policy(str(path))
        self.problem = ""

    def get(self) -> Policy:
        """Return the policy. Costs one stat(2) while the file stays as it is."""
        try:
            stat = os.stat(self._path)
            seen = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        except OSError as error:
            self._seen, self.problem = None, f"{self._path}: {error.strerror}"
            return self._policy
        if seen != self._seen:
            try:
                self._policy, self.problem = load(self._path), ""
            except ConfigError as error:
                self.problem = str(error)
            self._seen = seen
        return self._policy
