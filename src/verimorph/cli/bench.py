"""``verimorph bench``: measure methods on many pairs, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verimorph.cli.options import application, examples, flag, option
from verimorph.errors import OptionError

if TYPE_CHECKING:
    from verimorph.bench.records import Record

app = application()

_WHAT = "What is measured"
_HOW = "How"
_WHERE = "Where"

_LISTS = Path("bench/cases")
_ENVIRONMENTS = Path("bench/environments")
_RECORDS = Path("bench/runs/results.jsonl")
_RESULTS = Path("bench/RESULTS.md")

Lists = Annotated[Path, option("--lists", value="FOLDER", text="Folder of case lists.", panel=_WHERE)]
Data = Annotated[
    Path | None,
    option("--data", value="FOLDER", text="Images; default: VERIMORPH_DATA, else ../shared/data.", panel=_WHERE),
]
Environments = Annotated[
    Path, option("--environments", value="FOLDER", text="Where the peers' environments are.", panel=_WHERE)
]
RecordsFile = Annotated[
    Path, option("--records", value="FILE", text="One JSON line a run; what is in it is not run again.", panel=_WHERE)
]
Results = Annotated[Path, option("--results", value="FILE", text="The page with tables and figure.", panel=_WHERE)]


@app.callback()
def root() -> None:
    """Measure methods on many pairs, side by side."""


@app.command(
    epilog=examples(
        ("Ten minutes, ours and the peers that are set up:", "verimorph bench run"),
        ("The floors of the project:", "verimorph bench run --cases targets --engines ours,peers"),
        (
            "A method of your own on your own list:",
            (
                "verimorph bench run --cases mine.csv --engines verimorph-balanced "
                "--command 'mine=mytool -f {fixed} -m {moving} -o {out}/transform.h5'"
            ),
        ),
    )
)
def run(
    engines: Annotated[
        str | None,
        option(
            "-e",
            "--engines",
            value="A,B",
            text="Names, 'ours', 'peers'; default: ours and the peers set up.",
            panel=_WHAT,
        ),
    ] = None,
    cases: Annotated[
        str, option("-c", "--cases", value="A,B", text="Lists, CSV files or single cases.", panel=_WHAT)
    ] = "quick",
    command: Annotated[
        list[str] | None,
        option("--command", value="NAME=LINE", text="A method of yours; leaves {out}/transform.h5.", panel=_WHAT),
    ] = None,
    threads: Annotated[int, option("-j", "--threads", value="N", text="Threads each engine may use.", panel=_HOW)] = 2,
    repeats: Annotated[
        int, option("--repeats", value="N", text="Runs of each pair; medians of times.", panel=_HOW)
    ] = 1,
    limit: Annotated[
        float, option("--limit", value="SECONDS", text="Longer runs are ended and count as failed.", panel=_HOW)
    ] = 1200.0,
    again: Annotated[bool, flag("--again", text="Run even what is recorded.", panel=_HOW)] = False,
    again_busy: Annotated[
        bool, flag("--again-busy", text="Run again what was timed while other programs were busy.", panel=_HOW)
    ] = False,
    keep: Annotated[bool, flag("--keep", text="Keep what engines write.", panel=_HOW)] = False,
    dry_run: Annotated[bool, flag("--dry-run", text="Only list what would run.", panel=_HOW)] = False,
    lists: Lists = _LISTS,
    data: Data = None,
    environments: Environments = _ENVIRONMENTS,
    records: RecordsFile = _RECORDS,
    results: Results = _RESULTS,
) -> None:
    """Run engines on cases; write records, tables and a figure. A run that was stopped goes on where it was."""
    from verimorph.bench import Plan, Records, command_engine, find_cases, find_engines, run_plan
    from verimorph.bench.engines import ENGINES, GROUPS

    for name, value in (("--threads", threads), ("--repeats", repeats), ("--limit", limit)):
        if value < 1:
            raise OptionError(f"{name} is {value:g}; give 1 or more")
    folder = _data(data)
    own = [command_engine(definition) for definition in command or []]
    if engines is None:
        ready = [name for name in GROUPS["peers"] if ENGINES[name].missing(environments) is None]
        wanted = [*GROUPS["ours"], *(name for name in ready if name not in ("ants_syn_script", "greedy_r4"))]
    else:
        wanted = _words(engines)
    plan = Plan(
        engines=find_engines(wanted, own),
        cases=find_cases(_words(cases), data=folder, lists=lists),
        records=Records(records),
        work=records.parent.absolute(),
        environments=environments,
        threads=threads,
        limit_s=limit,
        repeats=repeats,
        again=again,
        again_busy=again_busy,
        keep=keep,
    )
    missing = {path for case in plan.cases for path in case.missing}
    if missing and len([case for case in plan.cases if case.missing]) == len(plan.cases):
        raise OptionError(
            f"{folder}: has none of the images of --cases {cases}; say where they are with --data or VERIMORPH_DATA"
        )
    if dry_run:
        print(f"{len(plan.engines)} engines on {len(plan.cases)} cases, {threads} threads, data in {folder}")
        for engine in plan.engines:
            print(f"  {engine.name:20} {engine.missing(environments) or engine.about}")
        for case in plan.cases:
            print(f"  {case.name:40} {case.kind}" + (f"  missing: {case.missing[0].name}" if case.missing else ""))
        return
    failed = 0
    for record in run_plan(plan, say=print):
        failed += not record.ok
        print(_line(record), flush=True)
    _write_results(records, results)
    if failed:
        print(f"{failed} runs failed; see 'Failures' in {results}")


@app.command()
def table(
    records: RecordsFile = _RECORDS,
    results: Results = _RESULTS,
    cases: Annotated[
        str | None,
        option("-c", "--cases", value="A,B", text="Only these lists or cases; default: all records.", panel=_WHAT),
    ] = None,
    lists: Lists = _LISTS,
    data: Data = None,
) -> None:
    """Write the page and the figure from the records, without running anything."""
    from verimorph.bench import find_cases

    names = None
    if cases is not None:
        names = {case.name for case in find_cases(_words(cases), data=_data(data, must_exist=False), lists=lists)}
    _write_results(records, results, names)


@app.command(
    epilog=examples(("All peers:", "verimorph bench setup ants greedy elastix dipy convexadam sitk_demons")),
)
def setup(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Peers; none lists them.")] = None,
    environments: Environments = _ENVIRONMENTS,
) -> None:
    """Make the environments that peers run in, one each, with exact versions."""
    from verimorph.bench.environments import ENVIRONMENTS, check_name, interpreter, set_up

    if not names:
        for name, requirements in ENVIRONMENTS.items():
            print(f"{name:12} {'ready' if interpreter(name, environments) else '':6} {', '.join(requirements)}")
        return
    for name in [check_name(name) for name in names]:
        print(f"{name}: ready, {set_up(name, environments, say=print)}", flush=True)


@app.command()
def engines(environments: Environments = _ENVIRONMENTS) -> None:
    """List the engines and what each still needs."""
    from verimorph.bench.engines import ENGINES, GROUPS

    for engine in ENGINES.values():
        print(f"{engine.name:20} {engine.about}")
        needed = engine.missing(environments)
        if needed:
            print(f"{'':20} {needed}")
    print("groups: " + ", ".join(f"{name} ({len(members)})" for name, members in GROUPS.items()))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _data(given: Path | None, *, must_exist: bool = True) -> Path:
    import os

    from verimorph.io.paths import BESIDE

    folder = given or Path(os.environ.get("VERIMORPH_DATA", BESIDE))
    if must_exist and not folder.is_dir():
        raise OptionError(f"{folder}: no such folder of images; say where they are with --data or VERIMORPH_DATA")
    return folder.absolute()


def _line(record: Record) -> str:
    if record.figure is None:
        return f"{record.case:36} {record.engine:20} failed: {record.problem}"
    unit = "" if record.measure == "dice" else f" {record.units}"
    text = f"{record.case:36} {record.engine:20} {record.figure:.3f}{unit}"
    if record.wall_s:
        text += f"  {record.wall_s:7.1f} s  {record.cpu_s:7.1f} CPU s  {record.peak_mb:6.0f} MB"
    folding = record.scores.get("folding_percent")
    return text + (f"  folding {folding:.4f} %" if folding else "")


def _write_results(records: Path, results: Path, only: set[str] | None = None) -> None:
    import datetime
    import shlex
    import sys

    from verimorph.bench import machine
    from verimorph.bench.figure import draw
    from verimorph.bench.harness import WARM_UP, warm_up_note
    from verimorph.bench.records import Records
    from verimorph.bench.table import page
    from verimorph.io.safe import replacing

    chosen = [r for r in Records(records).latest() if only is None or r.case in only]
    if not chosen:
        raise OptionError(f"{records}: holds no run; do 'verimorph bench run' first")
    figure = None
    if any(record.figure is not None for record in chosen):
        figure = draw(chosen, results.with_name("accuracy-seconds.svg")).name
    # A page that is published names no folder of the machine it was made on.
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    words = words if words[:1] == ["bench"] else ["bench"]
    text = page(
        chosen,
        command=shlex.join(["verimorph", *words]),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        machine=machine.describe(),
        figure=figure,
        note=warm_up_note(records.with_name(WARM_UP)),
    )
    with replacing(results) as beside:
        beside.write_text(text, encoding="utf-8")
    print(f"results: {results}")
