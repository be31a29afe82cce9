"""Geometry of horizontal box plots, one box a method, for inline SVG that takes its colours from the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

WIDTH, LEFT, RIGHT, TOP, ROW, BOTTOM = 520.0, 118.0, 22.0, 6.0, 34.0, 24.0


@dataclass(frozen=True)
class Box:
    """One method: quartiles, whiskers, mean, and every case, in pixels; ``title`` says the numbers in words."""

    method: str
    colour: int
    middle: float
    quartiles: tuple[float, float, float]
    whiskers: tuple[float, float]
    mean: float
    points: list[tuple[float, float, str]]
    title: str


@dataclass(frozen=True)
class Plot:
    """All boxes of one measure, with the ticks of their common axis."""

    boxes: list[Box]
    ticks: list[tuple[float, str]]
    width: float
    height: float


def box_plot(values: Mapping[str, Shaped[ndarray, "..."]], cases: list[str]) -> Plot | None:
    """Lay out the box plots of one measure.

    Boxes run from the lower to the upper quartile with a line at the median; whiskers reach the farthest case within
    1.5 box lengths (Tukey); every case is a dot, the mean a diamond. Infinite and missing values are left out.

    Parameters
    ----------
    values
        Method to one value a case.
    cases
        Names of the cases, for the tooltips of the dots.

    Returns
    -------
    The plot; ``None`` if no value is finite.
    """
    finite = {method: np.asarray(v, float) for method, v in values.items()}
    everything = np.concatenate([v[np.isfinite(v)] for v in finite.values()]) if finite else np.zeros(0)
    if everything.size == 0:
        return None
    ticks = nice_ticks(float(everything.min()), float(everything.max()))
    low, high = min(ticks[0], everything.min()), max(ticks[-1], everything.max())

    def across(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / max(high - low, 1e-300)

    boxes = []
    for row, (method, own) in enumerate(finite.items()):
        known = np.flatnonzero(np.isfinite(own))
        if known.size == 0:
            continue
        kept = own[known]
        q1, q2, q3 = np.quantile(kept, [0.25, 0.5, 0.75])
        reach = 1.5 * (q3 - q1)
        inside = kept[(kept >= q1 - reach) & (kept <= q3 + reach)]
        middle = TOP + ROW * (row + 0.5)
        # dots are spread by a fixed pattern, not by chance: the same page every time
        points = [(across(own[n]), middle + ROW * 0.28 * math.sin(2.4 * n), f"{cases[n]}: {own[n]:.4g}") for n in known]
        boxes.append(
            Box(
                method,
                row % 8,
                middle,
                (across(q1), across(q2), across(q3)),
                (across(inside.min()), across(inside.max())),
                across(kept.mean()),
                points,
                f"{method}: median {q2:.4g}, quartiles {q1:.4g} to {q3:.4g}, mean {kept.mean():.4g}, {kept.size} pairs",
            )
        )
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    digits = next((n for n in range(12) if abs(round(step, n) - step) < 1e-6 * step), 12)
    labels = [(across(t), f"{t:.{digits}f}" if digits < 6 else f"{t:.3g}") for t in ticks]
    return Plot(boxes, labels, WIDTH, TOP + ROW * len(finite) + BOTTOM)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers that span ``low`` to ``high``.

    >>> nice_ticks(0.31, 0.79)
    [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    """
    if low == high == 0:  # no folding at all: a share has no negative half
        high = 1.0
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-12):
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]
