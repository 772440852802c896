"""Ask the daemon to retire, as ``tproxy restart`` does, and start no other one."""

from __future__ import annotations

from tproxy.daemon import client

client.ask({"op": "drain"}, 5.0)
