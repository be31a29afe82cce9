"""The scores of several methods on many pairs, and what is drawn from them: summaries, comparisons, robustness."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from verimorph.evaluate.robustness import (
    robust30_hardest_entries,
    robust30_hardest_landmarks,
    robust30_quantile,
)
from verimorph.evaluate.statistics import compare_methods, summarise

IDENTITY = "identity"
MODES = ("honest", "challenge")


@dataclass(frozen=True)
class Problem:
    """Something that was not as it should be. ``kind`` is what is counted."""

    kind: str
    method: str
    case: str
    what: str


@dataclass
class Cohort:
    """Scores of every method on every case.

    Attributes
    ----------
    task, mode
        Name of the task; ``"honest"`` or ``"challenge"``.
    methods, cases
        Names, in order.
    rows
        One a method and case: ``method``, ``case``, ``status`` (``ok``, ``missing``, ``failed``) and the measures.
    label_rows
        One a method, case and label.
    landmark_errors
        Method and case to the error of every landmark, in order.
    problems
        What was missing, extra, on another grid, unknown.
    folders
        Method to the folder its results came from.
    """

    task: str
    mode: str
    methods: list[str]
    cases: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    label_rows: list[dict[str, Any]] = field(default_factory=list)
    landmark_errors: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)

    @property
    def measures(self) -> list[str]:
        """Measures in the order of their first appearance."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return [name for name in names if name not in ("method", "case", "status")]

    def table(self) -> dict[str, dict[str, Float[ndarray, " cases"]]]:
        """Measure to method to one value a case (NaN where there is none), cases in order."""
        position = {name: n for n, name in enumerate(self.cases)}
        values = {m: {k: np.full(len(self.cases), np.nan) for k in self.methods} for m in self.measures}
        for row in self.rows:
            for measure in self.measures:
                values[measure][row["method"]][position[row["case"]]] = row.get(measure, np.nan)
        return values

    def summary(self) -> list[dict[str, Any]]:
        """One row a measure and method: `statistics.summarise` over the cases."""
        return [
            {"measure": measure, "method": method} | summarise(values)
            for measure, methods in self.table().items()
            for method, values in methods.items()
        ]

    def label_summary(self) -> list[dict[str, Any]]:
        """One row a label, measure and method, over the cases that have the label."""
        keys = ("label", "name", "measure", "method")
        measures = list(dict.fromkeys(n for row in self.label_rows for n in row if n not in (*keys, "case")))
        grouped: dict[tuple, list[float]] = {}
        for row in self.label_rows:
            for measure in measures:
                key = (row["label"], row["name"], measure, row["method"])
                grouped.setdefault(key, []).append(row.get(measure, np.nan))
        ordered = sorted(grouped.items(), key=lambda item: (item[0][0], measures.index(item[0][2])))
        return [dict(zip(keys, key, strict=True)) | summarise(np.array(values, float)) for key, values in ordered]

    def comparison(self) -> list[dict[str, Any]]:
        """Every two methods on every measure: `statistics.compare_methods`."""
        return compare_methods(self.table())

    def robustness(self) -> list[dict[str, Any]]:
        """The three published figures called "robustness 30", for every method for which they can be had.

        The two of the hardest entries take hardness from the ``identity`` rows, so they need those.
        """
        found = []
        for measure, methods in self.table().items():
            stem = measure.split("_")[0]
            if measure not in ("dice", "sdlogj_plus3") and not measure.startswith(("hd95", "tre_mean", "tre_mm")):
                continue
            for method, values in methods.items():
                kept = values[~np.isnan(values)]
                if kept.size:
                    value = robust30_quantile(kept, measure=stem)
                    found.append({"definition": "quantile", "measure": measure, "method": method, "value": value})
        if IDENTITY not in self.methods:
            return found
        dice = {(row["method"], row["case"], row["label"]): row["dice"] for row in self.label_rows if "dice" in row}
        keys = sorted({key[1:] for key in dice})
        initial = np.array([dice.get((IDENTITY, *key), np.nan) for key in keys])
        for method in self.methods:
            entries = np.array([dice.get((method, *key), np.nan) for key in keys])
            if np.isfinite(entries + initial).any():
                value = robust30_hardest_entries(entries, initial)
                found.append({"definition": "hardest entries", "measure": "dice", "method": method, "value": value})
            hardest = [
                robust30_hardest_landmarks(np.array(errors), np.array(self.landmark_errors[IDENTITY, case]))
                for (own, case), errors in self.landmark_errors.items()
                if own == method and len(errors) >= 30 and (IDENTITY, case) in self.landmark_errors
            ]
            if hardest:
                value = float(np.mean(hardest))
                found.append({"definition": "hardest landmarks", "measure": "tre", "method": method, "value": value})
        return found

    def problem_counts(self) -> dict[str, int]:
        """Kind of problem to how often it occurred, most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())
