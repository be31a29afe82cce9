"""The measured facts of a registration, gathered for the page: numbers with units, nothing judged.

Numbers that the registration already measured (``metrics``) are taken from there, so that the page and ``metrics.json``
agree; what is missing is measured here on a coarse lattice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy import ndarray

from verimorph.evaluate.overlap import count_overlap
from verimorph.report.survey import Survey


@dataclass(frozen=True)
class Fact:
    """One line of the summary.

    Parameters
    ----------
    name, value, unit
        What was measured, and the number as text.
    before
        The same before registration, as text; empty where that makes no sense.
    note
        How it was measured, in one phrase.
    """

    name: str
    value: str
    unit: str = ""
    before: str = ""
    note: str = ""


@dataclass(frozen=True)
class LabelRow:
    """Overlap of one label: Dice before and after (``None`` where the label is not in both images)."""

    label: int
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Facts:
    """Everything measured that the page shows as numbers."""

    summary: list[Fact]
    labels: list[LabelRow] = field(default_factory=list)
    landmarks: list[dict[str, Any]] = field(default_factory=list)
    unit: str = "mm"


def number(value: float | int | None, digits: int = 3) -> str:
    """Write a number with ``digits`` significant digits, thousands unscientific; a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    places = max(0, digits - 1 - int(np.floor(np.log10(abs(value)))))
    return f"{value:,.{min(places, 6)}f}"


def gather(registration: Any, survey: Survey, before_labels: tuple[ndarray, ndarray] | None) -> Facts:
    """Collect the facts of a registration.

    Parameters
    ----------
    registration
        A finished ``Registration``.
    survey
        Its coarse lattice.
    before_labels
        Fixed labels and moving labels where the header places them, on one lattice; ``None`` without labels.
    """
    metrics = registration.metrics or {}
    unit = metrics.get("unit", "mm")
    unit = "voxels" if unit == "voxel" else unit
    summary = _true_error(metrics, unit)
    labels = _labels(registration, metrics, before_labels)
    if labels:
        both = [row for row in labels if row.after is not None]
        mean_after = np.mean([row.after for row in both]) if both else None
        started = [row.before for row in both if row.before is not None]
        summary.append(
            Fact(
                "Dice",
                number(mean_after),
                "",
                number(np.mean(started)) if started else "",
                f"mean of {len(both)} labels",
            )
        )
    landmarks, fact = _landmarks(registration, metrics, unit)
    summary += fact
    summary += _similarity(metrics, survey) + _motion(registration, survey, unit) + _regularity(registration, metrics)
    summary += _consistency(metrics, unit)
    seconds = float(sum(registration.timings.values()))
    summary.append(Fact("Time", number(seconds), "s", "", "all stages, before writing"))
    if registration.peak_memory_mb:
        summary.append(Fact("Peak memory", number(registration.peak_memory_mb / 1000), "GB"))
    return Facts(summary, labels, landmarks, unit)


def _true_error(metrics: dict, unit: str) -> list[Fact]:
    truth = metrics.get("true_error")
    if not truth:
        return []
    after, before = truth["registered"], truth.get("identity", {})
    return [
        Fact("True error, mean", number(after["mean"]), unit, number(before.get("mean")), truth.get("where", "")),
        Fact(
            "True error, 95 %",
            number(after["p95"]),
            unit,
            number(before.get("p95")),
            f"largest {number(after['max'])} {unit}",
        ),
    ]


def _similarity(metrics: dict, survey: Survey) -> list[Fact]:
    """What the registration measured, and the two measures of the coarse lattice."""
    coarse = survey.similarity()
    measured = {
        "local correlation": {**coarse["local_correlation"], "note": "squared, coarse lattice; 1 is best"},
        "mutual information": {**coarse["mutual_information_bits"], "unit": "bits", "note": "more is better"},
    }
    measured |= {name.replace("_", " "): found for name, found in (metrics.get("similarity") or {}).items()}
    return [
        Fact(
            name[:1].upper() + name[1:],
            number(found.get("after")),
            found.get("unit", ""),
            number(found.get("before")),
            found.get("note", ""),
        )
        for name, found in measured.items()
    ]


