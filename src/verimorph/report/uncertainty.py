"""What the page says about the error of a registration: verdict, bound, volumes; the words are those of ``explain``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from verimorph.image import Image
from verimorph.report.facts import Fact, number
from verimorph.report.survey import Survey
from verimorph.uncertainty import words
from verimorph.uncertainty.maps import values_at

TWO_LABELS = math.log(2)
"""Entropy where two labels are equally likely, nats: the end of the colour bar of label uncertainty."""


@dataclass(frozen=True)
class VolumeRow:
    """Volume of one moved label and the interval around it, ml; start and width of its bar, per cent of the track."""

    label: int
    volume: float
    low: float
    high: float
    relative: float
    bar: tuple[float, float] | None


@dataclass(frozen=True)
class Sureness:
    """Everything about the error that the page shows as words and numbers."""

    verdict: str
    advice: str
    reasons: str
    probability: str
    level: str
    meaning: str
    limits: str
    broken: str
    calibration: str
    calibrated_for: str
    facts: list[Fact]
    volumes: list[VolumeRow]
    bar_half_percent: float
    labels: bool


def gather(registration: Any, survey: Survey) -> Sureness | None:
    """Collect what is known about the error of a registration; ``None`` where nothing is.

    Parameters
    ----------
    registration
        A finished ``Registration``; its ``uncertainty`` may be ``None``.
    survey
        Its coarse lattice.
    """
    found = registration.uncertainty
    if found is None:
        return None
    measured = (registration.metrics or {}).get("uncertainty") or {}
    inside = survey.points[survey.foreground.ravel()]
    bounds, spread = known_values(found.error_mm, inside), known_values(found.displacement_std, inside)
    level = f"{100 * found.level:g} %"
    median, high = measured.get("median_mm"), measured.get("p95_mm")
    facts = [
        Fact("Error bound, median", number(_percentile(bounds, 50) if median is None else median), "mm", "", "anatomy"),
        Fact(
            "Error bound, 95th percentile",
            number(_percentile(bounds, 95) if high is None else high),
            "mm",
            "",
            "the least certain twentieth of the anatomy has more",
        ),
        Fact("Displacement spread, median", number(_percentile(spread, 50)), "mm", "", "one deviation; no bound"),
    ]
    if found.reference_away_mm is not None:
        away = number(found.reference_away_mm)
        facts.append(Fact("Way to a registration by the defaults, median", away, "mm", "", "it is a part of the bound"))
    volumes, half = _volume_rows(found.volumes)
    return Sureness(
        found.verdict,
        words.ADVICE.get(found.verdict, ""),
        found.reasons,
        "" if found.probability is None else words.percent(found.probability),
        level,
        words.meaning(found.level),
        words.LIMITS,
        words.BROKEN if found.verdict == "fail" else "",
        found.calibration,
        found.calibrated_for,
        facts,
        volumes,
        half,
        found.label_uncertainty is not None,
    )


def known_values(image: Image, points: Float[ndarray, "n d"]) -> Float[ndarray, " m"]:
    """Values of a map at world points, mm; places without one are left out."""
    values = values_at(image, points)
    return values[np.isfinite(values)]


def scale_mm(bounds: Float[ndarray, " n"]) -> float:
    """Upper end of the colour bar: the 98th percentile rounded up to half a millimetre."""
    return max(0.5, float(np.ceil(2 * _percentile(bounds, 98)) / 2)) if bounds.size else 0.5


def _percentile(values: ndarray, percent: float) -> float:
    return float(np.percentile(values, percent)) if values.size else float("nan")


def _volume_rows(volumes: dict[Any, dict[str, float]]) -> tuple[list[VolumeRow], float]:
    """The table, and half the width of its bars in per cent of a volume (at most 100)."""
    ends = {int(n): (row["volume_ml"], row["low_ml"], row["high_ml"]) for n, row in volumes.items()}
    apart = [max(abs(low / v - 1), abs(high / v - 1)) for v, low, high in ends.values() if v > 0]
    half = float(np.clip(max(apart, default=0.0), 0.01, 1.0))
    rows = []
    for label, (volume, low, high) in sorted(ends.items()):
        known = volume > 0
        # Small and large structures side by side: each bar is relative to its own volume, which is in the middle.
        left, right = (
            float(np.clip(50 + 50 * (end / volume - 1) / half, 0, 100)) if known else 0 for end in (low, high)
        )
        relative = 100 * (high - low) / volume if known else float("nan")
        rows.append(VolumeRow(label, volume, low, high, relative, (left, right - left) if known else None))
    return rows, 100 * half
