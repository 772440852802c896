"""The first steps of the daemon's process: it forks its spawner first, while little is loaded.

``python -m tproxy.daemon [--replace] [--stay] [--log-level N] [--watch FILE] [--workers N]
[--max-connections N] [--hypervisor-name NAME] [--ready FD] [--lock FD]``, started by ``daemon.launcher`` or
``process.service_manager`` in the run directory (``process.run_directory``).

``tproxy.daemon`` is a stable name: a running daemon of an older version goes on as the installed code by this
name (``service_manager.execute_daemon``), so it must stay, with these options, when modules are moved.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

from tproxy.daemon.spawner import Spawner
from tproxy.kernel import privileges
from tproxy.kernel.limits import raise_descriptor_limit
from tproxy.log.journal import STREAM
from tproxy.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from tproxy.daemon.daemon import Daemon

# Seconds. A daemon that hangs while it starts holds the host's lock. The command that started it ends it; if
# that command was killed, the daemon ends itself after this time.
START_TIMEOUT = 60

# No kernel is built for more (CONFIG_NR_CPUS).
MOST_PROCESSORS = 8192


def main() -> None:
    _shed_what_the_caller_set()
    # A service manager runs the daemon with --stay, and has set priorities on purpose. Any other caller has
    # set its own. Relays and watchers take over what the daemon and its spawner have.
    if "--stay" not in sys.argv:
        _reset_priorities()
        os.environ.pop(STREAM, None)
    raise_descriptor_limit()
    unlimited = privileges.limit()
    spawner = Spawner()
    # Everything else is imported only now: relays carry what is loaded when the spawner is forked.
    arguments = _arguments()
    if not arguments.stay:
        from tproxy.kernel.io_class import reset_io_class

        reset_io_class(os.getpid(), spawner.pid)
    daemon = _start(spawner, arguments, unlimited)
    _run(daemon)


def _shed_what_the_caller_set() -> None:
    """Set the file mode mask and the blocked signals, which a hook's caller may hand down (execve(2))."""
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _reset_priorities() -> None:
    """Take the ordinary scheduling policy and nice value, all processors, and oom_score_adj 0.

    A child takes these over from its parent. A hook may be called by a batch job on one processor, or by a
    service that the kernel must not kill, while the daemon serves all guests for months. The kernel leaves
    out processors that the cgroup does not allow (sched_setaffinity(2)). What needs a capability that is
    missing stays as it is.
    """
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with suppress(OSError):
        os.sched_setaffinity(0, range(MOST_PROCESSORS))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("0")


def _arguments() -> argparse.Namespace:
    import argparse
    import logging

    parser = argparse.ArgumentParser(prog="tproxy.daemon")
    parser.add_argument("--replace", action="store_true", help="replace the relays of an older daemon")
    parser.add_argument("--stay", action="store_true", help="do not end when no map is left")
    parser.add_argument("--log-level", type=int, default=logging.INFO)
    parser.add_argument("--watch", default="", help="configuration file for which to keep a watcher")
    parser.add_argument("--workers", type=int, default=0, help="number of workers; 0: by the number of cores")
    parser.add_argument("--max-connections", type=int, default=0, help="of all workers; 0: by descriptors")
    parser.add_argument("--hypervisor-name", default="", help="what endpoints are told; empty: the host name")
    parser.add_argument("--ready", type=int, help="descriptor to write to when commands are taken")
    parser.add_argument("--lock", type=int, help="descriptor of the host's lock, which is closed then")
    return parser.parse_args()


def _start(spawner: Spawner, arguments: argparse.Namespace, unlimited: list[str]) -> Daemon:
    """Make the daemon and report that commands are taken; if it fails, report why and exit.

    ``unlimited`` are the stages of ``privileges.limit`` that failed.
    """
    import logging

    from tproxy.log import output

    output.to_file(output.DAEMON_LOG, arguments.log_level)
    output.to_journal()
    for line in unlimited:
        logging.getLogger("tproxy.daemon").warning(
            "a right that the daemon does not need could not be given up: %s", line
        )
    if arguments.lock is not None:
        signal.alarm(START_TIMEOUT)
    try:
        from tproxy.daemon.daemon import Daemon
        from tproxy.model import Settings

        settings = Settings(
            arguments.log_level,
            arguments.watch,
            workers=arguments.workers,
            max_connections=arguments.max_connections,
            hypervisor_name=arguments.hypervisor_name,
        )
        daemon = Daemon(spawner, settings, replace=arguments.replace, stay=arguments.stay)
        daemon.appear()
    except Exception as error:
        logging.getLogger("tproxy.daemon").exception("the daemon cannot start")
        if arguments.ready is not None:
            os.write(arguments.ready, f"{type(error).__name__}: {error}".encode())
        sys.exit(1)
    if arguments.ready is not None:
        os.write(arguments.ready, b"ready")
        os.close(arguments.ready)
    if arguments.lock is not None:
        signal.alarm(0)
        os.close(arguments.lock)
    return daemon


def _run(daemon: Daemon) -> None:
    try:
        daemon.run()
    except Exception:
        import logging

        logging.getLogger("tproxy.daemon").exception("the daemon ends on an unexpected error")
        sys.exit(1)


if __name__ == "__main__":
    main()
