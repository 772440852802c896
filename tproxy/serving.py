"""The daemon as a hook needs it: that there is one, and that it makes maps take effect.

What changes processes is imported when it is needed: a hook seldom finds anything to change.
"""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress

from tproxy import control, instance
from tproxy.errors import ProcessError
from tproxy.logger import DEFAULT_LEVEL

# Seconds. A daemon that does not hand over or answer in this time is stuck; a loaded machine with
# hundreds of bridges is not.
ANSWER_TIMEOUT = 60.0
PING_TIMEOUT = 5.0


def daemon_answers() -> bool:
    return ping() is not None


def ping() -> control.Json | None:
    """What the daemon says of itself in a word; None when none answers."""
    try:
        return control.ask(instance.directory(), {"op": "ping"}, PING_TIMEOUT)
    except ProcessError:
        return None


def ensure_daemon(log_level: int | None, watch: str | None = None) -> None:
    """Have a daemon that takes commands. The caller holds the host's lock."""
    if not daemon_answers():
        from tproxy.running import find, terminate

        terminate(list(find().daemons))  # one that does not answer is of no use
        launch(log_level, watch, replace=False)


def apply(
    bridges: list[str] | None,
    log_level: int | None,
    watch: str | None = None,
    *,
    reopen_logs: bool = False,
) -> list[str]:
    """Make the maps take effect, of these bridges or of all; returns what could not.

    Afterwards ports listen, or are named in a line; with no map left, the daemon is gone, unless it
    keeps a watcher.
    """
    request: control.Json = {"op": "apply", "reopen_logs": reopen_logs}
    if bridges is not None:
        request["bridges"] = bridges
    if log_level is not None:
        request["log_level"] = log_level
    if watch is not None:
        request["watch"] = watch
    answer = control.ask(instance.directory(), request, ANSWER_TIMEOUT)
    if answer["ending"]:
        from tproxy.running import find, terminate

        terminate(find().all)
    problems: list[str] = answer["problems"]
    return problems


def leave_word(bridge: str) -> None:
    """Have a daemon that hangs look at the bridge's map when it goes on, if it ever does."""
    with suppress(ProcessError):  # there is none; or it does not answer at once, of course
        control.ask(instance.directory(), {"op": "apply", "bridges": [bridge]}, 0)


def launch(log_level: int | None, watch: str | None, *, replace: bool) -> None:
    """Start a daemon and return when it takes commands."""
    import subprocess

    from tproxy import children

    children.can_be_waited_for()
    home = instance.prepare()
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "tproxy.launch", *arguments(log_level, watch)]
    command += ["--ready", str(writer), *(["--replace"] if replace else [])]
    inherited = [writer]
    # Should this process be killed, whoever waits for the lock waits until the daemon is ready, or gone.
    if instance.held is not None:
        command += ["--lock", str(instance.held)]
        inherited.append(instance.held)
    try:
        daemon = subprocess.Popen(
            command,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=inherited,
        )
    except OSError as error:  # EAGAIN: there are as many processes as there may be
        os.close(reader)
        raise ProcessError(f"the daemon cannot be started: {error.strerror}") from None
    finally:
        os.close(writer)
    try:
        expect_ready(reader)
    except ProcessError:
        daemon.kill()  # the one that hangs; others have ended
        daemon.wait()
        raise


def arguments(log_level: int | None, watch: str | None) -> list[str]:
    """What ``launch``, the module, is to be told."""
    return ["--log-level", str(log_level or DEFAULT_LEVEL), "--watch", watch or ""]


def expect_ready(reader: int) -> None:
    """Return when the daemon takes commands; it tells so, or why not, by this pipe."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    said = poll.poll(ANSWER_TIMEOUT * 1000)
    answer = os.read(reader, 4096).decode(errors="replace") if said else "it hangs"
    os.close(reader)
    if answer != "ready":
        raise ProcessError(f"the daemon cannot start: {answer or 'it died'}")
