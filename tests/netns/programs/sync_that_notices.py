"""``tproxy sync``, which makes the file that is its first argument when its thread pool is shut down."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

from tproxy.cli import main
from tproxy.operations import sync

GO = Path(sys.argv.pop(1))


class NoticingPool(ThreadPoolExecutor):
    """A pool that makes the file before a shutdown that waits for sessions, and after one that does not."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if wait:
            GO.touch()
        super().shutdown(wait, cancel_futures=cancel_futures)
        GO.touch()


with mock.patch.object(sync, "ThreadPoolExecutor", NoticingPool):
    main.run()
