"""Children that can be waited for, whoever called us."""

import signal


def can_be_waited_for() -> None:
    """Say so to the kernel: a caller that ignores its own ended children hands that down (execve(2))."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
