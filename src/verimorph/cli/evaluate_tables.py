"""Tables that ``verimorph evaluate`` prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from verimorph.evaluate.output import MODE_NOTES, format_number, measure_name

if TYPE_CHECKING:
    from verimorph.evaluate.cohort import Cohort

_WAYS = {"forward": "fixed to moving and back", "backward": "moving to fixed and back"}


def print_pair(metrics: dict[str, Any], *, names: dict[int, str] | None = None, per_label: bool = False) -> None:
    """Print the measures of one pair, and what was left out of them."""
    console = Console(highlight=False)
    unit = metrics["unit"]
    if "labels" in metrics:
        _print_labels(console, metrics["labels"], names or {}, per_label)
    if "landmarks" in metrics:
        found = metrics["landmarks"][f"tre_{unit}"]
        stages = [stage for stage in ("identity", "initial", "registered") if stage in found]
        table = _table(f"Landmark error, {found[stages[0]]['n']} landmarks ({unit})", "", *stages)
        for name, key in (("mean", "mean"), ("median", "median"), ("95 %", "p95"), ("largest", "max")):
            table.add_row(name, *[format_number(found[stage][key]) for stage in stages])
        console.print(table)
    if "jacobian" in metrics:
        _print_jacobian(console, metrics, unit)
    if f"inverse_consistency_{unit}" in metrics:
        table = _table(f"Inverse consistency ({unit})", "", "mean", "95 %", "largest", "points", "left out")
        for way, row in metrics[f"inverse_consistency_{unit}"].items():
            numbers = [format_number(row[key]) for key in ("mean", "p95", "max")]
            table.add_row(_WAYS[way], *numbers, str(row["n"]), f"{100 * row['excluded_fraction']:.1f} %")
        console.print(table)


def _print_labels(console: Console, labels: dict[str, Any], names: dict[int, str], per_label: bool) -> None:
    table = _table(f"Labels, {labels['n_labels']} in both images", "", "mean", "std", "median")
    for measure, mean in labels["mean"].items():
        name, unit = measure_name(measure)
        row = [format_number(value) for value in (mean, labels["std"][measure], labels["median"][measure])]
        table.add_row(f"{name}{f' ({unit})' if unit else ''}", *row)
    if "initial" in labels:
        table.add_row("Dice before registration", format_number(labels["initial"]["mean"]["dice"]), "", "")
    console.print(table)
    only = labels["labels_not_in_both"]
    for side in ("fixed", "moving"):
        if only[f"{side}_only"]:
            console.print(f"only in the {side} image, not scored: {_list(only[f'{side}_only'])}", soft_wrap=True)
    if labels["labels_lost"]:
        console.print(f"lost by the registration (Dice 0, no distance): {_list(labels['labels_lost'])}", soft_wrap=True)
    unknown = [int(n) for n in labels["per_label"] if names and int(n) not in names]
    if unknown:
        console.print(f"unknown to the table of names: {_list(unknown)}", soft_wrap=True)
    if per_label:
        columns = list(labels["mean"])
        table = _table("Per label", "label", *[measure_name(column)[0] for column in columns])
        for label, row in labels["per_label"].items():
            title = f"{label} {names.get(int(label), '')}".strip()
            table.add_row(title, *[format_number(row[column]) for column in columns])
        console.print(table)


def _print_jacobian(console: Console, metrics: dict[str, Any], unit: str) -> None:
    found = metrics["jacobian"]
    table = _table(f"Jacobian determinant, {found['voxels']} voxels", "", "")
    table.add_row(
        "folding voxels (det J <= 0)", f"{found['folding_voxels']} ({format_number(found['folding_percent'])} %)"
    )
    if "non_diffeomorphic" in metrics:
        folds = metrics["non_diffeomorphic"]
        dimension = next(key for key in folds if key[:-1] == unit)
        kind = "volume" if dimension.endswith("3") else "area"
        text = f"{format_number(folds['percent'])} % ({format_number(folds[dimension])} {unit}^{dimension[-1]})"
        table.add_row(f"non-diffeomorphic {kind}", text)
    table.add_row("standard deviation of log det J", format_number(found["sd_log_jacobian"]))
    table.add_row("smallest, largest", f"{format_number(found['min'])}, {format_number(found['max'])}")
    table.add_row(
        "1 %, 99 %", f"{format_number(found['quantiles']['0.01'])}, {format_number(found['quantiles']['0.99'])}"
    )
    console.print(table)


def print_cohort(cohort: Cohort, output: Path | None) -> None:
    """Print the summary of many pairs, the comparison, what was wrong, and where the files are."""
    console = Console(highlight=False)
    console.print(MODE_NOTES[cohort.mode], style="dim")
    table = _table(
        f"{cohort.task}: {len(cohort.cases)} pairs", "measure", "method", "mean", "95 % interval", "median", "n"
    )
    for n, row in enumerate(summary := cohort.summary()):
        name, unit = measure_name(row["measure"])
        first = n == 0 or summary[n - 1]["measure"] != row["measure"]
        interval = f"{format_number(row['ci95_low'])} to {format_number(row['ci95_high'])}"
        title = f"{name}{f' ({unit})' if unit else ''}" if first else ""
        table.add_row(
            title, row["method"], format_number(row["mean"]), interval, format_number(row["median"]), str(row["n"])
        )
    console.print(table)
    rows = [row for row in cohort.comparison() if row["better"]]
    if len(cohort.methods) > 1:
        table = _table("Differences with p < 0.05 (Wilcoxon, Holm)", "measure", "better", "than", "by", "effect", "p")
        for row in rows:
            other = row["first"] if row["better"] == row["second"] else row["second"]
            numbers = (
                format_number(abs(row["mean_difference"])),
                f"{abs(row['effect_size']):.2f}",
                f"{row['p_holm']:.2g}",
            )
            table.add_row(measure_name(row["measure"])[0], row["better"], other, *numbers)
        if rows:
            console.print(table)
        else:
            console.print("no difference between methods has a corrected p below 0.05")
    for kind, count in cohort.problem_counts().items():
        these = [p for p in cohort.problems if p.kind == kind]
        shown = "; ".join(" ".join(filter(None, (p.method, p.case))) + ": " + p.what for p in these[:3])
        more = f"; and {count - 3} more" if count > 3 else ""
        console.print(f"[yellow]{kind}[/yellow] ({count}): {shown}{more}", soft_wrap=True)
    if output is not None:
        console.print(f"tables, JSON and page in {output} (open {output / 'report.html'})", soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="bold", header_style="dim")
    for n, column in enumerate(columns):
        table.add_column(column, justify="left" if n == 0 or column in ("method", "better", "than") else "right")
    return table


def _list(labels: list[int]) -> str:
    text = ", ".join(map(str, labels[:20]))
    return f"{text} and {len(labels) - 20} more" if len(labels) > 20 else text
