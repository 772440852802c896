"""The results of a run: every figure of every peer, and what failed. Kept as JSON."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

# A point of a growth curve: the size (``n``) and the figures measured there.
Point = dict[str, float]


@dataclass
class Results:
    about: list[str] = field(default_factory=list)  # machine, versions, number and length of rounds
    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # by peer, then by axis
    growth: dict[str, dict[str, list[Point]]] = field(default_factory=dict)  # by curve, then by peer
    problems: list[str] = field(default_factory=list)

    def add(self, peer: str, figures: Mapping[str, float]) -> None:
        for axis, figure in figures.items():
            self.figures.setdefault(peer, {}).setdefault(axis, []).append(figure)

    def add_point(self, curve: str, peer: str, point: Point) -> None:
        self.growth.setdefault(curve, {}).setdefault(peer, []).append(point)

    def failed(self, peer: str, what: str, problem: Exception) -> None:
        line = f"{peer}: {what}: {problem or type(problem).__name__}"
        print(line, file=sys.stderr)
        self.problems.append(line)

    def median(self, peer: str, axis: str) -> float | None:
        measured = self.figures.get(peer, {}).get(axis)
        return statistics.median(measured) if measured else None

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        return cls(**json.loads(path.read_text()))
