"""Convergence curves as inline SVG, drawn in the page's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

WIDTH, HEIGHT = 340.0, 150.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 8.0, 22.0, 30.0
SEPARATE = ("start",)
"""Stages whose values belong to candidates beside each other: drawn as dots."""


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
    """One stage: its levels side by side over all iterations of the stage, objective upwards.

    ``tried`` tells that the values are of separate candidates, not of steps towards one.
    """

    stage: str
    segments: list[Segment]
    ticks: list[tuple[float, str]]
    iterations: int
    summary: str
    tried: bool = False


def convergence(history: Sequence[Any]) -> list[Chart]:
    """Turn the solver's steps (``stage, level, iteration, value``) into one chart a stage.

    Values of different levels are of different images (coarser or finer), so the curve is broken between levels.
    """
    charts = []
    for stage, steps in groupby(history, key=lambda step: step.stage):
        runs = [
            (level, np.array([s.value for s in run], float)) for level, run in groupby(steps, key=lambda s: s.level)
        ]
        values = np.concatenate([run for _, run in runs])
        finite = values[np.isfinite(values)]
        if finite.size == 0:
            continue
        ticks = _ticks(float(finite.min()), float(finite.max()))
        low, high = min(ticks[0], finite.min()), max(ticks[-1], finite.max())
        across = (WIDTH - LEFT - RIGHT) / len(values)
        upwards = (HEIGHT - TOP - BOTTOM) / max(high - low, 1e-300)
        segments, done = [], 0
        for level, run in runs:
            x = LEFT + across * (done + np.arange(len(run)) + 0.5)
            y = TOP + upwards * (high - run)
            points = [f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True) if np.isfinite(b)]
            path = "".join(f"M{p}h0" for p in points) if stage in SEPARATE else _curve(points)
            start, end = LEFT + across * done, LEFT + across * (done + len(run))
            name = f"1/{level:g}" if level != 1 else "full"
            segments.append(Segment(name, path, start, end, f"{run[0]:.4g}", f"{run[-1]:.4g}", len(run)))
            done += len(run)
        step = ticks[1] - ticks[0] if len(ticks) > 1 else 1e-3
        digits = max(0, int(np.ceil(-np.log10(step) - 1e-9)) + (f"{step:.1e}"[2] != "0"))
        marks = [(float(TOP + upwards * (high - t)), f"{t:.{digits}f}") for t in ticks]
        summary = "; ".join(f"level {s.level}: {s.iterations} iterations, {s.first} to {s.last}" for s in segments)
        charts.append(Chart(str(stage), segments, marks, len(values), summary, stage in SEPARATE))
    return charts


def _curve(points: list[str]) -> str:
    return f"M{points[0]}L{' '.join(points[1:] or points)}" if points else ""


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that cover ``[low, high]``."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    base = 10.0 ** np.floor(np.log10(raw))
    step = next(m * base for m in (1, 2, 2.5, 5, 10) if m * base >= raw)
    return [float(k * step) for k in range(int(np.floor(low / step)), int(np.ceil(high / step)) + 1)]
