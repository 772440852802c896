"""Network namespaces by name: tell, enter, make, remove. Entering happens here and nowhere else.

A name is a file in /run/netns onto which a namespace is mounted (ip-netns(8)). The file can be
there without a namespace (a crash between two steps, a stray file); such a name is not a namespace.
A namespace made again under a name is another namespace, so it is known by device and inode.
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tproxy.errors import KernelError
from tproxy.typed import NamedTuple

DIRECTORY = "/run/netns"

CLONE_NEWNET = 0x40000000  # <linux/sched.h>
_NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)
_SIOCGSKNS = 0x894C  # <linux/sockios.h>: the namespace of a socket, as a descriptor
_SO_NETNS_COOKIE = 71  # <asm-generic/socket.h>, Linux 5.14: never given out twice

# Seconds. A busy host with hundreds of namespaces may take some to make another, more than pyroute2 waits.
CREATION_TIMEOUT = 30


class NamespaceId(NamedTuple):
    device: int
    inode: int


def current() -> NamespaceId:
    """The namespace that this thread is in."""
    status = os.stat("/proc/thread-self/ns/net")
    return NamespaceId(status.st_dev, status.st_ino)


def identify(name: str) -> NamespaceId | None:
    """The namespace behind ``name``; None where there is none, whatever the file is."""
    try:
        fd = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if fcntl.ioctl(fd, _NS_GET_NSTYPE) != CLONE_NEWNET:
            return None
        status = os.fstat(fd)
        return NamespaceId(status.st_dev, status.st_ino)
    except OSError:
        return None  # ENOTTY: an ordinary file
    finally:
        os.close(fd)


def names() -> list[str]:
    """All names that are taken."""
    try:
        return os.listdir(DIRECTORY)
    except FileNotFoundError:
        return []


def path(name: str) -> str:
    """The file that bears the name, if there is one."""
    return f"{DIRECTORY}/{name}"


def name_taken(name: str) -> bool:
    """Whether a file of that name is there, be it a namespace or a stray file."""
    return os.path.lexists(path(name))


def of_socket(fd: int) -> NamespaceId:
    """The namespace that a socket belongs to, as the kernel knows it. Needs CAP_NET_ADMIN."""
    namespace = fcntl.ioctl(fd, _SIOCGSKNS)
    try:
        status = os.fstat(namespace)
        return NamespaceId(status.st_dev, status.st_ino)
    finally:
        os.close(namespace)


def cookie(sock: socket.SocketType) -> int | None:
    """A number that stands for the socket's namespace; None where the kernel is too old."""
    try:
        value: int = struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0]
    except OSError:
        return None
    return value


def enter(name: str) -> None:
    """Move this thread into a namespace for good; raises KernelError. Never creates one."""
    try:
        fd = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KernelError(f"namespace {name}: {_reason(error)}") from None
    try:
        _setns(fd)
    except OSError as error:
        raise KernelError(f"namespace {name}: {_reason(error)}") from None
    finally:
        os.close(fd)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Run the body in a namespace, on this thread, and come back."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(name)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def create(name: str) -> None:
    """Make a namespace and name it. The caller holds the lock: /run/netns may be mounted first."""
    # Imported where it is needed: pyroute2 takes longer to import than a healthy hook runs.
    from pyroute2 import config, netns

    from tproxy.kernel import children

    children.can_be_waited_for()
    config.default_communicate_timeout = CREATION_TIMEOUT  # of the child that makes it
    try:
        netns.create(path(name))
    except Exception as error:  # it comes back from a child process in whatever type
        with suppress(KernelError):  # what could not be made is what there is to say
            remove(name)
        reason = _reason(error) if isinstance(error, OSError) else str(error)
        raise KernelError(f"cannot create namespace {name}: {reason}") from error


def remove(name: str) -> None:
    """Remove the name, whatever has it; the namespace goes with its last process and socket."""
    file = path(name)
    libc = ctypes.CDLL(None, use_errno=True)
    # As often as something is mounted there: two racing creations can stack.
    while libc.umount2(os.fsencode(file), 2) == 0:  # MNT_DETACH, umount(2)
        pass
    try:
        if os.path.isdir(file) and not os.path.islink(file):
            os.rmdir(file)
        else:
            os.unlink(file)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise KernelError(f"cannot remove {file}: {error.strerror}") from None


def _setns(fd: int) -> None:
    # os.setns exists from Python 3.12 only.
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "does not exist"
    if error.errno == errno.EINVAL:
        return "is not a network namespace"
    return error.strerror or str(error)
