"""What a command prints when a registration is done or planned: a table of measured facts, and where files are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verimorph.planning import Plan
    from verimorph.registration import Registration
    from verimorph.uncertainty.cohort import Standing

VERDICT_COLOURS = {"pass": "green", "review": "yellow", "fail": "red"}
Row = tuple[str, str, str, str]
"""What was measured; before; after; unit."""


def print_summary(result: Registration, folder: Path, *, verbose: bool = False) -> None:
    """Print what was found and where it is."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_column("")
    for row in rows(result.metrics):
        table.add_row(*row)
    seconds = sum(result.timings.values())
    table.add_row("time", "", f"{seconds:.1f}", "s")
    if result.peak_memory_mb:
        table.add_row("peak memory", "", f"{result.peak_memory_mb / 1000:.2f}", "GB")
    console.print(table)
    if verbose:
        from rich.pretty import pprint

        pprint({"settings": result.settings, "timings": result.timings}, console=console, expand_all=True)
    if verdict := result.metrics.get("verdict"):
        colour = VERDICT_COLOURS[verdict["verdict"]]
        console.print(f"verdict: [{colour} bold]{verdict['verdict']}[/], {verdict['reasons']}", soft_wrap=True)
    page = folder / "report.html"
    console.print(f"Results in {folder}" + (f"; look at {page}" if page.exists() else ""), soft_wrap=True)


def print_cohort(standings: Sequence[Standing]) -> None:
    """Print how the results of a cohort stand, the worst first; of many, those without fault are only counted."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from verimorph.uncertainty.cohort import FEWEST
    from verimorph.uncertainty.words import percent

    console = Console(highlight=False)
    few = len(standings) < FEWEST
    shown = [one for one in standings if few or one.verdict != "pass" or one.stands_out]
    if shown:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("result", overflow="fold")
        table.add_column("verdict")
        table.add_column("like broken ones", justify="right")
        table.add_column("median bound", justify="right")
        if not few:
            table.add_column("stands out", overflow="fold")
        for one in shown:
            table.add_row(
                Text(one.name),
                Text(one.verdict, style=f"bold {VERDICT_COLOURS[one.verdict]}"),
                "-" if math.isnan(one.probability) else percent(one.probability),
                f"{one.median_mm:.3g} mm",
                *([] if few else [one.reason]),
            )
        console.print(table)
    counts = [f"{sum(one.verdict == name for one in standings)} {name}" for name in VERDICT_COLOURS]
    line = f"verdicts of {len(standings)}: {', '.join(counts)}"
    told = f"fewer than {FEWEST}, so none is compared with the others"
    console.print(f"{line}; {told if few else f'{sum(one.stands_out for one in standings)} stand out'}", soft_wrap=True)


def rows(metrics: dict[str, Any]) -> Iterator[Row]:
    """Yield the lines of the table for what ``metrics`` holds; nothing is computed here.

    >>> list(rows({"unit": "mm", "jacobian": {"folding_percent": 0.0, "sd_log_jacobian": 0.25}}))
    [('folding', '', '0', '% of voxels'), ('spread of log volume change', '', '0.25', '')]
    """
    unit = metrics.get("unit", "mm")
    for name, found in (metrics.get("similarity") or {}).items():
        yield name.replace("_", " "), _number(found.get("before")), _number(found.get("after")), found.get("unit", "")
    if labels := metrics.get("labels"):
        before = (labels.get("identity") or {}).get("mean", {})
        yield (
            f"Dice, mean of {labels['n_labels']} labels",
            _number(before.get("dice")),
            _number(labels["mean"]["dice"]),
            "",
        )
        if (distance := labels["mean"].get(f"hd95_{unit}")) is not None:
            yield "HD95, mean", "", _number(distance), unit
    if landmarks := (metrics.get("landmarks") or {}).get(f"tre_{unit}"):
        before = landmarks.get("identity") or {}
        after = landmarks.get("registered") or {}
        yield "landmark error, mean", _number(before.get("mean")), _number(after.get("mean")), unit
    if displacement := metrics.get(f"displacement_{unit}"):
        yield "displacement, mean", "", _number(displacement.get("mean")), unit
        yield "displacement, largest", "", _number(displacement.get("max")), unit
    if jacobian := metrics.get("jacobian"):
        yield "folding", "", _number(jacobian.get("folding_percent")), "% of voxels"
        yield "spread of log volume change", "", _number(jacobian.get("sd_log_jacobian")), ""
    if consistency := metrics.get(f"inverse_consistency_{unit}"):
        yield "inverse error, mean", "", _number(consistency["forward"].get("mean")), unit
    if bound := metrics.get("uncertainty"):
        share = f"{100 * bound['level']:g} %"
        yield f"error at most, for {share} of voxels (median)", "", _number(bound["median_mm"]), "mm"
        yield "the same, 95th percentile of voxels", "", _number(bound["p95_mm"]), "mm"


def _number(value: float | None) -> str:
    """Write a number with three significant digits, a dash where there is none, 0 for what rounding leaves."""
    return "-" if value is None or math.isnan(value) else f"{value if abs(value) > 1e-9 else 0:.3g}"


def print_plan(plan: Plan) -> None:
    """Print what a registration would do, how long, how much memory."""
    from rich.console import Console
    from rich.table import Table

    from verimorph.memory import memory

    console = Console(highlight=False)
    console.print(f"fixed   {plan.fixed}", f"moving  {plan.moving}", sep="\n", soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("stage", "level", "grid", "iterations"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for step in plan.steps:
        table.add_row(step.stage, str(step.level), " x ".join(map(str, step.shape)), f"up to {step.iterations}")
    console.print(table)
    available = memory()["available"]
    free = "" if available is None else f" ({available / 1e9:.1f} GB are free)"
    bound = " and its error bound" if plan.looks else ""
    if plan.reference is not None:
        bound = ", one by the defaults to compare with, and the error bound"
    console.print(
        f"time    about {plan.seconds:.0f} s on {plan.threads} threads for the registration{bound}",
        f"memory  about {plan.memory_bytes / 1e9:.1f} GB{free}",
        f"disk    up to {plan.disk_bytes / 1e9:.2f} GB",
        sep="\n",
        soft_wrap=True,
    )
