"""The exception tree. Every message is one line that an operator can act on."""


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
