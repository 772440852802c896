"""metrics: prints metrics for Prometheus once, or serves them."""

from __future__ import annotations

import grp
import os

import click

from tproxy.cli.examples import example
from tproxy.console import require_root
from tproxy.errors import TproxyError


@click.command(
    epilog=example(
        "tproxy metrics >/var/lib/prometheus/node-exporter/tproxy.prom",
        "tproxy metrics --listen /run/tproxy-metrics/metrics.sock --listen 127.0.0.1:9469",
    )
)
@click.option(
    "--listen",
    "places",
    metavar="PLACE",
    multiple=True,
    help="Serve them at this path of a UNIX socket, or at ADDRESS:PORT; may be given several times.",
)
@click.option("--group", metavar="NAME", help="The group that may connect to UNIX sockets, besides root.")
def metrics(places: tuple[str, ...], group: str | None) -> None:
    """Print metrics for Prometheus, once, or serve them.

    Serving takes a process of its own, which has no rights. Neither daemon nor workers wait for it.
    """
    require_root()
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise TproxyError(
            "metrics need the Python package prometheus-client: "
            "apt install python3-prometheus-client, or pip install 'one-tproxy[metrics]'"
        ) from None
    if places:
        from tproxy.metrics import process

        process.serve(list(places), _number_of(group))
    from tproxy.datapath.counters import View
    from tproxy.metrics import rendering, source
    from tproxy.metrics.facts import Facts

    answer, processes, fds = source.read("")
    snapshot = Facts().take(answer, [View(fd) for fd in fds], processes)
    for fd in fds:
        os.close(fd)
    click.echo(rendering.render(snapshot).decode(), nl=False)


def _number_of(group: str | None) -> int | None:
    if group is None:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise TproxyError(f"there is no group {group}") from None
