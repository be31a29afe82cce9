"""Pictures of an uncertainty beside the truth: coverage, reliability, sparsification, regions.

Each function takes plain arrays and returns a matplotlib figure; no window, no global state. `save` writes one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from verimorph.io.safe import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values: TypeAlias = Shaped[ndarray, "..."] | Sequence[float]
"""Numbers of a curve: an array, or the list that a JSON file holds."""

_INK, _QUIET, _RULE = "#1b1d21", "#5b6068", "#dfe0e2"
#: Colours told apart without red and green, first the one that is judged.
_COLOURS = ("#0f6f85", "#e07a10", "#7a4fa3", "#5b6068")
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": _QUIET,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.7,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "legend.frameon": False,
}
#: Where a legend covers no bar.
_ABOVE: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.995), "ncols": 2, "borderaxespad": 0.2}
MOST_REGIONS = 40
_DPI = 150


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the style of this file and leave that of the session alone."""

    @wraps(draw)
    def styled(*given: Any, **named: Any) -> Figure:
        from matplotlib import rc_context

        with rc_context(_STYLE):
            return draw(*given, **named)

    return styled


@_styled
def coverage_figure(
    curves: Mapping[str, tuple[Values, Values]],
    *,
    point: tuple[float, float] | None = None,
    scaled: tuple[Values, Values] | None = None,
) -> Figure:
    """Draw coverage over level, with the diagonal that is right.

    Parameters
    ----------
    curves
        Name to (levels, coverages), both in [0, 1].
    point
        Level and coverage of the bound where it is known at one level only.
    scaled
        Factors and the coverage of the bound times each: a second panel.
    """
    panels = [name for name, given in (("levels", curves or point), ("scaled", scaled)) if given]
    figure, axes = _sheet(4.2 * len(panels), 3.7, 1, len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        axis.set_ylim(0, 1.02)
        axis.set_ylabel("share of voxels with error ≤ bound")
        _percent(axis.yaxis)
        if panel == "levels":
            axis.plot([0, 1], [0, 1], color=_QUIET, linewidth=1, linestyle=(0, (4, 3)), label="right")
            first = 1 if point is not None else 0
            for n, (name, (levels, found)) in enumerate(curves.items(), first):
                axis.plot(levels, found, color=_COLOURS[n % 4], marker="o", markersize=3, label=name)
            if point is not None:
                label = f"bound: {100 * point[1]:.1f} % at {100 * point[0]:g} %"
                axis.plot(*point, "D", color=_COLOURS[0], markersize=7, label=label, zorder=5)
            axis.set(xlim=(0, 1), xlabel="promised level", title="Coverage")
            _percent(axis.xaxis)
            axis.legend(loc="best")
        elif scaled is not None:
            axis.plot(*scaled, color=_COLOURS[0])
            axis.axvline(1, color=_QUIET, linewidth=1)
            if point is not None:
                axis.axhline(point[0], color=_QUIET, linewidth=1, linestyle=(0, (4, 3)))
                axis.plot(1, point[1], "D", color=_COLOURS[0], markersize=7, zorder=5)
            axis.set(xlim=(0, np.max(scaled[0])), xlabel="bound multiplied by", title="What another size would cover")
    return figure


@_styled
def reliability_figure(
    predicted: Values,
    observed: Values,
    counts: Values,
    *,
    predicted_name: str,
    observed_name: str,
    diagonal: bool = True,
    title: str = "Reliability",
) -> Figure:
    """Draw what came true over what was predicted, one dot a bin, with the share of voxels in each bin below.

    Parameters
    ----------
    predicted, observed, counts
        Means of the bins and how many each holds (`verimorph.uncertainty.metrics.Reliability`).
    predicted_name, observed_name
        Names of the axes, with units.
    diagonal
        Whether both axes mean the same number, so that equality is right.
    title
        Heading.
    """
    figure, (upper, lower) = _sheet(4.4, 4.6, 2, 1, ratios=(4, 1), share=True)
    x, y, n = (np.asarray(values, float) for values in (predicted, observed, counts))
    if diagonal and x.size:
        most = 1.05 * max(float(np.nanmax(x)), float(np.nanmax(y)))
        upper.plot([0, most], [0, most], color=_QUIET, linewidth=1, linestyle=(0, (4, 3)))
        upper.set(xlim=(0, most), ylim=(0, most))
        at = 0.03 * most, 0.95 * most
        upper.text(*at, "above the line:\npromised too much", color=_QUIET, fontsize=8, va="top")
    upper.plot(x, y, color=_COLOURS[0], marker="o", markersize=4)
    upper.set(ylabel=observed_name, title=title)
    if not diagonal:
        upper.set_ylim(bottom=0)
    wide = _widths(x)
    lower.bar(x, 100 * n / max(n.sum(), 1), width=wide, color=_COLOURS[0], alpha=0.55, linewidth=0)
    lower.set(xlabel=predicted_name, ylabel="% of\nvoxels")
    lower.grid(axis="x", visible=False)
    return figure


@_styled
def sparsification_figure(
    removed: Values,
    oracle: Values,
    curves: Mapping[str, Values],
    *,
    areas: Mapping[str, float] | None = None,
    error_name: str = "mean error",
) -> Figure:
    """Draw the mean error of what is left over the share taken out, between the oracle and chance.

    Parameters
    ----------
    removed, oracle, curves
        As in `verimorph.uncertainty.metrics.Sparsification`; one curve an uncertainty.
    areas
        AUSE of each curve, for the legend.
    error_name
        What the error is, in words.
    """
    figure, (axis,) = _sheet(4.8, 3.7, 1, 1)
    axis.axhline(1, color=_QUIET, linewidth=1, linestyle=(0, (1, 2)), label="at random")
    for n, (name, curve) in enumerate(curves.items()):
        area = f", AUSE {areas[name]:.3f}" if areas and np.isfinite(areas.get(name, np.nan)) else ""
        axis.plot(removed, curve, color=_COLOURS[n % 4], label=f"{name}{area}")
    axis.plot(removed, oracle, color=_INK, linewidth=1.2, linestyle=(0, (4, 3)), label="by true error (oracle)")
    axis.set(
        xlim=(0, 1),
        xlabel="most uncertain voxels taken out",
        ylabel=f"{error_name} of the rest / of all",
        title="Sparsification",
    )
    axis.set_ylim(bottom=0)
    _percent(axis.xaxis)
    axis.legend(loc="best")
    return figure


@_styled
def region_figure(rows: Sequence[Mapping[str, Any]], *, level: float, names: Mapping[int, str] | None = None) -> Figure:
    """Draw the coverage of every region, and its median bound over its median error, as bars.

    Parameters
    ----------
    rows
        What `verimorph.uncertainty.metrics.group_coverage` returns; of many, those farthest from the level.
    level
        Level of the bound.
    names
        Names of the regions.
    """
    kept = sorted(rows, key=lambda row: -abs(row["gap"]))[:MOST_REGIONS]
    kept = sorted(kept, key=lambda row: row["coverage"])
    labels = [f"{row['group']} {(names or {}).get(row['group'], '')}".strip() for row in kept]
    figure, (left, right) = _sheet(8.4, 1.2 + 0.24 * max(len(kept), 3), 1, 2)
    place = np.arange(len(kept))
    held = np.array([row["coverage"] for row in kept])
    colours = [_COLOURS[1] if value < level else _COLOURS[0] for value in held]
    left.barh(place, held, color=colours, height=0.7)
    left.axvline(level, color=_INK, linewidth=1)
    left.set(yticks=place, yticklabels=labels, xlim=(0, 1), title=f"Coverage, promised {100 * level:g} %")
    left.set_xlabel("share of voxels with error ≤ bound")
    _percent(left.xaxis)
    bound, error = (np.array([row[key] for row in kept], float) for key in ("median_bound", "median_error"))
    right.barh(place - 0.18, bound, color=_COLOURS[0], height=0.34, label="bound")
    right.barh(place + 0.18, error, color=_COLOURS[3], height=0.34, label="true error")
    right.set(yticks=place, yticklabels=[], xlabel="median, mm", title="Size")
    right.legend(**_ABOVE)
    for axis in (left, right):
        axis.set_ylim(len(kept) - 0.5, -0.5)  # the worst on top
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0, labelcolor=_INK)
    if len(kept) < len(rows):
        figure.supxlabel(f"the {len(kept)} of {len(rows)} farthest from the level", fontsize=8, color=_QUIET)
    return figure


