"""Tables that ``verimorph evaluate`` prints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from verimorph.evaluate.output import MODE_NOTES, format_number, measure_name

if TYPE_CHECKING:
    from verimorph.evaluate.cohort import Cohort

_WAYS = {"forward": "fixed to moving and back", "backward": "moving to fixed and back"}
_SHORT = {"dice": "Dice", "jaccard": "Jaccard", "volume_similarity": "volume", "assd": "mean dist."}
_LEFT = ("method", "better", "than")


def print_pair(metrics: dict[str, Any], *, names: dict[int, str] | None = None, per_label: bool = False) -> None:
    """Print the measures of one pair, and what was left out of them."""
    console = _console()
    unit = metrics["unit"]
    if "labels" in metrics:
        _print_labels(console, metrics["labels"], names or {}, per_label)
    if "landmarks" in metrics:
        found = metrics["landmarks"][f"tre_{unit}"]
        stages = [stage for stage in ("identity", "initial", "registered") if stage in found]
        lines = (("mean", "mean"), ("median", "median"), ("95 %", "p95"), ("largest", "max"))
        rows = [(name, *[format_number(found[stage][key]) for stage in stages]) for name, key in lines]
        _print(console, f"Landmark error, {found[stages[0]]['n']} landmarks ({unit})", ("", *stages), rows)
    if "jacobian" in metrics:
        _print_jacobian(console, metrics, unit)
    if f"inverse_consistency_{unit}" in metrics:
        rows = [
            (
                _WAYS[way],
                *[format_number(row[key]) for key in ("mean", "p95", "max")],
                str(row["n"]),
                f"{100 * row['excluded_fraction']:.1f} %",
            )
            for way, row in metrics[f"inverse_consistency_{unit}"].items()
        ]
        columns = ("", "mean", "95 %", "largest", "points", "left out")
        _print(console, f"Inverse consistency ({unit})", columns, rows)


#: Regions farthest from the level that are printed without --per-label.
_REGIONS_SHOWN = 8
#: Smaller regions stray from the level by chance; they are printed with --per-label only.
_FEWEST_VOXELS = 100


def print_uncertainty(
    document: dict[str, Any],
    *,
    names: dict[int, str] | None = None,
    per_label: bool = False,
    output: Path | None = None,
) -> None:
    """Print how well an uncertainty fits the truth, and where the files are."""
    from verimorph.uncertainty.words import meaning

    console = _console()
    promise = f"{100 * document['level']:g} %"
    known = names or {}
    if "transform" in document or "landmarks" in document:
        promised = meaning(document["level"], calibrated=document["calibration"] is not None)
        console.print(f"promised: {promised}", style="dim", soft_wrap=True)
        for label, key in (("calibrated on", "calibration"), ("holds for", "calibrated_for")):
            if document[key]:
                console.print(f"{label}: {escape(document[key])}", style="dim", soft_wrap=True)
    if found := document.get("transform"):
        _print_bound(console, f"Error bound, {found['n']} voxels, {found['where']}", found, promise)
        _print_ranking(console, found["ranking"], found["large_error_mm"])
        if found.get("regions"):
            _print_regions(console, found["regions"], known, promise, per_label)
    if found := document.get("landmarks"):
        _print_bound(console, f"Error bound at {found['n']} landmarks", found, promise)
        if found["outside"]:
            console.print(f"landmarks outside the map, left out: {found['outside']}")
        _print_ranking(console, found["ranking"], found["large_error_mm"])
        if per_label:
            rows = [
                (
                    row["name"],
                    format_number(row["error_mm"]),
                    format_number(row["bound_mm"]),
                    "" if row["held"] else "no",
                )
                for row in found["per_landmark"]
            ]
            _print(console, "Per landmark", ("landmark", "error (mm)", "bound (mm)", "covered"), rows)
    if found := document.get("labels"):
        _print_label_uncertainty(console, found, known, per_label)
    if output is not None:
        console.print(f"JSON and pictures in {escape(str(output))}", soft_wrap=True)


def _print_bound(console: Console, title: str, found: dict[str, Any], promise: str) -> None:
    covered = _share(found["coverage"])
    if "coverage_interval" in found:
        low, high = found["coverage_interval"]
        covered += f" (95 % interval {_share(low)} to {_share(high)})"
    rows = [
        (f"error within the bound, {promise} promised", covered),
        (f"factor that makes it {promise} here", format_number(found["factor_for_level"])),
        (f"distance from {promise}, mean over sizes of bound", _share(found["conditional_coverage_gap"])),
        ("bound: median, 95 % (mm)", _two(found["bound_mm"], "median", "p95")),
        ("true error: median, 95 % (mm)", _two(found["error_mm"], "median", "p95")),
        ("median bound / median error", format_number(found["sharpness"])),
        (f"errors above {found['large_error_mm']:g} mm", f"{format_number(found['large_error_percent'])} %"),
    ]
    if spread := found.get("displacement_std"):
        rows.append(("displacement spread: ENCE", format_number(spread["ence"])))
    _print(console, title, ("", ""), rows)


def _print_ranking(console: Console, ranking: dict[str, Any], large_error_mm: float) -> None:
    from verimorph.uncertainty.output import RANKED

    keys = ("ause", "aurg", "spearman", "pearson", "auroc", "average_precision")
    columns = ("", "AUSE", "AURG", "Spearman", "Pearson", f"AUROC > {large_error_mm:g} mm", "avg. precision")
    rows = [(RANKED[name], *[format_number(row[key]) for key in keys]) for name, row in ranking.items()]
    _print(console, "Does it point at the errors", columns, rows)


def _print_regions(
    console: Console, regions: list[dict[str, Any]], names: dict[int, str], promise: str, all_of_them: bool
) -> None:
    large = [row for row in regions if row["n"] >= _FEWEST_VOXELS] or regions
    shown = regions if all_of_them else sorted(large, key=lambda row: -abs(row["gap"] or 0))[:_REGIONS_SHOWN]
    rows = [
        (
            f"{row['group']} {names.get(row['group'], '' if row['group'] else '(no label)')}".strip(),
            str(row["n"]),
            _share(row["coverage"]),
            *[format_number(row[key]) for key in ("factor_for_level", "median_bound", "median_error")],
        )
        for row in shown
    ]
    title = "Regions" if len(shown) == len(regions) else f"The {len(shown)} of {len(regions)} regions farthest from it"
    columns = ("label", "voxels", "covered", f"factor for {promise}", "bound (mm)", "error (mm)")
    _print(console, title, columns, rows)


def _print_label_uncertainty(console: Console, found: dict[str, Any], names: dict[int, str], per_label: bool) -> None:
    keys = ("wrong_percent", "spearman", "pearson", "auroc", "average_precision", "ause")
    columns = ("voxels", "wrong (%)", "Spearman", "Pearson", "AUROC", "avg. precision", "AUSE")
    near = f"within {found['band_mm']:g} mm of a label"
    rows = [
        (where, str(row["n"]), *[format_number(row[key]) for key in keys])
        for where, row in ((near, found["band"]), ("whole volume", found["whole"]))
    ]
    _print(console, f"Label uncertainty, {found['n_labels']} labels", ("", *columns), rows)
    if per_label:
        rows = [
            (
                f"{row['label']} {names.get(row['label'], '')}".strip(),
                str(row["n"]),
                *[format_number(row[k]) for k in keys],
            )
            for row in found["per_label"]
        ]
        _print(console, "Per label, near it", ("label", *columns), rows)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _two(row: dict[str, Any], first: str, second: str) -> str:
    return f"{format_number(row[first])}, {format_number(row[second])}"


#: Fewest pairs with which a signed-rank test can give a p below 0.05: 2^(1 - n).
_PAIRS_FOR_A_TEST = 6


def print_cohort(cohort: Cohort, output: Path | None) -> None:
    """Print the summary of many pairs, the comparison, what was wrong, and where the files are."""
    console = _console()
    console.print(MODE_NOTES[cohort.mode], style="dim", soft_wrap=True)
    rows: list[tuple[str, ...]] = []
    before = None
    for row in cohort.summary():
        ends = format_number(row["ci95_low"]), format_number(row["ci95_high"])
        interval = "–" if row["n"] == 0 else " to ".join(ends)
        numbers = format_number(row["mean"]), interval, format_number(row["median"]), str(row["n"])
        rows.append((_title(row["measure"]) if row["measure"] != before else "", row["method"], *numbers))
        before = row["measure"]
    columns = ("measure", "method", "mean", "95 % interval", "median", "n")
    _print(console, f"{cohort.task}: {len(cohort.cases)} pairs", columns, rows)
    if len(cohort.methods) > 1:
        _print_comparison(console, cohort)
    for kind, count in cohort.problem_counts().items():
        these = [p for p in cohort.problems if p.kind == kind][:3]
        shown = "; ".join(f"{' '.join(filter(None, (p.method, p.case)))}: {p.what}" for p in these)
        more = f"; and {count - 3} more" if count > 3 else ""
        console.print(f"[yellow]{kind}[/yellow] ({count}): {escape(shown + more)}", soft_wrap=True)
    if output is not None:
        page = escape(str(output / "report.html"))
        console.print(f"tables, JSON and page in {escape(str(output))} (open {page})", soft_wrap=True)


def _print_comparison(console: Console, cohort: Cohort) -> None:
    rows = []
    compared = cohort.comparison()
    for row in compared:
        if row["better"]:
            other = row["first"] if row["better"] == row["second"] else row["second"]
            by, effect = format_number(abs(row["mean_difference"])), f"{abs(row['effect_size']):.2f}"
            rows.append((_title(row["measure"]), row["better"], other, by, effect, f"{row['p_holm']:.2g}"))
    if rows:
        columns = ("measure", "better", "than", "by", "effect", "p")
        _print(console, "Differences with p < 0.05 (Wilcoxon signed-rank, Holm)", columns, rows)
    else:
        console.print("no difference between methods has a corrected p below 0.05")
        most = max((row["n"] for row in compared), default=0)
        if most < _PAIRS_FOR_A_TEST:
            console.print(f"{most} pairs cannot show one: the test needs {_PAIRS_FOR_A_TEST} or more", style="dim")


def _print_labels(console: Console, labels: dict[str, Any], names: dict[int, str], per_label: bool) -> None:
    rows = [
        (_title(measure), *[format_number(labels[statistic][measure]) for statistic in ("mean", "std", "median")])
        for measure in labels["mean"]
    ]
    if "initial" in labels:
        rows.append(("Dice before registration", format_number(labels["initial"]["mean"].get("dice")), "", ""))
    _print(console, f"Labels, {labels['n_labels']} in both images", ("", "mean", "std", "median"), rows)
    only = labels["labels_not_in_both"]
    unknown = [int(n) for n in labels["per_label"] if names and int(n) not in names]
    for text, found in (
        ("only in the fixed image, not scored", only["fixed_only"]),
        ("only in the moving image, not scored", only["moving_only"]),
        ("lost by the registration (Dice 0, no distance)", labels["labels_lost"]),
        ("unknown to the table of names", unknown),
    ):
        if found:
            console.print(f"{text} ({len(found)}): {_list(found)}", soft_wrap=True)
    if per_label:
        columns = list(labels["mean"])
        lines = [
            (f"{label} {names.get(int(label), '')}".strip(), *[format_number(row[column]) for column in columns])
            for label, row in labels["per_label"].items()
        ]
        _print(console, "Per label", ("label", *[_short(column) for column in columns]), lines)


def _print_jacobian(console: Console, metrics: dict[str, Any], unit: str) -> None:
    found = metrics["jacobian"]
    share = format_number(found["folding_percent"])
    rows = [("folding voxels (det J <= 0)", f"{found['folding_voxels']} ({share} %)")]
    if "non_diffeomorphic" in metrics:
        folds = metrics["non_diffeomorphic"]
        key = next(key for key in folds if key[:-1] == unit)
        kind = "volume" if key.endswith("3") else "area"
        amount = f"{format_number(folds['percent'])} % ({format_number(folds[key])} {unit}^{key[-1]})"
        rows.append((f"non-diffeomorphic {kind}", amount))
    levels = found["quantiles"]
    rows += [
        ("standard deviation of log det J", format_number(found["sd_log_jacobian"])),
        ("smallest, largest", f"{format_number(found['min'])}, {format_number(found['max'])}"),
        ("1 %, 99 %", f"{format_number(levels['0.01'])}, {format_number(levels['0.99'])}"),
    ]
    _print(console, f"Jacobian determinant, {found['voxels']} voxels", ("", ""), rows)


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, 120))


def _print(console: Console, title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    # a title of rich's own would wrap at the width of a narrow table
    console.print(f"[bold]{escape(title)}[/bold]", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim", show_header=any(columns))
    for n, column in enumerate(columns):
        table.add_column(column, justify="left" if n == 0 or column in _LEFT else "right", no_wrap=n > 0)
    for row in rows:
        table.add_row(*[escape(cell) for cell in row])
    console.print(table)


def _title(measure: str) -> str:
    name, unit = measure_name(measure)
    return f"{name} ({unit})" if unit else name


def _short(measure: str) -> str:
    stem, unit = measure.rpartition("_")[0], measure_name(measure)[1]
    if measure.startswith("surface_dice"):
        return "surface Dice"
    name = _SHORT.get(measure) or _SHORT.get(stem) or stem.upper()
    return f"{name} ({unit})" if unit else name


def _list(labels: list[int]) -> str:
    text = ", ".join(map(str, labels[:20]))
    return f"{text} and {len(labels) - 20} more" if len(labels) > 20 else text
