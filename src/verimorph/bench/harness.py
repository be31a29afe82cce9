"""Run engines on cases, one after the other, in alternating order, and keep a record of each run.

The same files, threads and scorer for everybody. A run that is recorded is not done again, so a benchmark that was
stopped goes on where it was. A run that fails is a record too.
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from verimorph.bench import machine
from verimorph.bench.cases import Case
from verimorph.bench.engines import Engine
from verimorph.bench.process import Outcome, measure
from verimorph.bench.records import Record, Records
from verimorph.bench.scoring import read_chain, score_transform, start_of
from verimorph.errors import VerimorphError
from verimorph.io.safe import replacing

WARM_UP = "warm-up.json"
"""File beside the records that keeps what compilation cost."""

_RASTER = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes
    ----------
    engines, cases
        Every engine runs on every case it can.
    records
        File of results.
    work
        Folder for prepared inputs, logs and, while a run lasts, its output.
    environments
        Folder of the peers' environments.
    threads
        Threads each engine may use.
    limit_s
        Seconds after which a run is ended and counts as failed.
    repeats
        Runs of each engine on each case; times are reported as medians.
    again
        Run even what is recorded.
    again_busy
        Run again what was recorded while other programs used the machine.
    keep
        Keep what engines wrote.
    """

    engines: list[Engine]
    cases: list[Case]
    records: Records
    work: Path
    environments: Path
    threads: int = 2
    limit_s: float = 1200.0
    repeats: int = 1
    again: bool = False
    again_busy: bool = False
    keep: bool = False


def run_plan(plan: Plan, *, say: Callable[[str], None] = lambda line: None) -> Iterator[Record]:
    """Do every run of ``plan`` that is not recorded yet, or could not start then; yield each new record, written."""
    latest = plan.records.latest()
    done = set() if plan.again else {r.key for r in latest if r.started and (r.quiet or not plan.again_busy)}
    if any(engine.ours for engine, *_ in _order(plan, done)):
        _warm_up(plan, say)
    for engine, case, repeat in _order(plan, done):
        record = run_one(engine, case, plan, repeat)
        plan.records.append(record)
        yield record


def run_one(engine: Engine, case: Case, plan: Plan, repeat: int = 0) -> Record:
    """Run and score one engine on one case; whatever goes wrong becomes a record with ``ok=False``."""
    record = Record(
        engine=engine.name,
        case=case.name,
        set=case.set,
        measure=case.measure,
        units=case.units,
        kind=case.kind,
        threads=plan.threads,
        repeat=repeat,
        settings=engine.described(),
        when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=f"{machine.processor()}, {machine.cores()} cores",
    )
    if case.missing:
        names = ", ".join(path.name for path in case.missing)
        return replace(record, ok=False, exit_code=None, problem=f"missing in the data folder: {names}")
    needed = engine.missing(plan.environments)
    if needed:
        return replace(record, ok=False, exit_code=None, problem=f"not set up; {needed}")
    try:
        case = prepared(case, plan.work / "inputs")
        if engine.is_identity:
            return replace(record, scores=score_transform(case, start_of(case)), wall_s=0.0, cpu_s=0.0)
        return _run_process(engine, case, plan, record)
    except (VerimorphError, OSError, RuntimeError, ValueError, KeyError) as error:
        return replace(record, ok=False, problem=" ".join(f"{type(error).__name__}: {error}".split())[:300])


def _run_process(engine: Engine, case: Case, plan: Plan, record: Record) -> Record:
    out = plan.work / "output" / f"{engine.name}--{case.name}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    try:
        command = engine.command_line(case, out=out, threads=plan.threads, environments=plan.environments)
        log = plan.work / "logs" / f"{engine.name}--{case.name}.log"
        outcome = measure(command, log=log, threads=plan.threads, limit_s=plan.limit_s, folder=out)
        record = replace(
            record,
            exit_code=outcome.exit_code,
            wall_s=round(outcome.wall_s, 3),
            cpu_s=round(outcome.cpu_s, 3),
            peak_mb=round(outcome.peak_mb, 1),
            others_share=None if outcome.others is None else round(outcome.others, 3),
        )
        if outcome.exit_code != 0:
            ended = "time limit" if outcome.exit_code is None else f"exit code {outcome.exit_code}"
            return replace(record, ok=False, problem=f"{ended}: {outcome.last_line}".rstrip(": "))
        result = engine.result(out)
        record = replace(record, versions=result.get("versions", {}), **_parts(result, outcome))  # type: ignore[arg-type]
        chain = [Path(name) for name in result["chain"]]
        return replace(record, scores=score_transform(case, read_chain(chain, 3)))
    finally:
        if not plan.keep:
            shutil.rmtree(out, ignore_errors=True)