@_styled
def label_figure(rows: Sequence[Mapping[str, Any]], *, names: Mapping[int, str] | None = None) -> Figure:
    """Draw for every label how well its uncertainty finds its wrong voxels (AUROC) as bars.

    Parameters
    ----------
    rows
        ``per_label`` of `verimorph.uncertainty.scoring.score_label_uncertainty`; of many, the lowest.
    names
        Names of the labels.
    """
    known = [row for row in rows if row["auroc"] is not None and np.isfinite(row["auroc"])]
    kept = sorted(known, key=lambda row: row["auroc"])[:MOST_REGIONS]
    labels = [f"{row['label']} {(names or {}).get(row['label'], '')}".strip() for row in kept]
    figure, (axis,) = _sheet(4.8, 1.2 + 0.24 * max(len(kept), 3), 1, 1)
    place = np.arange(len(kept))
    axis.barh(place, [row["auroc"] for row in kept], color=_COLOURS[0], height=0.7)
    axis.axvline(0.5, color=_INK, linewidth=1, label="chance")
    axis.set(yticks=place, yticklabels=labels, xlim=(0, 1), xlabel="AUROC of wrong voxels, near the label")
    axis.set_title("Label errors found")
    axis.legend(**_ABOVE)
    axis.set_ylim(len(kept) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0, labelcolor=_INK)
    if len(kept) < len(known):
        figure.supxlabel(f"the lowest {len(kept)} of {len(known)}", fontsize=8, color=_QUIET)
    return figure


