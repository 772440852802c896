"""Identifies, enters, creates and removes named network namespaces. No other module enters one.

A name is a file in /run/netns onto which a namespace is mounted (ip-netns(8)). The file can exist without a
namespace, after a crash between two steps or as a stray file; such a name is not a namespace. A namespace
that is created again under the same name is another one, so device and inode identify a namespace.
"""

import ctypes
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tproxy.errors import KernelError
from tproxy.typed import NamedTuple

DIRECTORY = "/run/netns"

CLONE_NEWNET = 0x40000000  # <linux/sched.h>
_NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)
_SIOCGSKNS = 0x894C  # <linux/sockios.h>: returns a descriptor of the socket's namespace
_SO_NETNS_COOKIE = 71  # <asm-generic/socket.h>, Linux 5.14: a number that is never used twice

_MS_BIND, _MS_REC, _MS_SHARED = 1 << 12, 1 << 14, 1 << 20  # <linux/mount.h>

# The description of the loopback link in a namespace that we made (`ip -n NAME link show lo`). The mark goes
# with the namespace, and nothing else tells ours from one that another program made under the same name.
_MARK = "made by tproxy"

# One for all modules: each further one, and each function of it, takes memory.
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.setns  # noqa: B018 - looked up now: each relay would make a function of its own


class NamespaceId(NamedTuple):
    """The identity of a network namespace, as long as it exists."""

    device: int
    inode: int


def current() -> NamespaceId:
    """The namespace of this thread."""
    status = os.stat("/proc/thread-self/ns/net")
    return NamespaceId(status.st_dev, status.st_ino)


def identify(name: str) -> NamespaceId | None:
    """The namespace that is mounted on ``name``; None for no file, and for a file that is no namespace."""
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
    """All names in use, whether for a namespace or a stray file."""
    try:
        return os.listdir(DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return []


def path(name: str) -> str:
    """The path of the name's file, which need not exist."""
    return f"{DIRECTORY}/{name}"


def name_taken(name: str) -> bool:
    """Whether the name is in use, whether for a namespace or a stray file."""
    return os.path.lexists(path(name))


def is_remnant(name: str) -> bool:
    """Whether the name is in use, and holds nothing that could be lost.

    A crash while a namespace is made or removed leaves an empty file. An empty directory and a link to
    nothing are as good as that.
    """
    file = path(name)
    try:
        mode = os.lstat(file).st_mode
        if stat.S_ISDIR(mode):
            return not os.listdir(file)
        if stat.S_ISLNK(mode):
            return not os.path.exists(file)
        return stat.S_ISREG(mode) and not os.stat(file).st_size
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_marked() -> bool:
    """Whether ``create`` made this thread's namespace."""
    from tproxy.kernel import rtnetlink  # not above: relays need this module, and not that one

    loopback = rtnetlink.link("lo")
    return loopback is not None and loopback.alias == _MARK


def of_process(pid: int) -> NamespaceId:
    """The namespace of a process. Raises OSError."""
    status = os.stat(f"/proc/{pid}/ns/net")
    return NamespaceId(status.st_dev, status.st_ino)


def of_socket(fd: int) -> NamespaceId:
    """The namespace of a socket, from the kernel. Needs CAP_NET_ADMIN. Raises OSError."""
    namespace = fcntl.ioctl(fd, _SIOCGSKNS)
    try:
        status = os.fstat(namespace)
        return NamespaceId(status.st_dev, status.st_ino)
    finally:
        os.close(namespace)


def cookie(sock: socket.SocketType) -> int | None:
    """The unique number of the socket's namespace; None when the kernel is older than 5.14."""
    try:
        value: int = struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0]
    except OSError:
        return None
    return value


def enter(name: str) -> None:
    """Move this thread into a namespace, for good. Never creates one. Raises KernelError."""
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
    """Run the body in a namespace, on this thread, and return to the former one. Raises KernelError."""
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
    """Create a namespace with a name, as ``ip netns add`` does, and with our mark. Raises KernelError.

    The caller holds the host's lock, because the first namespace on a host also mounts /run/netns. The mark
    is there before the name is, so that a run which is killed in between leaves nothing that looks like
    another program's.
    """
    from tproxy.kernel import rtnetlink

    try:
        _share_directory()
        os.close(os.open(path(name), os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except OSError as error:
        raise KernelError(f"cannot create namespace {name}: {error.strerror}") from None
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("unshare", CLONE_NEWNET)
        try:
            rtnetlink.set_alias(1, _MARK)  # the loopback link is the first one
            _mount("/proc/thread-self/ns/net", path(name), _MS_BIND)
        finally:
            _setns(home)
    except OSError as error:
        with suppress(KernelError):  # the first error is the one to report
            remove(name)
        raise KernelError(f"cannot create namespace {name}: {error.strerror}") from None
    finally:
        os.close(home)


def _share_directory() -> None:
    """Make /run/netns, and have what is mounted in it appear in other mount namespaces too."""
    with suppress(FileExistsError):
        os.mkdir(DIRECTORY)
        os.chmod(DIRECTORY, 0o755)  # mkdir(2) applies the umask, 0077 in a watcher
    if not os.path.isdir(DIRECTORY):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    try:
        _mount("", DIRECTORY, _MS_SHARED | _MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _mount(DIRECTORY, DIRECTORY, _MS_BIND | _MS_REC)  # only a mount point can be shared
        _mount("", DIRECTORY, _MS_SHARED | _MS_REC)


def _mount(source: str, target: str, flags: int) -> None:
    _call("mount", source.encode(), target.encode(), b"none", ctypes.c_ulong(flags), None)


def _call(function: str, *arguments: object) -> None:
    """Call a function of libc that returns 0. Raises OSError."""
    if getattr(LIBC, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def remove(name: str) -> None:
    """Remove the name's file, whatever it is. The namespace lives until its last process and socket are gone.

    Raises KernelError. A name that is not in use is no error.
    """
    file = path(name)
    # Repeated, because two programs that create the name at once mount on it twice.
    while LIBC.umount2(os.fsencode(file), 2) == 0:  # MNT_DETACH, umount(2)
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
    _call("setns", fd, CLONE_NEWNET)  # Python has os.setns only from 3.12 on


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "does not exist"
    if error.errno == errno.EINVAL:
        return "is not a network namespace"
    return error.strerror or str(error)
