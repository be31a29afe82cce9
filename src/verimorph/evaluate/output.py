"""Write the scores of a cohort: tables as CSV, everything as JSON, and a page with box plots."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from verimorph import __version__
from verimorph.evaluate.boxplot import box_plot
from verimorph.evaluate.challenge import aggregate
from verimorph.evaluate.cohort import Cohort
from verimorph.evaluate.statistics import RESAMPLES, direction
from verimorph.io.documents import without_nan, write_json
from verimorph.io.safe import writing_folder

_UNITS = {"mm": "mm", "voxel": "voxels", "percent": "%"}
_NAMES = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "volume_similarity": "Volume difference, relative",
    "hd95": "Hausdorff distance, 95 %",
    "hd100": "Hausdorff distance",
    "assd": "Mean surface distance",
    "tre_mean": "Landmark error, mean",
    "tre_median": "Landmark error, median",
    "tre_p95": "Landmark error, 95 %",
    "tre_max": "Landmark error, largest",
    "tre": "Landmark error, mean",
    "folding": "Folding (det J ≤ 0)",
    "sd_log_jacobian": "Std. of log det J",
    "sdlogj_plus3": "SDlogJ with +3",
    "num_foldings": "num_foldings (always 0)",
    "ndv": "Non-diffeomorphic volume",
    "inverse_consistency_forward_mean": "Inverse consistency, forward, mean",
    "inverse_consistency_forward_p95": "Inverse consistency, forward, 95 %",
    "inverse_consistency_backward_mean": "Inverse consistency, backward, mean",
    "inverse_consistency_backward_p95": "Inverse consistency, backward, 95 %",
}
MODE_NOTES = {
    "honest": "Honest mode: distances in millimetres, true logarithm of the Jacobian determinant, true folding.",
    "challenge": "Challenge mode: the numbers of the Learn2Reg evaluator, quirks included. HD95 is in voxels, SDlogJ "
    "has 3 added to the determinant, the fold count is always 0. Do not compare them with honest numbers.",
}


def measure_name(measure: str) -> tuple[str, str]:
    """Return what people call a measure, and its unit (empty for a plain number).

    >>> measure_name("hd95_mm")
    ('Hausdorff distance, 95 %', 'mm')
    """
    stem, _, unit = measure.rpartition("_")
    if measure.startswith("surface_dice_"):
        tolerance = measure.removeprefix("surface_dice_")
        return f"Surface Dice within {tolerance.replace('mm', ' mm').replace('voxel', ' voxel')}", ""
    if unit in _UNITS and measure not in _NAMES:
        return _NAMES.get(stem, stem.replace("_", " ")), _UNITS[unit]
    return _NAMES.get(measure, measure.replace("_", " ")), ""


def as_document(cohort: Cohort, *, per_label: bool = True) -> dict[str, Any]:
    """Everything about a cohort as one JSON-able dictionary (missing values ``None``)."""
    return without_nan(
        {
            "verimorph": __version__,
            "task": cohort.task,
            "mode": cohort.mode,
            "mode_note": MODE_NOTES[cohort.mode],
            "methods": cohort.methods,
            "folders": cohort.folders,
            "n_pairs": len(cohort.cases),
            "bootstrap": {"resamples": RESAMPLES, "seed": 0, "interval": "percentile, 95 %, of the mean"},
            "test": "Wilcoxon signed-rank, two-sided, Holm-corrected within a measure",
            "effect_size": "matched-pairs rank-biserial correlation",
            "problem_counts": cohort.problem_counts(),
            "problems": [vars(problem) for problem in cohort.problems],
            "summary": cohort.summary(),
            "comparison": cohort.comparison(),
            "robustness_30": cohort.robustness(),
            "learn2reg_aggregates": _aggregates(cohort),
            "pairs": cohort.rows,
            "labels": cohort.label_summary() if per_label else [],
        }
    )


COHORT_FILES = (
    *("pairs.csv", "labels.csv", "summary.csv", "comparison.csv", "robustness.csv", "problems.csv"),
    *("results.json", "report.html"),
)
"""What scores of many pairs may write into their folder."""


def write_cohort(cohort: Cohort, folder: str | Path) -> Path:
    """Write ``pairs``, ``labels``, ``summary``, ``comparison``, ``robustness`` as CSV, ``results.json`` and the page.

    All or nothing: files appear in the folder when every one is written. ``problems.csv`` is there if there are any.
    """
    with writing_folder(folder) as beside:
        _write_csv(beside / "pairs.csv", cohort.rows, ["method", "case", "status", *cohort.measures])
        if cohort.label_rows:
            _write_csv(beside / "labels.csv", cohort.label_rows)
        _write_csv(beside / "summary.csv", cohort.summary() + cohort.label_summary())
        _write_csv(beside / "comparison.csv", cohort.comparison())
        if robustness := cohort.robustness():
            _write_csv(beside / "robustness.csv", robustness)
        if cohort.problems:
            _write_csv(beside / "problems.csv", [vars(problem) for problem in cohort.problems])
        write_json(as_document(cohort), beside / "results.json")
        (beside / "report.html").write_text(render(cohort), encoding="utf-8")
    return Path(folder)


def render(cohort: Cohort) -> str:
    """Return the page of a cohort as HTML: one file, no network, dark and light."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = format_number
    text = resources.files("verimorph.evaluate").joinpath("page.html.j2").read_text(encoding="utf-8")
    table, summary, comparison = cohort.table(), cohort.summary(), cohort.comparison()
    measures = []
    for measure in cohort.measures:
        name, unit = measure_name(measure)
        measures.append(
            {
                "key": measure,
                "name": name,
                "unit": unit,
                "direction": direction(measure),
                "plot": box_plot(table[measure], cohort.cases),
                "summary": [row for row in summary if row["measure"] == measure],
                "comparison": [row for row in comparison if row["measure"] == measure],
            }
        )
    return environment.from_string(text).render(
        cohort=cohort,
        measures=measures,
        mode_note=MODE_NOTES[cohort.mode],
        problem_counts=cohort.problem_counts(),
        labels=_label_table(cohort),
        robustness=cohort.robustness(),
        measure_name=measure_name,
        resamples=RESAMPLES,
        version=__version__,
    )