@_styled
def landmark_figure(bounds_mm: Values, errors_mm: Values, *, level: float) -> Figure:
    """Draw the error of every landmark over the bound there; what lies above the line is not covered."""
    figure, (axis,) = _sheet(4.6, 4.2, 1, 1)
    bounds, errors = np.asarray(bounds_mm, float), np.asarray(errors_mm, float)
    most = 1.06 * max(float(bounds.max(initial=0)), float(errors.max(initial=0)), 1e-6)
    held = errors <= bounds
    axis.plot([0, most], [0, most], color=_QUIET, linewidth=1, linestyle=(0, (4, 3)))
    for members, colour, name in ((held, _COLOURS[0], "covered"), (~held, _COLOURS[1], "not covered")):
        axis.plot(
            bounds[members], errors[members], "o", color=colour, markersize=5, label=f"{name}: {int(members.sum())}"
        )
    axis.set(
        xlim=(0, most),
        ylim=(0, most),
        xlabel=f"error bound at the {100 * level:g} % level, mm",
        ylabel="landmark error, mm",
        title="Landmarks",
    )
    axis.legend(loc="upper left")
    return figure


def save(figure: Figure, path: str | PathLike) -> Path:
    """Write a figure (.png, .svg, .pdf) beside its place and rename it."""
    from matplotlib import rc_context

    target = Path(path)
    with replacing(target) as beside, rc_context({"svg.hashsalt": "verimorph"}):
        figure.savefig(beside, dpi=_DPI, facecolor="white", metadata=_no_date(target))
    return target


def _no_date(path: Path) -> dict[str, Any] | None:
    """Pictures of the same numbers are the same bytes."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())


def _sheet(
    width: float, height: float, rows: int, columns: int, *, ratios: Sequence[float] | None = None, share: bool = False
) -> tuple[Figure, list[Axes]]:
    # A figure of its own, not pyplot's: pyplot keeps every figure alive and may open a window.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, height_ratios=ratios)
    return figure, list(axes.flat)


def _percent(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _widths(middles: ndarray) -> ndarray:
    """Widths of bars around the means of bins, so that neighbours just touch or keep apart."""
    if middles.size < 2:
        return np.full(middles.size, 0.1 * max(float(np.abs(middles).max(initial=0)), 1.0))
    gaps = np.diff(middles)
    return 0.9 * np.minimum(np.append(gaps, gaps[-1]), np.insert(gaps, 0, gaps[0]))
