"""Draws docs/img/metrics.svg (``make picture``) from the answers of a real Prometheus.

It scrapes a host with three services for a minute and a half. One of them loses its endpoint for a while, and
another one is asked for more than a limit allows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import matplotlib
from matplotlib.figure import Figure

from tproxy.errors import ProcessError
from tproxy.lab.hypervisor import PATIENCE, Hypervisor

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/img/metrics.svg"
ENDPOINT = "10.11.12.13"
API, PORT = "127.0.0.1:9090", 9469

# Name, service port, connections a second, bytes of each answer.
SERVICES = (("packages", 8080, 12, 200_000), ("metadata", 8081, 25, 2_000), ("logs", 8082, 6, 500))

TPROXY = "tproxy_watch: false\ntproxy:\n" + "".join(
    f"- {{name: {name}, remote_addr: {ENDPOINT}, remote_port: {port}"
    f"{', max_connections_per_guest: 2' if name == 'metadata' else ''}}}\n"
    for name, port, _, _ in SERVICES
)

PROMETHEUS = f"""\
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
scrape_configs: [{{job_name: tproxy, static_configs: [{{targets: ["127.0.0.1:{PORT}"]}}]}}]
"""

# Of each panel: title, unit, expressions with their labels; {label} is one of the series.
_CONNECT = "sum by (le) (rate(tproxy_connect_duration_seconds_bucket[5s]))"
PANELS: dict[tuple[str, str], dict[str, str]] = {
    ("New connections", "1/s"): {
        "{service}": "sum by (service) (rate(tproxy_connections_accepted_total[5s]))"
    },
    ("How connections ended", "1/s"): {
        "{outcome}": "sum by (outcome) (rate(tproxy_connections_ended_total[5s])) > 0"
    },
    ("Time until the endpoint answers", "ms"): {
        "p50": f"1000 * histogram_quantile(0.5, {_CONNECT})",
        "p99": f"1000 * histogram_quantile(0.99, {_CONNECT})",
    },
    ("Bytes to guests", "MB/s"): {
        "{service}": 'sum by (service) (rate(tproxy_transferred_bytes_total{direction="to_guest"}[5s])) / 1e6'
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.picture")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--output", type=Path, default=PICTURE)
    options = parser.parse_args()
    with Hypervisor() as host:
        host.add_bridge("br0")
        guest = host.add_guest("guest", "br0")
        given = (sys.executable, str(ROOT / "bench/given.py"))
        endpoints = {name: host.add_endpoint(ENDPOINT, port, program=given) for name, port, _, _ in SERVICES}
        config = host.write("/run/tproxy.yaml", TPROXY)
        host.tproxy("hook", "up", "--bridge", "br0", "--network", "tenant7", "--config", config)
        host.popen(sys.executable, "-m", "tproxy", "metrics", "--listen", f"127.0.0.1:{PORT}")
        host.popen(
            *("prometheus", f"--config.file={host.write('/run/prometheus.yml', PROMETHEUS)}"),
            *("--storage.tsdb.path=/run/prometheus", f"--web.listen-address={API}", "--log.level=error"),
        )
        _await_prometheus(host)
        began = time.time()
        services = [f"{port}:{rate}:{size}" for _, port, rate, size in SERVICES]
        traffic = guest.popen(sys.executable, "-m", "bench.traffic", str(options.seconds), *services)
        time.sleep(options.seconds * 0.4)
        endpoints["logs"].terminate()
        time.sleep(options.seconds * 0.2)
        host.add_endpoint(ENDPOINT, SERVICES[2][1], program=given)
        traffic.wait()
        answers = _ask(host, [text for panel in PANELS.values() for text in panel.values()], began)
    draw(answers, began, options.output)


def _await_prometheus(host: Hypervisor) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if _get(host, f"/api/v1/query?{urlencode({'query': 'tproxy_up'})}")["result"]:
                return
        except ProcessError:
            pass
        time.sleep(0.5)
    sys.exit("Prometheus scrapes nothing")


def _ask(host: Hypervisor, expressions: list[str], began: float) -> dict[str, list[Any]]:
    """Return the series of each expression, from the beginning of the traffic until now."""
    times = {"start": began, "end": time.time(), "step": 1}
    return {
        each: _get(host, f"/api/v1/query_range?{urlencode({'query': each, **times})}")["result"]
        for each in expressions
    }


def _get(host: Hypervisor, path: str) -> Any:
    code = "import sys, urllib.request as u; sys.stdout.write(u.urlopen(sys.argv[1]).read().decode())"
    return json.loads(host.run(sys.executable, "-c", code, f"http://{API}{path}").stdout)["data"]


def draw(answers: dict[str, list[Any]], began: float, path: Path) -> None:
    matplotlib.rc("svg", hashsalt="tproxy", fonttype="none")
    figure = Figure(figsize=(10, 5.6), layout="tight")
    for place, ((title, unit), texts) in enumerate(PANELS.items(), 1):
        panel = figure.add_subplot(2, 2, place)
        for label, text in texts.items():
            for series in answers[text]:
                points = [(when - began, float(value)) for when, value in series["values"] if value != "NaN"]
                panel.plot(*zip(*points, strict=True), label=label.format(**series["metric"]), linewidth=1.3)
        panel.set_title(f"{title}, {unit}", fontsize=10)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
        panel.set_xlabel("seconds", fontsize=8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
