"""The command line: parse, call, print, exit code; nothing else. A module for each group of commands.

``tproxy hook`` runs at every VM start, so it pays for what it needs only: its module is imported
before, and instead of, all that the other commands stand on.
"""

import gc
import os
import sys
from io import TextIOWrapper

from tproxy.console import EXIT_FAILURE, EXIT_INTERNAL, EXIT_INTERRUPTED, in_utf8, say
from tproxy.errors import TproxyError
from tproxy.typed import NoReturn


def main() -> NoReturn:
    """The console script."""
    run()
    # The kernel takes a process down at once; for the interpreter, piece by piece, it is 7 ms. What is
    # printed before has to be flushed.
    os._exit(0)


def run() -> None:
    """Do what the command line says. Errors are one line on stderr; a traceback only with --debug."""
    # Names may hold what the locale's encoding has not: shown escaped, as on stderr.
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if sys.argv[1:2] == ["hook"]:
            gc.disable()  # there is no time for garbage to gather
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
        # Whoever reads what is printed has seen enough, as of click's commands. Not at the end once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(EXIT_FAILURE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        # The last resort of the outermost caller: an operator gets a line, whatever went wrong.
        _fail(f"internal error: {type(error).__name__}: {error}", EXIT_INTERNAL, error)


def _fail(line: str, code: int, error: Exception) -> None:
    if "--debug" in sys.argv or os.environ.get("TPROXY_DEBUG"):
        import traceback

        traceback.print_exception(error)
    say(line)
    sys.exit(code)
