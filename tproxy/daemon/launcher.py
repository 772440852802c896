"""Starts a daemon in the background, and returns when it takes commands."""

from __future__ import annotations

import os
import select
import subprocess
import sys

from tproxy.daemon import host_mounts
from tproxy.daemon.client import ANSWER_TIMEOUT
from tproxy.errors import ProcessError
from tproxy.kernel import children, limits
from tproxy.log.lazy import DEFAULT_LEVEL
from tproxy.model import Settings
from tproxy.process import run_directory
from tproxy.process.run_directory import Lock


def launch(settings: Settings, lock: Lock, *, replace: bool) -> None:
    """Start a daemon and return when it takes commands; ``replace``: it replaces the relays that it finds.

    Raises ProcessError when the daemon cannot be started, ends, or hangs; then no process of it is left.
    Raises KernelError in a mount namespace in which the host's namespaces do not appear, and with few
    descriptors.
    """
    limits.require_descriptors()
    host_mounts.require_sight()  # it would take bridges for gone whose namespaces it cannot see
    children.can_be_waited_for()
    home = run_directory.prepare()
    options = [*arguments(settings), *(["--replace"] if replace else [])]
    reader, writer = os.pipe()
    try:
        daemon = _start(options, home, ready=writer, lock=lock.fileno())
    except OSError as error:  # EAGAIN: there are as many processes as there may be
        os.close(reader)
        raise ProcessError(f"the daemon cannot be started: {error.strerror}") from None
    finally:
        os.close(writer)
    try:
        expect_ready(reader)
    except ProcessError:
        daemon.kill()  # if it hangs; otherwise it has ended
        daemon.wait()
        raise


def arguments(settings: Settings) -> list[str]:
    """Return the options that tell a daemon its settings."""
    level, watch_file = settings.log_level or DEFAULT_LEVEL, settings.watch_file or ""
    options = ["--log-level", str(level), "--watch", watch_file, "--workers", str(settings.workers or 0)]
    if settings.max_connections:  # a version before this option would refuse it
        options += ["--max-connections", str(settings.max_connections)]
    if settings.hypervisor_name:  # likewise
        options.append(f"--hypervisor-name={settings.hypervisor_name}")  # it can begin with a dash
    return options


def expect_ready(reader: int) -> None:
    """Wait until the daemon writes "ready" to this pipe; raises ProcessError when it does not."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    said = poll.poll(ANSWER_TIMEOUT * 1000)
    answer = os.read(reader, 4096).decode(errors="replace") if said else "it hangs"
    os.close(reader)
    if answer != "ready":
        raise ProcessError(f"the daemon cannot start: {answer or 'it died'}")


def _start(options: list[str], home: str, *, ready: int, lock: int) -> subprocess.Popen[bytes]:
    # The daemon holds the lock too until it is ready: if this process is killed, the next command still
    # waits.
    return subprocess.Popen(
        [sys.executable, "-m", "tproxy.daemon", *options, "--ready", str(ready), "--lock", str(lock)],
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=[ready, lock],
    )
