"""Give up rights as daemon, spawner and watcher do, then try what none of them may do, and what they must.

With ``--only-the-unit`` it gives up nothing, and tries what the unit that started it permits. Prints as JSON
which stages failed, and for each attempt the name of the error, or ``done``. The arguments of the attempts
make the kernel refuse them in another way (EINVAL, EFAULT) where they could harm the host.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from tproxy.kernel import privileges
from tproxy.kernel.system_calls import NUMBERS

CLONE_FS, CLONE_NEWNS, CLONE_NEWUTS = 0x200, 0x20000, 0x4000000  # <linux/sched.h>
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PTRACE_SEIZE = 0x4206  # <linux/ptrace.h>
MS_BIND, MNT_DETACH = 4096, 2  # <sys/mount.h>
SHM_EXEC = 0o100000  # <sys/shm.h>
AGAIN = "again"

libc = ctypes.CDLL(None, use_errno=True)
column = 0 if os.uname().machine == "x86_64" else 1


def call(name: str, *arguments: object) -> Callable[[], object]:
    """Return a function that makes a call of the C library, and raises OSError where it fails."""

    def run() -> None:
        if getattr(libc, name)(*arguments) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return run


def system_call(name: str, *arguments: object) -> Callable[[], object]:
    """Return a function that makes this system call, with these arguments and then zeros."""
    number = NUMBERS[name][column]
    assert number is not None
    padded = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    padded += [ctypes.c_long(0)] * (6 - len(padded))
    return call("syscall", ctypes.c_long(number), *padded)


def map_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def attempts(victim: int) -> dict[str, Callable[[], object]]:
    """Return what must be refused; ``victim`` is a process of the same user."""
    mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    network = os.open("/proc/self/ns/net", os.O_RDONLY)
    pidfd = os.pidfd_open(victim)
    page = mmap.mmap(-1, 4096)
    address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    return {
        "trace another process": system_call("ptrace", PTRACE_SEIZE, victim),
        "read the memory of another": system_call("process_vm_readv", victim),
        "write to the memory of another": system_call("process_vm_writev", victim),
        "take a descriptor of another": system_call("pidfd_getfd", pidfd, 0, 0),
        "compare descriptors of others": system_call("kcmp", victim, victim, 0, 0, 0),
        "load a program into the kernel": system_call("bpf", 0, bytes(128), 128),
        "measure events": system_call("perf_event_open", bytes(128), 0, -1, -1, 0),
        "handle page faults": system_call("userfaultfd", 1),
        "use io_uring": system_call("io_uring_setup", 1, bytes(128)),
        "load a module": system_call("init_module", 0, 0, b""),
        "load a module from a file": system_call("finit_module", -1, b"", 0),
        "remove a module": system_call("delete_module", b"no_such_module", 0),
        "load another kernel": system_call("kexec_load", 0, 0, 0, 0xFFFF),
        "load another kernel from a file": system_call("kexec_file_load", -1, -1, 0, b"", 0xFFFF),
        "use the kernel's keys": system_call("keyctl", 0, -3, 0),
        "add a key": system_call("add_key", b"user", b"tproxy-test", b"x", 1, -2),
        "ask for a key": system_call("request_key", b"user", b"tproxy-test", 0, 0),
        "restart the host": system_call("reboot", 0, 0, 0),
        "use another file to swap": system_call("swapon", 0, 0xFFFF),
        "use no file to swap": system_call("swapoff", 0),
        "account for processes": system_call("acct", b"/no/such/file"),
        "set quotas": system_call("quotactl", -1, 0, 0, 0),
        "set the time": system_call("clock_settime", 99, bytes(16)),
        "set the time of day": system_call("settimeofday", 1, 0),
        "adjust the clock": system_call("adjtimex", 1),
        "name the host": system_call("sethostname", b"", -1),
        "name its domain": system_call("setdomainname", b"", -1),
        "read the kernel's messages": system_call("syslog", 99, 0, 0),
        "hang up the terminal": system_call("vhangup"),
        "run as another system": system_call("personality", 0xFFFFFFFF),
        "make a device": lambda: os.mknod("/run/device", 0o020600, os.makedev(1, 3)),
        "change the root mount": system_call("pivot_root", b"/", b"/"),
        "open a file system": system_call("fsopen", b"tmpfs", 0),
        "copy a mount": system_call("open_tree", -100, b"/", 1),
        "move a mount": system_call("move_mount", -1, b"", -1, b"", 0),
        "change a mount": system_call("mount_setattr", -1, b"", 0, 0, 0),
        "open a file by its number": system_call("open_by_handle_at", -100, bytes(128), 0),
        "follow all files": system_call("fanotify_init", 0, 0),
        "move pages into a pipe": system_call("vmsplice", -1),
        "make a user namespace": call("unshare", CLONE_NEWUSER),
        "make a mount namespace": call("unshare", CLONE_NEWNS),
        "make two namespaces at once": call("unshare", CLONE_NEWNET | CLONE_NEWUTS),
        "start a process in another namespace": system_call("clone", CLONE_NEWUSER | CLONE_FS),
        "enter a mount namespace": call("setns", mounts, CLONE_NEWNS),
        "enter a namespace of any kind": call("setns", network, 0),
        "map memory that can be executed": map_code,
        "make memory executable": system_call("mprotect", address, 4096, 1 | 4),
        "make memory executable with a key": system_call("pkey_mprotect", address, 4096, 1 | 4, -1),
        "share memory that can be executed": system_call("shmat", -1, 0, SHM_EXEC),
    }


def make_network_namespace() -> None:
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    call("unshare", CLONE_NEWNET)()
    call("setns", home, CLONE_NEWNET)()
    os.close(home)


def mount() -> None:
    os.mkdir("/run/mounted")
    call("mount", b"/run/mounted", b"/run/mounted", b"none", ctypes.c_ulong(MS_BIND), None)()
    call("umount2", b"/run/mounted", MNT_DETACH)()


def start_thread() -> None:
    thread = threading.Thread(target=str)
    thread.start()
    thread.join()


def list_rules() -> None:
    """List rules in a new program: it loads ctypes, libffi and libnftables under the filter."""
    script = "from nftables import Nftables; print(Nftables().cmd('list tables')[0])"
    assert subprocess.check_output([sys.executable, "-c", script]) == b"0\n"


def read_legacy_rules() -> None:
    """Read the rules of iptables-legacy, where it is installed, as a watcher does."""
    if (program := shutil.which("iptables-legacy-save")) is not None:
        subprocess.run([program, "-t", "filter"], stdout=subprocess.DEVNULL, check=True)


def end(victim: int) -> None:
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)


def tried(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def filters() -> int:
    """Return how many filters this process has. Linux before 5.9 does not tell."""
    with open("/proc/self/status") as file:
        found = [int(line.split()[1]) for line in file if line.startswith("Seccomp_filters:")]
    return found[0] if found else 1


def main() -> None:
    before = filters()
    only_the_unit = "--only-the-unit" in sys.argv
    failed = [] if only_the_unit else privileges.limit()
    if AGAIN not in sys.argv and not only_the_unit:
        first = filters()
        os.execv(sys.executable, [sys.executable, "-m", __spec__.name, AGAIN, str(before), str(first)])
    victim = os.fork()
    if victim == 0:
        signal.pause()
    outcome = {name: tried(attempt) for name, attempt in attempts(victim).items()}
    needed: dict[str, Callable[[], object]] = {
        "make a network namespace": make_network_namespace,
        "mount": mount,
        "start a thread": start_thread,
        "list rules": list_rules,
        "read legacy rules": read_legacy_rules,
        "end a process": lambda: end(victim),
        "take a root directory": lambda: os.chroot("/"),
    }
    report = {
        "failed": failed,
        "filters": [*map(int, filter(str.isdecimal, sys.argv)), filters()],
        "outcome": outcome,
        "clone3": tried(system_call("clone3", 0, 0)),
        "needed": {name: tried(attempt) for name, attempt in needed.items()},
    }
    print(json.dumps(report))


main()
