"""All keys of the configuration file, as they are declared (``tproxy.options``).

Imported only where YAML is read, or where something is made of the declarations.
"""

from __future__ import annotations

from collections.abc import Mapping

from tproxy.config.routes import RouteEntry
from tproxy.config.services import Config, Entry, WatchedBridge
from tproxy.config.tunnels import TunnelEntry
from tproxy.model import Service
from tproxy.options import Declared, declared

PREFIX = "tproxy_"

Keys = Mapping[str, Declared]

SERVICE: Keys = declared(Service)
ENTRY: Keys = declared(Entry) | {**SERVICE}
BRIDGE: Keys = declared(WatchedBridge)
ROUTE: Keys = declared(RouteEntry)
TUNNEL: Keys = declared(TunnelEntry)
# Keys at the top level that stand for an option of all entries.
GENERAL: Keys = {
    PREFIX + key: each._replace(
        key=PREFIX + key, option=each.option._replace(help=f"`{key}` of all entries that do not have it")
    )
    for key, each in SERVICE.items()
    if each.option.general
}
FILE: Keys = declared(Config, PREFIX) | {**GENERAL}
# Keys at the top level that other packages read (``inward.names``).
ELSEWHERE = ("tproxy_zones",)
