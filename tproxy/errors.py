"""The exceptions, and how text from outside is put into messages.

Each message is one line that an operator can act on.
"""

MAX_QUOTED = 80  # characters of a value in a message: enough to find it


class TproxyError(Exception):
    """Base of all errors that tproxy raises on purpose; ``str()`` is the line to show."""


class ConfigError(TproxyError):
    """The configuration file cannot be used as a whole."""


class BadName(TproxyError):
    """A bridge or interface has a name that the kernel or nftables does not allow."""


class KernelError(TproxyError):
    """The kernel refused a change to links, namespaces or sysctls."""


class NftError(TproxyError):
    """nftables refused a transaction or a read, which changed nothing."""


class ProtocolError(TproxyError):
    """A message between relay, daemon and command line does not follow the protocol."""


class ProcessError(TproxyError):
    """A process could not be started, reached or ended."""


class NotRunning(ProcessError):
    """No daemon is running."""


class DaemonEnded(ProcessError):
    """The daemon ended before it had answered."""


def quoted(text: str) -> str:
    """Return a value for a message: in quotes, as one line of ASCII, and cut if it is long."""
    line = ascii(text)
    return line if len(line) <= MAX_QUOTED else line[:MAX_QUOTED] + "..."


def to_ascii(text: object) -> str:
    """Return text for a message without quotes, as one line of ASCII."""
    return str(text).encode("unicode_escape").decode("ascii")
