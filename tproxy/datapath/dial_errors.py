"""What the errno of a dial says: of the endpoint or of this host, for people and for the counters. Pure."""

from __future__ import annotations

import errno
import os

from tproxy.datapath.counts import DIAL_TIMED_OUT, FORBIDDEN, LOCAL, REFUSED, UNREACHABLE

_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})
# Of the path of a UNIX socket: nothing is there, or something else is.
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
_NO_WAY = _UNREACHABLE | _MISSING | {errno.EPROTOTYPE, errno.ELOOP}
# Errors of a dial that are the endpoint's, or the way's to it. Others, such as no free port, are this host's.
OF_ENDPOINT = _NO_WAY | _FORBIDDEN | {errno.ECONNREFUSED, errno.ETIMEDOUT}


def dial_failure(number: int) -> str:
    """Return in a few words why an endpoint could not be reached; ``number`` is an errno."""
    if number == errno.ECONNREFUSED:
        return "refused"
    if number == errno.ETIMEDOUT:
        return "timed out"
    if number in _UNREACHABLE:
        return "unreachable"
    if number in _MISSING:
        return "missing"
    return os.strerror(number)


def dial_reason(number: int) -> int:
    """Return the place in ``counts.REASONS`` for the errno of a dial."""
    if number == errno.ECONNREFUSED:
        return REFUSED
    if number == errno.ETIMEDOUT:
        return DIAL_TIMED_OUT
    if number in _NO_WAY:
        return UNREACHABLE
    return FORBIDDEN if number in _FORBIDDEN else LOCAL