def _motion(registration: Any, survey: Survey, unit: str) -> list[Fact]:
    """Displacement of the anatomy: by the whole transform, and by its part that is not linear."""
    points = survey.points[survey.foreground.ravel()]
    mapped = registration.transform.map_points(points)
    moved = np.linalg.norm(mapped - points, axis=1)
    design = np.hstack([points, np.ones((len(points), 1))])
    facts = [
        Fact(
            "Displacement, mean",
            number(float(moved.mean())),
            unit,
            "",
            f"of the anatomy; largest {number(float(moved.max()))} {unit}",
        )
    ]
    if len(points) > 2 * design.shape[1]:
        linear, *_ = np.linalg.lstsq(design, mapped, rcond=None)
        bent = np.linalg.norm(mapped - design @ linear, axis=1)
        if bent.max() > 1e-3:
            facts.append(
                Fact(
                    "Bending, mean",
                    number(float(bent.mean())),
                    unit,
                    "",
                    f"beyond the best affine; largest {number(float(bent.max()))} {unit}",
                )
            )
    return facts


def _regularity(registration: Any, metrics: dict) -> list[Fact]:
    found = metrics.get("jacobian") or {}
    folding, spread = found.get("folding_percent"), found.get("sd_log_jacobian")
    if folding is None or spread is None:
        determinants = registration.jacobian.array
        folding = 100.0 * float((determinants <= 0).mean())
        positive = determinants[determinants > 0]
        spread = float(np.log(positive, dtype=np.float64).std()) if positive.size else None
    return [
        Fact("Folding", number(folding) if folding else "0", "%", "", "voxels with det J ≤ 0"),
        Fact("SD of log J", number(spread), "", "", "spread of the volume change"),
    ]


def _consistency(metrics: dict, unit: str) -> list[Fact]:
    found = metrics.get("inverse_consistency_mm", metrics.get("inverse_consistency_voxel"))
    if not found:
        return []
    there = found["forward"]
    note = f"forward and back, largest {number(there.get('max'))} {unit}"
    return [Fact("Inverse error, mean", number(there.get("mean")), unit, "", note)]


def _labels(registration: Any, metrics: dict, before: tuple[ndarray, ndarray] | None) -> list[LabelRow]:
    fixed, moved = registration.fixed_labels, registration.moved_labels
    if fixed is None or moved is None:
        return []
    per_label = (metrics.get("labels") or {}).get("per_label")
    if per_label:
        after = {int(label): row.get("dice") for label, row in per_label.items()}
    else:
        counts = count_overlap(fixed.array, moved.array)
        after = {
            int(n): float(d) if a and b else None
            for n, d, a, b in zip(counts.labels, counts.dice(), counts.fixed, counts.moved, strict=True)
        }
    started: dict[int, float] = {}
    if before is not None:
        counts = count_overlap(*before, sorted(after))
        started = {int(n): float(d) for n, d in zip(counts.labels, counts.dice(), strict=True)}
    rows = [LabelRow(n, started.get(n), d) for n, d in after.items()]
    return sorted(rows, key=lambda row: (row.after is None, row.after if row.after is not None else 0, row.label))


def _landmarks(registration: Any, metrics: dict, unit: str) -> tuple[list[dict[str, Any]], list[Fact]]:
    fixed, moving = registration.fixed_landmarks, registration.moving_landmarks
    if fixed is None or moving is None or len(fixed.coordinates) == 0:
        return [], []
    before = np.linalg.norm(fixed.coordinates - moving.coordinates, axis=1)
    after = np.linalg.norm(registration.transform.map_points(fixed.coordinates) - moving.coordinates, axis=1)
    names = fixed.names or [str(i + 1) for i in range(len(after))]
    rows = [{"name": n, "before": float(b), "after": float(a)} for n, b, a in zip(names, before, after, strict=True)]
    rows.sort(key=lambda row: -row["after"])
    note = f"{len(rows)} landmarks, largest {number(float(after.max()))} {unit}"
    return rows, [Fact("Landmark error, mean", number(float(after.mean())), unit, number(float(before.mean())), note)]
