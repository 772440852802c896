"""The entry point of ``tproxy``: calls the command, and turns errors into one line and an exit code.

``tproxy hook`` runs at every VM start, and ``tproxy event`` on libvirt and Proxmox VE. So they are recognized
here, before anything is imported that only the other commands need.
"""

import gc
import os
import sys
from io import TextIOWrapper

from tproxy.console import EXIT_FAILURE, EXIT_INTERNAL, EXIT_INTERRUPTED, in_utf8, say
from tproxy.errors import TproxyError
from tproxy.typed import NoReturn


def main() -> NoReturn:
    """Run the console script."""
    run()
    # The interpreter takes 7 ms to end, because it frees its objects one by one; the kernel ends the process
    # at once. The command must have flushed what it printed.
    os._exit(0)


def run() -> None:
    """Carry out the command line. Print an error as one line on stderr, and a traceback only with --debug."""
    # Names may hold characters that the locale's encoding lacks: they are escaped, as on stderr.
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if sys.argv[1:2] == ["hook"]:
            gc.disable()  # the process ends before garbage could matter
            from tproxy.cli import hook

            hook.run(in_utf8(sys.argv[2:]))
        elif sys.argv[1:2] == ["event"]:
            from tproxy.cli import event

            sys.exit(event.run(sys.argv[2:]))
        else:
            from tproxy.cli import commands

            commands.run()
    except TproxyError as error:
        _fail(str(error), EXIT_FAILURE, error)
    except BrokenPipeError:
        # The reader of our output has closed it. click's commands end the same way. With stdout redirected,
        # the interpreter does not report it again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(EXIT_FAILURE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        # The last resort: whatever went wrong, the operator gets one line.
        _fail(f"internal error: {type(error).__name__}: {error}", EXIT_INTERNAL, error)


def _fail(line: str, code: int, error: Exception) -> None:
    if "--debug" in sys.argv or os.environ.get("TPROXY_DEBUG"):
        import traceback

        traceback.print_exception(error)
    say(line)
    sys.exit(code)
