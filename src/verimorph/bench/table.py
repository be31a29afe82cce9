"""The results as one page: a summary per set, every run below it, machine, date and command on top."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, median

from verimorph.bench.records import QUIET, Record

MEASURES = {
    "dice": ("Dice", True, 3),
    "landmark_error": ("landmark error", False, 2),
    "reference_error": ("distance from the reference map", False, 2),
}


@dataclass(frozen=True)
class Row:
    """One engine over the cases of one set. Seconds and memory are medians over cases; accuracy is the mean.

    ``cases`` is how many it brought to an end, ``failed`` how many it did not.
    """

    engine: str
    cases: int
    failed: int
    mean: float | None
    worst: float | None
    below_identity: int
    wall_s: float | None
    register_s: float | None
    startup_s: float | None
    files_s: float | None
    cpu_s: float | None
    peak_mb: float | None
    folding_percent: float | None
    sd_log_jacobian: float | None


def newest(records: Iterable[Record]) -> list[Record]:
    """Keep, for each engine, case, number of threads and repeat, the record written last."""
    return list({(r.engine, r.case, r.threads, r.repeat): r for r in records}.values())


def by_set(records: Iterable[Record]) -> dict[tuple[str, str, int], list[Record]]:
    """Group records that belong into one table: same set, same measure, same threads. Sets in order of appearance.

    The identity needs no threads: it joins the tables of every number of threads.
    """
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.set, record.measure, record.threads), []).append(record)
    return groups


def summarise(records: list[Record]) -> list[Row]:
    """Return a row an engine, best mean first, engines without any result last."""
    identity = {r.case: r.figure for r in records if r.engine == "identity" and r.figure is not None}
    _, higher, _ = MEASURES[records[0].measure]
    rows = []
    for engine in dict.fromkeys(r.engine for r in records):
        cases: dict[str, list[Record]] = {}
        for record in records:
            if record.engine == engine:
                cases.setdefault(record.case, []).append(record)
        done = {case: good for case, runs in cases.items() if (good := [r for r in runs if r.figure is not None])}
        figures = {case: fmean(r.figure for r in runs) for case, runs in done.items()}  # type: ignore[misc]
        values = list(figures.values())
        rows.append(
            Row(
                engine=engine,
                cases=len(done),
                failed=len(cases) - len(done),
                mean=fmean(values) if values else None,
                worst=(min(values) if higher else max(values)) if values else None,
                below_identity=sum(
                    case in identity and ((value < identity[case]) if higher else (value > identity[case]))
                    for case, value in figures.items()
                ),
                **{
                    name: _middle(getattr(r, name) for runs in done.values() for r in runs if r.quiet)
                    for name in ("wall_s", "register_s", "startup_s", "files_s", "cpu_s")
                },
                peak_mb=_middle(r.peak_mb for runs in done.values() for r in runs),
                folding_percent=_middle((r.scores.get("folding_percent") for run in done.values() for r in run), max),
                sd_log_jacobian=_middle(r.scores.get("sd_log_jacobian") for runs in done.values() for r in runs),
            )
        )
    return sorted(rows, key=lambda row: math.inf if row.mean is None else (-row.mean if higher else row.mean))


def page(
    records: Iterable[Record], *, command: str, date: str, machine: str, figure: str | None = None, note: str = ""
) -> str:
    """Return the page as Markdown; ``note`` is a line about the warm-up."""
    chosen = newest(records)
    lines = [
        "# Results",
        "",
        f"Written by `{command}` on {date}; edit nothing here.",
        f"Machine: {machine}.",
        "",
        (
            "Seconds are whole commands, files in to files out (median over cases); start, files and registration are"
            " parts of them, blank where an engine does not tell. CPU is user + system. Runs during which other"
            f" programs used more than {QUIET:.0%} of the machine give no seconds. Accuracy is the mean over the cases"
            " an engine finished. Quote ratios measured in one run, not seconds."
        ),
        "",
    ]
    if note:
        lines += [f"Warm-up of ours: {note}.", ""]
    if figure:
        lines += [f"![accuracy against seconds]({figure})", ""]
    for (name, measure, threads), group in by_set(chosen).items():
        title, higher, digits = MEASURES[measure]
        unit = "" if measure == "dice" else f", {group[0].units}"
        cases = len({record.case for record in group})
        lines += [
            f"## {name}: {title}{unit}",
            "",
            (
                f"{cases} case{'s' * (cases > 1)}, {threads} thread{'s' * (threads > 1)};"
                f" {'higher' if higher else 'lower'} is better."
            ),
            "",
            (
                f"| engine | mean {title} | worst | worse than identity | cases | wall s | registration s | start s"
                " | files s | CPU s | peak MB | folding % (worst) | sd log J |"
            ),
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in summarise(group):
            finished = f"{row.cases}" + (f" ({row.failed} failed)" if row.failed else "")
            lines.append(
                f"| {row.engine} | {_text(row.mean, digits)} | {_text(row.worst, digits)} "
                f"| {'' if row.engine == 'identity' else row.below_identity} | {finished} "
                f"| {_text(row.wall_s, 1)} | {_text(row.register_s, 1)} | {_text(row.startup_s, 1)} "
                f"| {_text(row.files_s, 1)} | {_text(row.cpu_s, 1)} | {_text(row.peak_mb, 0)} "
                f"| {_text(row.folding_percent, 4)} | {_text(row.sd_log_jacobian, 2)} |"
            )
        lines += ["", *_cases(group, digits), ""]
    lines += _failures(chosen) + _settings(chosen)
    return "\n".join(lines).rstrip() + "\n"


def _cases(group: list[Record], digits: int) -> list[str]:
    """Return the table of every case, engines as columns, folded away."""
    engines = [row.engine for row in summarise(group)]
    lines = ["<details><summary>every case</summary>", "", "| case | " + " | ".join(engines) + " |"]
    lines.append("|---" * (len(engines) + 1) + "|")
    for case in dict.fromkeys(record.case for record in group):
        cells = []
        for engine in engines:
            runs = [r for r in group if r.engine == engine and r.case == case]
            values = [r.figure for r in runs if r.figure is not None]
            wall = _middle(r.wall_s for r in runs if r.figure is not None and r.quiet)
            time = f" ({wall:.1f} s)" if wall else ""
            cells.append(f"{fmean(values):.{digits}f}{time}" if values else ("failed" if runs else ""))
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return [*lines, "", "</details>"]


def _failures(records: list[Record]) -> list[str]:
    failed = [record for record in records if not record.ok]
    if not failed:
        return []
    lines = ["## Failures", "", "| engine | case | exit code | what it said last |", "|---|---|---|---|"]
    for record in failed:
        code = "" if record.exit_code is None else record.exit_code
        lines.append(f"| {record.engine} | {record.case} | {code} | {record.problem.replace('|', '/')} |")
    return [*lines, ""]


def _settings(records: list[Record]) -> list[str]:
    lines = ["## Settings and versions", "", "| engine | settings | versions |", "|---|---|---|"]
    seen: dict[str, Record] = {}
    for record in records:
        if record.engine not in seen or (record.versions and record.when >= seen[record.engine].when):
            seen[record.engine] = record
    for engine, record in sorted(seen.items()):
        versions = ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))
        lines.append(f"| {engine} | {record.settings.replace('|', '/')} | {versions} |")
    return [*lines, ""]


def _middle(values: Iterable[float | None], rule: object = median) -> float | None:
    known = [value for value in values if value is not None]
    return rule(known) if known else None  # type: ignore[operator]


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
