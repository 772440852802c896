"""How many descriptors a process may have open (RLIMIT_NOFILE, getrlimit(2)).

The daemon loads this module before it forks the process that relays are forked from, so it imports little.
"""

import resource


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
