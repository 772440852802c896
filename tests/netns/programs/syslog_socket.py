"""Receives what programs send to syslog, like journald and rsyslog, and prints it.

Prints ``ready`` when it listens on /dev/log, then each message.
"""

from __future__ import annotations

import socket

log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind("/dev/log")
print("ready", flush=True)
while True:
    print(log.recv(65536).decode(), flush=True)
