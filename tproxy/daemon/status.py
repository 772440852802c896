"""What the daemon says for ``tproxy status`` (docs/contract.md, Output of `status`)."""

from __future__ import annotations

import os

from tproxy import __version__
from tproxy.daemon.catalog import Catalog
from tproxy.daemon.client import Json
from tproxy.daemon.relays import Relays
from tproxy.daemon.route_status import route_status
from tproxy.daemon.worker_link import Key
from tproxy.daemon.workers import Workers
from tproxy.datapath.counts import CAUSES, Counts, EndpointState


def status(catalog: Catalog, workers: Workers, relays: Relays, started: float) -> Json:
    """Return all that the daemon knows now; ``started`` is in seconds since the epoch."""
    counts, states = workers.counts(), workers.states()
    return {
        "version": __version__,
        "pid": os.getpid(),
        "started": started,
        "connections": workers.open,
        "max_connections": workers.max_connections,
        "workers": workers.report(),
        "bridges": {
            bridge: _bridge(bridge, catalog, relays, counts, states) for bridge in sorted(catalog.bridges)
        },
    }


def _bridge(
    bridge: str,
    catalog: Catalog,
    relays: Relays,
    counts: dict[Key, Counts],
    states: dict[str, EndpointState],
) -> Json:
    orders = catalog.orders(bridge)
    networks = tuple(orders)
    services = []
    for service in catalog.services(bridge):
        counted = counts.get((bridge, service.key), Counts())
        problem = relays.problem(bridge, service.key.listener)
        services.append(
            {
                "port": service.port,
                "protocol": service.key.protocol,
                "address": service.key.address,
                "order": service.key.network,
                "networks": [
                    {"name": each.name, "id": each.id}
                    for each, order in orders.items()
                    if service.key.network in (0, order)
                ],
                "name": service.name,
                "endpoint": str(service.endpoint),
                "endpoints": [
                    _endpoint(str(each), states.get(service.name_of(each))) for each in service.candidates
                ],
                "listening": not problem,
                "problem": problem,
                "open": counted.open,
                "total": counted.total,
                "bytes_to_endpoint": counted.to_endpoint,
                "bytes_to_guest": counted.to_guest,
                "last_error": counted.last_error or (f"cannot listen: {problem}" if problem else ""),
                "last_error_at": counted.last_error_at or None,
                "limited": dict(zip(CAUSES, counted.limited, strict=True)),
                "options": dict(zip(service._fields[2:-1], service[2:-1], strict=True)),
            }
        )
    return {
        "network": networks[0].name,
        "network_id": networks[0].id,
        "networks": [{"name": each.name, "id": each.id} for each in networks],
        "relay": relays.pid(bridge),
        "services": services,
        "routes": [
            route_status(each, counts.get((bridge, each.service.key), Counts()))
            for each in catalog.routes(bridge)
        ],
    }


def _endpoint(endpoint: str, state: EndpointState | None) -> Json:
    if state is None:
        return {"endpoint": endpoint, "state": "not tried", "since": None, "why": ""}
    word = "failed" if state.failed else "good"
    return {"endpoint": endpoint, "state": word, "since": state.since, "why": state.why}
