"""A process of OpenNebula's own implementation: ``foreign_relay.py BRIDGE PORT``.

It has the title of the bridge's relay, and listens on the service port. Prints ``ready`` when it does.
"""

from __future__ import annotations

import socket
import sys

import setproctitle

from tproxy.addresses import SERVICE_ADDRESS
from tproxy.names import BridgeNames

bridge, port = sys.argv[1:]
setproctitle.setproctitle(BridgeNames(bridge).relay_title)
with socket.create_server((SERVICE_ADDRESS, int(port))) as listening:
    print("ready", flush=True)
    listening.accept()[0].sendall(b"theirs")
