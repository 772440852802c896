"""The first steps of the daemon's process: its spawner first, while little is loaded.

``python -m tproxy.daemon [--replace] [--stay] [--log-level N] [--watch FILE] [--ready FD] [--lock FD]``,
started by ``process`` or ``foreground`` in the directory of ``instance``.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

from tproxy.relay.spawner import Spawner

# Seconds. One that hangs while it starts, and so holds the host's lock, is ended by who started it; if that
# was killed, by itself.
START_TIMEOUT = 60


def main() -> None:
    os.umask(0o077)
    # Whoever called may have blocked some, and hands that down (execve(2)).
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # All descriptors that may be had, for this process and for relays: whoever called may have kept to few.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    spawner = Spawner()

    # Only now: relays carry what is loaded when they are forked.
    import argparse
    import logging

    from tproxy.log import output

    parser = argparse.ArgumentParser(prog="tproxy.daemon")
    parser.add_argument("--replace", action="store_true", help="replace relays that are there")
    parser.add_argument("--stay", action="store_true", help="do not end when no map is left")
    parser.add_argument("--log-level", type=int, default=logging.INFO)
    parser.add_argument("--watch", default="", help="configuration file for a watcher to keep")
    parser.add_argument("--ready", type=int, help="descriptor that is told when commands are taken")
    parser.add_argument("--lock", type=int, help="descriptor of the host's lock, which is let go then")
    arguments = parser.parse_args()

    output.to_file(output.DAEMON_LOG, arguments.log_level)
    if arguments.lock is not None:
        signal.alarm(START_TIMEOUT)
    try:
        from tproxy.daemon.daemon import Daemon
        from tproxy.model import Settings

        settings = Settings(arguments.log_level, arguments.watch)
        daemon = Daemon(spawner, settings, replace=arguments.replace, stay=arguments.stay)
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
    try:
        daemon.run()
    except Exception:
        logging.getLogger("tproxy.daemon").exception("the daemon ends on an unexpected error")
        sys.exit(1)


if __name__ == "__main__":
    main()
