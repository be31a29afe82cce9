"""Writes what was found about an uncertainty: ``uncertainty.json`` and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verimorph.io.documents import write_json
from verimorph.io.safe import writing_folder
from verimorph.uncertainty import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JSON_FILE = "uncertainty.json"
#: Names of what is ranked, for people.
RANKED = {"bound": "error bound", "displacement_std": "displacement spread", "label_uncertainty": "label uncertainty"}
GAUSSIAN = "displacement spread, as if Gaussian"


def write_scores(document: dict[str, Any], folder: str | PathLike, *, names: Mapping[int, str] | None = None) -> Path:
    """Write a document and its pictures into a folder, all or nothing.

    Parameters
    ----------
    document
        JSON-able: ``level`` and those of ``transform``, ``landmarks``, ``labels`` that there are
        (`verimorph.uncertainty.against`).
    folder
        Made if missing.
    names
        Names of labels, for the bars.
    """
    with writing_folder(folder) as beside:
        write_json(document, beside / JSON_FILE)
        for name, figure in figures(document, names=names):
            plots.save(figure, beside / f"{name}.png")
    return Path(folder)


def figures(document: dict[str, Any], *, names: Mapping[int, str] | None = None) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure of every picture that a document has the numbers for."""
    level = float(document["level"])
    if found := document.get("transform"):
        curves = found["curves"]
        lines = {GAUSSIAN: _columns(curves["gaussian"], "level", "coverage")} if "gaussian" in curves else {}
        scaled = _columns(curves["scaled"], "factor", "coverage")
        yield "coverage", plots.coverage_figure(lines, point=(level, found["coverage"]), scaled=scaled)
        yield (
            "reliability",
            plots.reliability_figure(
                *_columns(curves["reliability"], "bound_mm", "error_mm", "n"),
                predicted_name="error bound, mm",
                observed_name=f"error that {100 * level:g} % stay below, mm",
            ),
        )
        yield from _order("sparsification", found["curves"], found["ranking"], "mean error")
        if found.get("regions"):
            yield "regions", plots.region_figure(found["regions"], level=level, names=names)
    if found := document.get("landmarks"):
        bounds, errors = ([row[key] for row in found["per_landmark"]] for key in ("bound_mm", "error_mm"))
        yield "landmarks", plots.landmark_figure(bounds, errors, level=level)
    if found := document.get("labels"):
        if found["band"]["n"]:
            yield (
                "label_reliability",
                plots.reliability_figure(
                    *_columns(found["curves"]["reliability"], "uncertainty", "wrong_percent", "n"),
                    predicted_name="label uncertainty, nats",
                    observed_name=f"wrong voxels within {found['band_mm']:g} mm of a label, %",
                    diagonal=False,
                ),
            )
            ranking = {"label_uncertainty": found["band"]}
            yield from _order("label_sparsification", found["curves"], ranking, "share of wrong voxels")
        if any(row["auroc"] is not None for row in found["per_label"]):
            yield "labels", plots.label_figure(found["per_label"], names=names)


def _columns(curve: Mapping[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(curve[name] for name in names)


def _order(name: str, curves: dict[str, Any], ranking: dict[str, Any], error_name: str) -> Iterator[tuple[str, Figure]]:
    order = dict(curves["sparsification"])
    removed, oracle = order.pop("removed"), order.pop("oracle")
    if oracle[0] is None:  # nothing is wrong, nothing to take out
        return
    lines = {RANKED[key]: values for key, values in order.items()}
    areas = {RANKED[key]: row["ause"] for key, row in ranking.items() if row["ause"] is not None}
    yield name, plots.sparsification_figure(removed, oracle, lines, areas=areas, error_name=error_name)
