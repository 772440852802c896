"""Print the ports of a process's listening sockets that keep SYNs (TCP_SAVE_SYN): ``saved_syns.py PID``."""

from __future__ import annotations

import ctypes
import os
import socket
import sys

PIDFD_GETFD = 438  # <asm-generic/unistd.h>
TCP_SAVE_SYN = 27


def main() -> None:
    pid = int(sys.argv[1])
    pidfd = os.pidfd_open(pid)
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    ports = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
            continue
        with socket.socket(fileno=syscall(PIDFD_GETFD, pidfd, int(name), 0)) as sock:
            listens = sock.family == socket.AF_INET and sock.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            )
            if listens and sock.getsockopt(socket.IPPROTO_TCP, TCP_SAVE_SYN):
                ports.append(sock.getsockname()[1])
    print(*sorted(ports))


if __name__ == "__main__":
    main()
