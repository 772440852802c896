"""What ``tproxy status`` shows of a route."""

from __future__ import annotations

from tproxy.daemon.client import Json
from tproxy.datapath.counts import CAUSES, Counts
from tproxy.routes import NOWHERE, Route


def route_status(route: Route, counted: Counts) -> Json:
    """Return the object for one route."""
    return {
        "id": route.id,
        "guest": "" if route.endpoint.address == NOWHERE else str(route.endpoint),
        "mac": route.mac,
        "bridge_port": route.place,
        "expires": route.expires or None,
        "open": counted.open,
        "total": counted.total,
        "bytes_to_guest": counted.to_endpoint,
        "bytes_to_client": counted.to_guest,
        "last_error": counted.last_error,
        "last_error_at": counted.last_error_at or None,
        "limited": dict(zip(CAUSES, counted.limited, strict=True)),
    }
