"""What a bound and a verdict mean, in plain words: the same in the report, in ``explain`` and in tables."""

from __future__ import annotations

from typing import Any

#: What to do about each verdict.
ADVICE = {
    "pass": "nothing suspicious was found",
    "review": "look at it before you use it",
    "fail": "probably broken; do not use it as it is",
}
LIMITS = (
    "It is a promise about many voxels together, not about any single one, "
    "and none at all about images of another kind."
)


BROKEN = "It was learned on registrations that are not broken; where the verdict is fail, do not rely on it."


def meaning(level: float, *, calibrated: bool = True) -> str:
    """Say what a bound at ``level`` means; of one from elsewhere no calibration set is known.

    >>> meaning(0.9)
    'At 90 of 100 voxels the true error is at most the bound there, for images like those of the calibration set.'
    >>> meaning(0.95, calibrated=False)
    'At 95 of 100 voxels the true error is at most the bound there.'
    """
    images = ", for images like those of the calibration set" if calibrated else ""
    return f"At {100 * level:g} of 100 voxels the true error is at most the bound there{images}."


def verdict_line(verdict: str, reasons: str) -> str:
    """Return a verdict with what to do and why.

    >>> verdict_line("review", "low similarity")
    'review: look at it before you use it (low similarity)'
    """
    advice = ADVICE.get(verdict, "")
    line = f"{verdict}: {advice}" if advice else verdict
    return f"{line} ({reasons})" if reasons else line


def in_words(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Turn ``verdict`` and ``uncertainty`` of a ``metrics.json`` into labelled lines; what is missing has no line.

    Parameters
    ----------
    metrics
        ``verdict``: ``verdict``, ``reasons``, ``probability``; ``uncertainty``: ``level``, ``calibration``,
        ``calibrated_for``, ``median_mm``, ``p95_mm``, ``reference_away_mm``.
    """
    lines = []
    verdict, bound = metrics.get("verdict") or {}, metrics.get("uncertainty") or {}
    if verdict:
        lines.append(("Verdict", verdict_line(verdict["verdict"], verdict.get("reasons", ""))))
        if (probability := verdict.get("probability")) is not None:
            lines.append(("", f"likeness to registrations broken on purpose: {percent(probability)}"))
    if bound:
        level = bound.get("level")
        parts = ["level not known (no metrics.json beside the map)" if level is None else f"{100 * level:g} % level"]
        if bound.get("median_mm") is not None:
            where = "every voxel" if level is None else "the anatomy"
            parts.append(f"median {bound['median_mm']:.3g} mm, 95th percentile {bound['p95_mm']:.3g} mm over {where}")
        lines.append(("Error bound", "; ".join(parts)))
        if (away := bound.get("reference_away_mm")) is not None:
            lines.append(("", f"of it, the way to a registration by the defaults: median {away:.3g} mm"))
        if level is not None:
            lines += [("Meaning", meaning(level)), ("", LIMITS)]
            if verdict.get("verdict") == "fail":
                lines.append(("", BROKEN))
        for label, key in (("Calibrated on", "calibration"), ("Holds for", "calibrated_for")):
            if bound.get(key):
                lines.append((label, str(bound[key])))
    return lines


def percent(share: float) -> str:
    """Write a probability as per cent; never 0 or 100, which no estimate is.

    >>> percent(0.123), percent(0.0001), percent(0.9999)
    ('12 %', 'below 1 %', 'above 99 %')
    """
    if share < 0.01:
        return "below 1 %"
    return "above 99 %" if share > 0.99 else f"{100 * share:.0f} %"