def format_number(value: Any) -> str:
    """Write a number for people: four significant digits, a dash where there is none.

    >>> [format_number(v) for v in (0.63281, 12, 1e-7, float("nan"), True)]
    ['0.6328', '12', '1e-07', '–', 'True']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _aggregates(cohort: Cohort) -> dict[str, Any]:
    """The evaluator's own aggregates (population deviation, its "30"), for methods with a result for every pair."""
    if cohort.mode != "challenge":
        return {}
    names = {"hd95_voxel": "hd95", "tre_mm": "tre", "sdlogj_plus3": "sdlogj"}
    found = {}
    for method in cohort.methods:
        rows = [row for row in cohort.rows if row["method"] == method]
        if all(row["status"] == "ok" for row in rows):
            cases = [{names.get(m, m): {"mean": row.get(m)} for m in cohort.measures} for row in rows]
            found[method] = aggregate(cases)
    return found


def _label_table(cohort: Cohort) -> dict[str, Any]:
    """Mean Dice of every label under every method, one row a label."""
    rows: dict[int, dict[str, Any]] = {}
    for row in cohort.label_summary():
        if row["measure"] == "dice":
            found = rows.setdefault(row["label"], {"label": row["label"], "name": row["name"], "methods": {}})
            found["methods"][row["method"]] = row
    return {"rows": list(rows.values()), "named": any(row["name"] for row in rows.values())}


def _write_csv(path: Path, rows: Iterable[dict[str, Any]], columns: list[str] | None = None) -> None:
    rows = list(rows)
    names = columns or list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, names, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({n: "" if isinstance(v, float) and math.isnan(v) else v for n, v in row.items()})
