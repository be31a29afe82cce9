"""``verimorph calibrate``: learn how evidence becomes a bound of the error, on known deformations of images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verimorph.cli.options import application, examples, flag, option
from verimorph.cli.progress import CountBar
from verimorph.cli.runtime import refuse, say, set_threads
from verimorph.errors import InputError, OptionError

if TYPE_CHECKING:
    from verimorph.uncertainty.bound import Calibration
    from verimorph.uncertainty.suite import Case, Check

app = application()


@app.command(
    epilog=examples(
        ("On images of your own kind:", "verimorph calibrate 'scans/*.nii.gz' -o mine.json --for 'T1 of our scanner'"),
        ("Then use it:", "verimorph register -f a.nii.gz -m b.nii.gz -o out --uncertainty --calibration mine.json"),
        ("Does a calibration hold on these images?", "verimorph calibrate 'scans/*.nii.gz' --check general"),
        (
            "Several kinds of images, each with the same weight:",
            "verimorph calibrate brain='t1/*.nii.gz' lung='ct/*.nii.gz' -n 10 -o both.json",
        ),
    )
)
def calibrate(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KIND=]PATTERN...",
            help="Images, patterns in quotes; none: all cases that --keep holds.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path | None, option("-o", "--output", value="FILE", text="The calibration, JSON.")] = None,
    check: Annotated[
        str | None, option("--check", value="NAME|FILE", text="Learn nothing; judge this calibration on the images.")
    ] = None,
    cases: Annotated[
        int, option("-n", "--cases", value="N", text="Known deformations of each kind; below 20 bounds are wide.")
    ] = 20,
    name: Annotated[
        str | None, option("--name", value="NAME", text="Of the calibration; default: that of the file.")
    ] = None,
    described: Annotated[str, option("--for", value="TEXT", text="In plain words: for which images it holds.")] = "",
    base: Annotated[
        str | None,
        option("--base", value="NAME|FILE", text="Take scale and verdict of this one; learn only the quantiles."),
    ] = None,
    keep: Annotated[
        Path | None,
        option(
            "--keep",
            value="FOLDER",
            text="Where cases are kept, so that a stopped run goes on.",
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        option("--pairs", value="FILE", text="Also pairs of real scans with labels, CSV; see the page on uncertainty."),
    ] = None,
    by_kind: Annotated[bool, flag("--by-kind", text="Cross-validate by leaving out whole kinds, not images.")] = False,
    threads: Annotated[
        int | None, option("-j", "--threads", value="N", text="Processor cores to use; default: all.")
    ] = None,
    seed: Annotated[int, option("--seed", value="N", min=0, text="Of the first case; the next have the next.")] = 0,
) -> None:
    """Learn a bound of the registration error on known deformations of real images, or judge one.

    Every case deforms an image by a known map, shows it as another scan would (contrast, brightness, noise), registers
    it back with the defaults, and compares. Prints coverage on cases that the bound had not seen.
    """
    set_threads(threads)  # before torch is loaded
    from verimorph.io.safe import keep_inputs, require_writable_file
    from verimorph.uncertainty.bound import FEWEST, PAIRS_ALONE, read_calibration
    from verimorph.uncertainty.cases import PAIRS, is_pairs
    from verimorph.uncertainty.suite import check as judge
    from verimorph.uncertainty.suite import collect, collect_pairs, dimension_of, images_of, pairs_of, read_case

    if (output is None) == (check is None):
        raise OptionError("give either -o FILE to learn a calibration, or --check NAME to judge one")
    if cases < 1:
        raise OptionError(f"-n is {cases}; give 1 case or more")
    if check is not None:
        learning = {"--base": base, "--by-kind": by_kind, "--name": name, "--for": described}
        refuse(learning, "of a calibration that is learned; --check judges one that is there")
        read_calibration(check)  # that it is there, before the images are looked for
    folder = keep or (output or Path("calibration-check")).with_suffix(".cases")
    if output is not None:
        require_writable_file(output)
    files = images_of(images or [])
    listed = [] if pairs is None else pairs_of(pairs)
    found = []
    if not images and pairs is None:
        if keep is None:
            raise OptionError("no images are given; name some, or a folder of cases with --keep")
        if not keep.is_dir():
            raise InputError(f"--keep {keep}: there is no such folder; name images, whose cases it is to hold")
        found = [read_case(file) for file in sorted(keep.glob("*.npz"))]
        if len(found) < 2:
            told = "1 case" if found else "no case"
            raise OptionError(f"--keep {keep}: holds {told}; 2 are the fewest to learn from")
    if by_kind:
        kinds = {kind for kind, _ in files} | {case.points.kind.removesuffix(f"-{PAIRS}") for case in found}
        kinds |= {pair.kind for pair in listed}
        if len(kinds) < 2:
            told = ", ".join(kinds) or "none"
            raise OptionError(f"--by-kind leaves out whole kinds, here is {told}; name two or more, or leave it out")
    # What the images are, and that all of it fits together, before any is measured.
    named = [file for _, file in files] + [file for pair in listed for file in pair.files.values()]
    ndim = dimension_of(named) if named else found[0].points.ndim
    held = None if check is None else read_calibration(check, ndim=ndim)
    foundation = None if base is None else read_calibration(base, ndim=ndim)
    if foundation is not None and foundation.kind not in (None, PAIRS):
        raise OptionError(f"--base {base}: a kind has no meaning there; leave out ':{foundation.kind}'")
    alone = not files and all(is_pairs(case.points.kind) for case in found)
    if output is not None and alone and foundation is None:
        raise OptionError(PAIRS_ALONE)
    if output is not None and alone and listed and len(listed) < FEWEST:
        raise OptionError(
            f"{pairs} lists {len(listed)} of the {FEWEST} pairs that are the fewest; list more, or name images"
        )
    if files:
        if output is not None:
            keep_inputs([output], [file for _, file in files])
        if output is not None and cases * len({kind for kind, _ in files}) < 2:
            raise OptionError("one case is too few to learn from; give -n 2 or more, better 20")
        with CountBar(lines=True) as tell:
            found = collect(files, cases=cases, folder=folder, seed=seed, tell=tell)
    if listed:
        with CountBar(lines=True) as tell:
            found += collect_pairs(listed, folder=folder, tell=tell)
    if held is not None:
        _print(judge(found, held), f"calibration '{held.name}' on images it may not have seen")
        typer.echo(f"{_cases(len(found))}, kept in {folder}")
        return
    assert output is not None
    described = described or "images like those it was learned on"
    _learn(found, output, name=name or output.stem, described=described, foundation=foundation, by_kind=by_kind)
    typer.echo(f"{_cases(len(found))}; calibration in {output}, cases in {folder}")


def _learn(
    found: list[Case], output: Path, *, name: str, described: str, foundation: Calibration | None, by_kind: bool
) -> None:
    """Learn a calibration of these cases and write it; print how it does on what it has not seen."""
    from dataclasses import replace

    from verimorph.uncertainty.bound import FEWEST, read_calibration, write_calibration
    from verimorph.uncertainty.bound import calibrate as learn
    from verimorph.uncertainty.cases import FOLDS, is_pairs, parted
    from verimorph.uncertainty.scale import Fits
    from verimorph.uncertainty.suite import cross_validated, dealt_by

    points = [case.points for case in found]
    by = "kind" if by_kind else "image"
    dealt = dealt_by(points, by)
    known, real = ([i for i, p in enumerate(points) if is_pairs(p.kind) == pairs] for pairs in (False, True))
    # Pairs of real scans have folds of their own, without fits.
    folds = len({dealt[i] for i in (known if known and not by_kind else known + real)})

    def leave(places: list[int], fewest: int) -> bool:
        return parted([points[i] for i in places], [dealt[i] for i in places], fewest)

    together = not (leave(known, min(2, len(known) - 1)) if known else leave(real, FEWEST))
    judged = len(found) > 2 and not together
    with CountBar(lines=True) as tell:
        # One without each fold, one of all; one without every two folds, or for every kind left out, with folds inside.
        inner = folds * (FOLDS // 2 + 1) if by_kind else folds * (folds - 1) // 2
        fits = Fits(count=(FOLDS if by_kind else folds) + 1 + judged * inner, tell=tell)
        scale = None if foundation is None else foundation.scale
        learned = learn(points, name=name, calibrated_for=described, scale=scale, fits=fits)
        # What tells a broken registration has nothing to do with the size of its error: facts, and not evidence.
        verdict = None if foundation is None else foundation.verdict
        learned = replace(learned, verdict=verdict or read_calibration("general", ndim=points[0].ndim).verdict)
        write_calibration(learned, output)
        rows = cross_validated(found, by=by, scale=scale, fits=fits) if judged else []
    # Else they would be judged by the bound of known deformations, which is not theirs.
    pairs_judged = leave(real, FEWEST)
    rows = [row for row in rows if pairs_judged or not is_pairs(row.kind)]
    if rows:
        _print(rows, f"every {by} judged without itself")
    if known and 0 < len(real) < FEWEST:
        say("warning", f"nothing is learned of pairs of real scans: here is {len(real)}, {FEWEST} are the fewest")
    elif judged and not pairs_judged:
        told = f"without one {by} and what shares an image with it, too few are left"
        say("warning", f"the bound of pairs of real scans was not judged: {told}; how it does is not known")
    if together:
        told = f"without all cases of one {by} and what shares an image with them, too few are left to judge by"
        say("warning", f"{told}; how the bound does on other images is not known")
    reached = learned.reach()
    if reached < 0.9:
        told = (
            f"the bound of {_cases(len(known or real))} goes to {reached:g} and no further; 9 reach 0.9, 19 reach 0.95"
        )
        say("warning", f"{told}; give more with -n, or register with --level {reached:g}")


def _cases(count: int) -> str:
    return "1 case" if count == 1 else f"{count} cases"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _print(rows: list[Check], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=None, padding=(0, 1, 0, 0), header_style="bold", title_justify="left")
    table.add_column("images", no_wrap=True)
    levels = ("50 %", "80 %", "90 %", "95 %")
    headings = ("cases", *levels, "around", "ratio", "all", "own", "rank r", "AUSE", "spread", "ECE", "UCE", "ENCE")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.kind,
            str(row.cases),
            *(_number(100 * row.coverage[q], ".1f") for q in ("0.5", "0.8", "0.9", "0.95")),
            _number(100 * row.background, ".1f"),
            _number(row.sharpness, ".2f"),
            _number(row.pooled, ".2f"),
            _number(row.own, ".2f"),
            f"{row.spearman:.2f}",
            f"{row.ause:.3f}",
            f"{row.ause_spread:.3f}",
            f"{100 * row.ece:.1f}",
            _number(row.uce, ".2g"),
            _number(row.ence, ".2f"),
        )
    # As wide as it is: a number cut off by a narrow terminal is no number.
    console = Console(highlight=False, width=max(Console().width, 118))
    console.print(table)
    console.print(
        "coverage in % of voxels of the anatomy at each level, and at 90 % around it; ratio: median bound over\n"
        "median error at 90 %, mean over cases; all: the same of all voxels together; own: the ratio of a bound\n"
        "that covers just 90 % of each case, as if its size were known; rank r: Spearman's of bound and error;\n"
        "AUSE of the bound, and of the spread of the looks alone; ECE: mean miss of the coverage over the levels,\n"
        "in %; UCE, ENCE: of the predicted mean square error, in squared voxels, and relative to its root",
        style="dim",
    )
    if any(math.isnan(share) for row in rows for share in row.coverage.values()):
        console.print("-: no bound of that level, which takes more cases, or nothing there to judge", style="dim")
