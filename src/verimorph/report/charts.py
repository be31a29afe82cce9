"""Convergence curves as inline SVG, drawn in the page's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

WIDTH, HEIGHT = 340.0, 150.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 8.0, 22.0, 30.0


@dataclass(frozen=True)
class Segment:
    """The curve of one level within a stage."""

    level: str
    path: str
    start: float
    end: float
    first: str
    last: str
    iterations: int


@dataclass(frozen=True)
class Chart:
    """One stage: its levels side by side over all iterations of the stage, objective upwards."""

    stage: str
    segments: list[Segment]
    ticks: list[tuple[float, str]]
    iterations: int
    summary: str


def convergence(history: Sequence[Any]) -> list[Chart]:
    """Turn the solver's steps (``stage, level, iteration, value``) into one chart a stage.

    Values of different levels are of different images (coarser or finer), so the curve is broken between levels.
    """
    charts = []
    for stage, steps in groupby(history, key=lambda step: step.stage):
        runs = [(level, [s.value for s in run]) for level, run in groupby(steps, key=lambda step: step.level)]
        values = np.array([v for _, run in runs for v in run], float)
        finite = values[np.isfinite(values)]
        if finite.size == 0:
            continue
        ticks = _ticks(float(finite.min()), float(finite.max()))
        low, high = min(ticks[0], finite.min()), max(ticks[-1], finite.max())
        count = len(values)
        digits = max(0, int(-np.floor(np.log10(ticks[1] - ticks[0] + 1e-300)))) if len(ticks) > 1 else 3

        def horizontal(position: float, count: int = count) -> float:
            return LEFT + (WIDTH - LEFT - RIGHT) * position / max(count, 1)

        def vertical(value: float, low: float = low, high: float = high) -> float:
            return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / max(high - low, 1e-300)

        segments, done = [], 0
        for level, run in runs:
            points = [
                f"{horizontal(done + i + 0.5):.1f},{vertical(v):.1f}" for i, v in enumerate(run) if np.isfinite(v)
            ]
            path = f"M{points[0]}L{' '.join(points[1:] or points)}" if points else ""
            name = f"1/{level}" if level != 1 else "full"
            ends = (f"{run[0]:.4g}", f"{run[-1]:.4g}")
            segments.append(Segment(name, path, horizontal(done), horizontal(done + len(run)), *ends, len(run)))
            done += len(run)
        summary = "; ".join(f"level {s.level}: {s.iterations} iterations, {s.first} to {s.last}" for s in segments)
        marks = [(vertical(t), f"{t:.{digits}f}") for t in ticks]
        charts.append(Chart(str(stage), segments, marks, count, summary))
    return charts


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that cover ``[low, high]``."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    base = 10.0 ** np.floor(np.log10(raw))
    step = next(m * base for m in (1, 2, 2.5, 5, 10) if m * base >= raw)
    return [float(k * step) for k in range(int(np.floor(low / step)), int(np.ceil(high / step)) + 1)]
