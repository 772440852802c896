"""How many descriptors a process may have open (RLIMIT_NOFILE, getrlimit(2)).

The daemon loads this module before it forks the process that relays are forked from, so it imports little.
"""

import resource

from tproxy.errors import KernelError

# With fewer descriptors, a worker can hardly have a connection beside what it keeps free for a message with
# sockets (worker.admission): measured with 256, one idle connection made all others wait.
FLOOR = 512


def raise_descriptor_limit() -> None:
    """Allow this process, and those that it starts, all descriptors that the hard limit permits.

    The inherited soft limit is usually 1024, for programs that use select(2). A connection takes two
    descriptors in the daemon, a service port takes one in a relay, a bridge about twenty in a watcher.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def descriptor_limit() -> int:
    """Return how many descriptors this process may have open now (the soft limit)."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def require_descriptors() -> None:
    """Raise KernelError when processes that this one starts could not have as many as the daemon needs."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < FLOOR:  # -1: no limit
        raise KernelError(
            f"the limit of open descriptors is {hard} (RLIMIT_NOFILE, ulimit -Hn), "
            f"but the daemon and its workers need at least {FLOOR}"
        )


def hard_limit() -> int:
    """Return how many descriptors a process that this one starts may have open; -1 for no limit."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]
