"""Signs the head of a ledger, and prints what arrives at /dev/log, as syslogd would see it.

Arguments: the directories of the ledger and of the keys. Runs where /dev/log may be made.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from tproxy.egress.ledger import heads
from tproxy.egress.ledger.chain import Ledger
from tproxy.egress.signing import LEDGER, KeyPair

with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
    syslog.bind("/dev/log")
    ledger = Ledger(Path(sys.argv[1]))
    heads.sign(ledger, KeyPair(Path(sys.argv[2]), LEDGER))
    print(syslog.recv(65536).decode())
    ledger.close()
