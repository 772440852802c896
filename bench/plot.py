"""Draws the growth curves as SVG files."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from bench.results import Results

# A panel for each key of a curve, with its title.
PANELS = {
    "p50": "p50 of a request, µs",
    "rate": "requests/s, 64 connections",
    "new rate": "new connections/s",
    "memory": "memory, MB",
    "hook warm": "hook up, warm, ms",
    "reload": "reload, ms",
}

X_TITLES = {"connections": "open, idle connections", "bridges": "bridges", "services": "services per bridge"}


def draw(results: Results, folder: Path) -> None:
    """Write one file for each curve into the folder."""
    matplotlib.rc("svg", hashsalt="tproxy", fonttype="none")  # equal results make equal files
    folder.mkdir(parents=True, exist_ok=True)
    for curve, peers in results.growth.items():
        keys = [key for key in PANELS if any(key in point for points in peers.values() for point in points)]
        rows = -(-len(keys) // 2)
        figure = Figure(figsize=(9, 2.8 * rows), layout="tight")
        panels = figure.subplots(rows, 2, squeeze=False).flatten()
        for panel, key in zip(panels, keys, strict=False):
            for peer, points in peers.items():
                there = [(point["n"], point[key]) for point in points if key in point]
                panel.plot(*zip(*there, strict=True), "o-", label=peer)
            panel.set_title(PANELS[key], fontsize=10)
            panel.set_xlabel(X_TITLES[curve], fontsize=9)
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
            panel.legend(fontsize=8)
        for unused in panels[len(keys) :]:
            unused.set_visible(False)
        figure.savefig(folder / f"{curve}.svg", metadata={"Date": None})