def _parts(result: dict, outcome: Outcome) -> dict[str, float]:
    """Split the wall time into start-up, files and registration where the engine says how."""
    if "loaded_at" in result:
        return {
            "startup_s": round(max(0.0, result["loaded_at"] - outcome.started), 3),
            "files_s": round(result["files_s"], 3),
            "register_s": round(result["register_s"], 3),
        }
    timings = result.get("timings")
    if not timings:
        return {}
    files = sum(timings.get(name, 0.0) for name in ("read", "write"))
    besides = sum(timings.get(name, 0.0) for name in ("metrics", "report"))
    total = sum(timings.values())
    return {
        "startup_s": round(max(0.0, outcome.wall_s - total), 3),
        "files_s": round(files, 3),
        "register_s": round(total - files - besides, 3),
    }


def prepared(case: Case, folder: Path) -> Case:
    """Return the case with inputs that every engine reads alike: clipped where asked, pictures as 2-D NIfTI."""
    import SimpleITK as sitk

    changed: dict[str, Path] = {}
    for name in ("fixed", "moving", "fixed_labels", "moving_labels", "fixed_mask", "moving_mask"):
        path: Path | None = getattr(case, name)
        if path is None:
            continue
        clip = case.clip if name in ("fixed", "moving") else None
        if clip is None and path.suffix.lower() not in _RASTER:
            continue
        bounds = f"-{clip[0]:g}-{clip[1]:g}" if clip else ""
        target = folder / f"{case.set}-{path.name.split('.')[0]}{bounds}.nii.gz"
        if not target.exists() or target.stat().st_mtime < path.stat().st_mtime:
            image = sitk.ReadImage(str(path))
            if clip:
                image = sitk.Clamp(image, image.GetPixelID(), *clip)
            folder.mkdir(parents=True, exist_ok=True)
            beside = folder / f".{target.name}"
            sitk.WriteImage(image, str(beside))
            beside.replace(target)
        changed[name] = target
    return replace(case, **changed)  # type: ignore[arg-type]


def _order(plan: Plan, done: set[tuple]) -> Iterator[tuple[Engine, Case, int]]:
    """Yield what is left to do, case by case, each starting with another engine and every second one going backwards.

    A machine that slows down or speeds up over the hours then favours nobody.
    """
    for repeat in range(plan.repeats):
        for number, case in enumerate(plan.cases):
            shift = (number + repeat) % len(plan.engines)
            first, *others = plan.engines[shift:] + plan.engines[:shift]
            for engine in (first, *(others if (number + repeat) % 2 == 0 else others[::-1])):
                key = (engine.name, engine.described(), case.name, plan.threads, repeat)
                if key not in done:
                    yield engine, case, repeat


def _warm_up(plan: Plan, say: Callable[[str], None]) -> None:
    """Run ours on a tiny pair of each contrast, so that no measured run compiles kernels; keep the seconds it took.

    Compiled kernels are kept on the disk by numba: only the first run ever pays for them.
    """
    import SimpleITK as sitk

    engine = next(engine for engine in plan.engines if engine.ours)
    folder = plan.work / "warm-up"
    folder.mkdir(parents=True, exist_ok=True)
    seconds = []
    for kind, inverted in (("deformable", False), ("deformable", True), ("rigid", True)):
        blob = sitk.GaussianSource(sitk.sitkFloat32, [24, 24, 24], [4.0, 5.0, 6.0], [11.0, 12.0, 12.0], 100.0)
        ball = sitk.GaussianSource(sitk.sitkFloat32, [24, 24, 24], [5.0, 4.0, 6.0], [12.0, 12.0, 11.0], 100.0)
        paths = [folder / "fixed.nii.gz", folder / "moving.nii.gz"]
        sitk.WriteImage(blob, str(paths[0]))
        sitk.WriteImage(100.0 - ball if inverted else ball, str(paths[1]))
        case = Case(name="warm-up", set="warm-up", fixed=paths[0], moving=paths[1], kind=kind)
        out = folder / "output"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        command = engine.command_line(case, out=out, threads=plan.threads, environments=plan.environments)
        outcome = measure(command, log=folder / "log", threads=plan.threads, limit_s=plan.limit_s, folder=out)
        seconds.append(outcome.wall_s)
        if outcome.exit_code != 0:
            say(f"warm-up ({kind}) failed: {outcome.last_line}")
    shutil.rmtree(folder, ignore_errors=True)
    note = _note_warm_up(plan.work / WARM_UP, sum(seconds), engine.described())
    say(f"warm-up: {note}")


def _note_warm_up(file: Path, seconds: float, settings: str) -> str:
    """Keep the slowest and the latest warm-up: the first compiles, later ones find the kernels on the disk."""
    slowest = seconds
    if file.exists():
        slowest = max(slowest, json.loads(file.read_text(encoding="utf-8"))["slowest_s"])
    known = {"slowest_s": round(slowest, 1), "latest_s": round(seconds, 1), "settings": settings}
    with replacing(file) as beside:
        beside.write_text(json.dumps(known) + "\n", encoding="utf-8")
    return warm_up_note(file)


def warm_up_note(file: Path) -> str:
    """Say how long the warm-up took at first and takes now; empty if there was none."""
    if not file.exists():
        return ""
    known = json.loads(file.read_text(encoding="utf-8"))
    return (
        f"three tiny pairs took {known['slowest_s']:.1f} s when kernels had to be compiled, "
        f"{known['latest_s']:.1f} s the last time; no figure contains compilation"
    )
