"""The exception tree, and how foreign text is put into messages.

Every message is one line that an operator can act on.
"""

MAX_QUOTED = 80  # characters of a value in a message: enough to find it


class TproxyError(Exception):
    """Base of all errors that tproxy raises on purpose; ``str()`` is the line to show."""


class ConfigError(TproxyError):
    """The configuration file cannot be used as a whole."""


class BadName(TproxyError):
    """A bridge or interface name that the kernel or nftables could not hold."""


class KernelError(TproxyError):
    """The kernel refused a change to links, namespaces or sysctls."""


class NftError(TproxyError):
    """nftables refused a transaction or a read; nothing was changed by it."""


class ProtocolError(TproxyError):
    """A message between relay, daemon and command line that does not follow ``wire``."""


class ProcessError(TproxyError):
    """A process could not be started, reached or ended."""


class NotRunning(ProcessError):
    """There is no daemon that could be asked."""


def quoted(text: str) -> str:
    """A value for a message: in quotes, one line of ASCII, not too long."""
    line = ascii(text)
    return line if len(line) <= MAX_QUOTED else line[:MAX_QUOTED] + "..."


def to_ascii(text: object) -> str:
    """Unquoted text for a message, in one line of ASCII."""
    return str(text).encode("unicode_escape").decode("ascii")
