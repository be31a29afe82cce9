"""``verimorph evaluate``: measure how good results are, one pair or many, as a table, JSON and a page."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verimorph.cli.evaluate_inputs import from_result_folder, label_list, name_methods, read_chain, read_names
from verimorph.cli.options import application, examples, flag, option
from verimorph.cli.progress import CountBar
from verimorph.cli.runtime import choose, refuse, set_threads
from verimorph.errors import InputError, OptionError

if TYPE_CHECKING:
    from verimorph.evaluate.cohort import Cohort

MODES = ("honest", "challenge")
TOLERANCE_MM = 1.0

_PAIR = "One pair"
_MANY = "Many pairs"
_SURE = "How sure it is said to be"
_HOW = "How it is measured"
_OUTPUT = "Output"

app = application()


@app.command(
    epilog=examples(
        ("Two label maps on one grid:", "verimorph evaluate -f fixed_labels.nii.gz -m moved_labels.nii.gz"),
        ("What register wrote:", "verimorph evaluate out"),
        (
            "A transform, with landmarks:",
            "verimorph evaluate -t transform.h5 --fixed-landmarks a.csv --moving-landmarks b.csv",
        ),
        (
            "Two methods on many pairs:",
            "verimorph evaluate --pairs pairs.csv ours=results/ours theirs=results/theirs -o scores",
        ),
        (
            "A Learn2Reg submission, as the challenge scores it:",
            "verimorph evaluate --pairs dataset.json submission --mode challenge -o scores",
        ),
        (
            "Does the error bound hold? Against a known transform:",
            "verimorph evaluate --uncertainty out --truth truth.h5 -o how_sure",
        ),
        (
            "The same at landmarks:",
            "verimorph evaluate --uncertainty out --fixed-landmarks a.csv --moving-landmarks b.csv",
        ),
    )
)
def evaluate(
    results: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FOLDER|NAME=FOLDER",
            help="What 'verimorph register' wrote; or, with --pairs, a folder with one result a pair for each method.",
            show_default=False,
        ),
    ] = None,
    fixed_labels: Annotated[
        Path | None, option("-f", "--fixed-labels", value="FILE", text="Label map of the fixed image.", panel=_PAIR)
    ] = None,
    moved_labels: Annotated[
        Path | None, option("-m", "--moved-labels", value="FILE", text="Moving labels after registration.", panel=_PAIR)
    ] = None,
    moving_labels: Annotated[
        Path | None,
        option("--moving-labels", value="FILE", text="The same before it; moved here if -t is given.", panel=_PAIR),
    ] = None,
    fixed_landmarks: Annotated[
        str | None, option("--fixed-landmarks", value="FILE", text="CSV, FCSV or MRK.JSON.", panel=_PAIR)
    ] = None,
    moving_landmarks: Annotated[
        str | None, option("--moving-landmarks", value="FILE", text="As many, in the same order.", panel=_PAIR)
    ] = None,
    transform: Annotated[
        list[Path] | None,
        option(
            "-t",
            "--transform",
            value="FILE",
            text="Fixed to moving; repeat it for several: they act on a fixed point from first to last, as in ANTs.",
            panel=_PAIR,
        ),
    ] = None,
    inverse: Annotated[
        list[Path] | None, option("--inverse", value="FILE", text="Moving to fixed, for consistency.", panel=_PAIR)
    ] = None,
    fixed: Annotated[
        Path | None, option("--fixed", value="FILE", text="Fixed image: the grid of the Jacobian.", panel=_PAIR)
    ] = None,
    moving: Annotated[Path | None, option("--moving", value="FILE", text="Moving image.", panel=_PAIR)] = None,
    mask: Annotated[
        Path | None,
        option("-x", "--mask", value="FILE", text="Where Jacobian and consistency are measured.", panel=_PAIR),
    ] = None,
    pairs: Annotated[
        Path | None, option("--pairs", value="FILE", text="CSV of pairs, or a Learn2Reg dataset JSON.", panel=_MANY)
    ] = None,
    data: Annotated[
        Path | None,
        option("--data", value="FOLDER", text="Where its paths start; default: beside it.", panel=_MANY),
    ] = None,
    split: Annotated[
        str | None,
        option("--split", value="NAME", text="Which pairs: val, train, test, or a list of the JSON.", panel=_MANY),
    ] = None,
    no_identity: Annotated[
        bool, flag("--no-identity", text="Leave out the row of the unregistered pairs.", panel=_MANY)
    ] = False,
    uncertainty: Annotated[
        bool,
        flag("--uncertainty", text="Judge error_mm and label_uncertainty of FOLDER, or one such map.", panel=_SURE),
    ] = False,
    truth: Annotated[
        Path | None, option("--truth", value="FILE", text="The true transform, fixed to moving.", panel=_SURE)
    ] = None,
    level: Annotated[
        float | None,
        option(
            "--level", value="SHARE", text="Level of the bound; default: as metrics.json says, or 0.9.", panel=_SURE
        ),
    ] = None,
    large_error: Annotated[
        float | None,
        option("--large-error", value="MM", text="Errors above this are to be found; default: 2.", panel=_SURE),
    ] = None,
    mode: Annotated[
        str,
        option(
            "--mode",
            value="NAME",
            text="honest: mm, true log-Jacobian, true folding. challenge: Learn2Reg's numbers (with --pairs).",
            panel=_HOW,
        ),
    ] = "honest",
    labels: Annotated[
        str | None, option("--labels", value="1,2,5-9", text="Only these labels; default: all but 0.", panel=_HOW)
    ] = None,
    label_names: Annotated[
        Path | None,
        option("--label-names", value="FILE", text="CSV: label, name. Others count as unknown.", panel=_HOW),
    ] = None,
    tolerance: Annotated[
        float, option("--tolerance", value="MM", text="Tolerance of the surface Dice.", panel=_HOW)
    ] = TOLERANCE_MM,
    fast: Annotated[
        bool, flag("--fast", text="No surface distances, no non-diffeomorphic volume.", panel=_HOW)
    ] = False,
    threads: Annotated[
        int | None, option("-j", "--threads", value="N", text="Processor cores to use; default: all.", panel=_HOW)
    ] = None,
    output: Annotated[
        Path | None,
        option(
            "-o",
            "--output",
            value="FOLDER",
            text="Tables, JSON, page of --pairs; JSON, pictures of --uncertainty.",
            panel=_OUTPUT,
        ),
    ] = None,
    json_file: Annotated[
        str | None, option("--json", value="FILE|-", text="Everything as JSON; - prints it instead.", panel=_OUTPUT)
    ] = None,
    per_label: Annotated[bool, flag("--per-label", text="Print a line for every label.", panel=_OUTPUT)] = False,
) -> None:
    """Measure how good a registration is.

    Overlap, surface distances and landmark errors in mm, folding, volume change, inverse consistency: whatever can be
    measured with what is given. With --pairs: many pairs, one or several methods, compared by a paired test. With
    --uncertainty: whether a bound of the error holds, and whether an uncertainty points at the errors.
    """
    choose(mode, MODES, "--mode")
    if tolerance <= 0:
        raise OptionError(f"--tolerance is {tolerance}; give millimetres above 0")
    how = {
        "labels": label_list(labels),
        "surface": not fast,
        "non_diffeomorphic": not fast,
        "threads": set_threads(threads),
    }
    overlap = {"--tolerance": tolerance != TOLERANCE_MM, "--fast": fast}
    if uncertainty:
        refuse(overlap, "of surfaces and folding, which --uncertainty does not measure")
    else:
        judging = {"--truth": truth, "--level": level is not None, "--large-error": large_error is not None}
        refuse(judging, "about the uncertainty; give --uncertainty too")
    if pairs is None:
        refuse({"--data": data, "--split": split, "--no-identity": no_identity}, "of a list of pairs; give --pairs")
    elif mode == "challenge":
        refuse(overlap, "of --mode honest; the challenge has one way to measure")
    pair_files = (fixed_labels, moved_labels, moving_labels, fixed_landmarks, moving_landmarks, transform, inverse)
    if pairs is not None:
        if uncertainty:
            raise OptionError("--uncertainty judges one result; score many pairs one by one, without --pairs")
        if any(pair_files) or fixed or moving or mask:
            raise OptionError("--pairs scores many pairs; give their files in the table, not as options")
        refuse({"--per-label": per_label}, "of one pair; with --pairs, -o FOLDER writes labels.csv")
        _evaluate_many(
            pairs, results or [], data, split, mode, label_names, tolerance, not no_identity, how, output, json_file
        )
        return
    if mode != "honest":
        raise OptionError("--mode challenge scores a list of pairs; give it with --pairs (one line is enough)")
    if output is not None and not uncertainty:
        raise OptionError("-o is for --pairs and --uncertainty; the numbers of one pair go to --json FILE")
    given: dict[str, Any] = {
        "fixed_labels": fixed_labels,
        "moved_labels": moved_labels,
        "moving_labels": moving_labels,
        "fixed_landmarks": fixed_landmarks,
        "moving_landmarks": moving_landmarks,
        "transform": transform,
        "inverse": inverse,
        "fixed": fixed,
        "moving": moving,
        "mask": mask,
    }
    if uncertainty:
        _evaluate_uncertainty(
            results or [], given, truth, level, large_error, how, output, json_file, label_names, per_label
        )
        return
    if results:
        if len(results) > 1:
            raise OptionError("several folders are compared with --pairs; one result folder is scored without it")
        given = from_result_folder(Path(results[0]), given)
    _evaluate_pair(given, how, tolerance, label_names, json_file, per_label)


def _evaluate_uncertainty(
    results: list[str],
    given: dict[str, Any],
    truth: Path | None,
    level: float | None,
    large_error: float | None,
    how: dict[str, Any],
    output: Path | None,
    json_file: str | None,
    label_names: Path | None,
    per_label: bool,
) -> None:
    from verimorph.cli.evaluate_uncertainty import finish, inputs_of, score_uncertainty
    from verimorph.io.safe import keep_inputs, require_writable

    _require_partners(given)
    if json_file not in (None, "-"):
        keep_inputs([json_file], inputs_of(results, given, truth))
    if given["inverse"]:
        raise OptionError("--inverse says nothing about an uncertainty; leave it out")
    if large_error is not None and not 0 < large_error < math.inf:
        raise OptionError(f"--large-error is {large_error:g}; give millimetres above 0")
    if output is not None:
        require_writable(output)
    document = score_uncertainty(
        results,
        given,
        truth=truth,
        level=level,
        large_error_mm=2.0 if large_error is None else large_error,
        labels=how["labels"],
    )
    finish(document, output=output, json_file=json_file, label_names=label_names, per_label=per_label)
    _write_json(document, json_file)


def _require_partners(given: dict[str, Any]) -> None:
    for one, other in (("fixed_landmarks", "moving_landmarks"), ("moving_landmarks", "fixed_landmarks")):
        if given[one] is not None and given[other] is None:
            raise OptionError(f"landmarks need a partner list: --{other.replace('_', '-')} is missing")


def _evaluate_pair(
    given: dict[str, Any],
    how: dict[str, Any],
    tolerance: float,
    label_names: Path | None,
    json_file: str | None,
    per_label: bool,
) -> None:
    from verimorph.evaluate.score import score
    from verimorph.io import as_points, read_image

    _require_partners(given)
    if not any(given[k] is not None for k in ("fixed_labels", "fixed_landmarks", "transform")):
        raise OptionError(
            "nothing to measure; give a result folder, -f and -m label maps, -t a transform, or landmarks "
            "(see 'verimorph evaluate --help')"
        )
    if given["fixed_labels"] is None and (given["moved_labels"] or given["moving_labels"]):
        raise OptionError("labels of the moving image need those of the fixed one to compare with; give -f")
    if given["fixed_labels"] is not None and not (given["moved_labels"] or given["moving_labels"]):
        raise OptionError("-f needs something to compare with; give -m moved labels, or --moving-labels and -t")
    if given["moving_labels"] and not given["moved_labels"] and not given["transform"]:
        raise OptionError("--moving-labels are labels before registration; give -t to move them, or -m moved labels")
    images = {
        name: None if given[name] is None else read_image(given[name])
        for name in ("fixed_labels", "moved_labels", "moving_labels", "fixed", "moving", "mask", "jacobian")
        if name in given
    }
    points = [
        None if given[f"{side}_landmarks"] is None else as_points(given[f"{side}_landmarks"], columns=side)
        for side in ("fixed", "moving")
    ]
    fixed_image = images["fixed"] or images["fixed_labels"] or images["moved_labels"]
    moving_image = images["moving"] or images["moving_labels"]
    grids = {"fixed": fixed_image, "moving": moving_image}
    forward = read_chain(given["transform"], **grids)
    backward = read_chain(given["inverse"], fixed=moving_image, moving=fixed_image)
    if images["mask"] is not None:
        from verimorph.io.validate import check_mask

        if fixed_image is None:
            raise OptionError("-x needs the image it belongs to; give --fixed or -f")
        check_mask(images["mask"], fixed_image, "mask")
    metrics = score(
        fixed_labels=images["fixed_labels"],
        moved_labels=images["moved_labels"],
        moving_labels=images["moving_labels"],
        fixed_landmarks=points[0],
        moving_landmarks=points[1],
        transform=forward,
        inverse=backward,
        fixed_grid=None if fixed_image is None else fixed_image.grid,
        moving_grid=None if moving_image is None else moving_image.grid,
        jacobian=images.get("jacobian"),
        mask=images["mask"],
        surface_dice_tolerance_mm=tolerance,
        **how,
    )
    if json_file != "-":
        from verimorph.cli.evaluate_tables import print_pair

        print_pair(metrics, names=read_names(label_names), per_label=per_label)
    _write_json(metrics, json_file)


def _evaluate_many(
    pairs: Path,
    results: list[str],
    data: Path | None,
    split: str | None,
    mode: str,
    label_names: Path | None,
    tolerance: float,
    with_identity: bool,
    how: dict[str, Any],
    output: Path | None,
    json_file: str | None,
) -> None:
    from dataclasses import replace

    from verimorph.evaluate.cases import read_task
    from verimorph.evaluate.many import evaluate_cohort
    from verimorph.evaluate.output import COHORT_FILES, as_document, write_cohort
    from verimorph.io.safe import keep_inputs, require_writable

    if not results and not with_identity:
        raise OptionError("nothing to score; give a folder of results, or leave out --no-identity")
    task = read_task(pairs, data=data, split=split)
    if how["labels"] is not None:
        task = replace(task, labels=tuple(how["labels"]))
    methods = name_methods(results)
    if output is not None:
        # A folder of predictions has tables of the same names, with what predict measured.
        if output.resolve() in {Path(folder).resolve() for folder in methods.values()}:
            raise OptionError(f"-o {output}: is a folder of results that is scored; give a folder for the scores")
        keep_inputs((output / name for name in COHORT_FILES), [pairs, *([] if label_names is None else [label_names])])
        require_writable(output)
    total = len(task.cases) * (len(methods) + with_identity)
    begun = itertools.count()
    with CountBar() as bar:
        cohort = evaluate_cohort(
            task,
            methods,
            mode=mode,
            with_identity=with_identity,
            label_names=read_names(label_names),
            surface=how["surface"],
            non_diffeomorphic=how["non_diffeomorphic"],
            tolerance_mm=tolerance,
            threads=how["threads"],
            progress=lambda method, case: bar(f"{case}, {method}", next(begun), total),
        )
    if output is not None:
        write_cohort(cohort, output)
    if json_file != "-":
        from verimorph.cli.evaluate_tables import print_cohort

        print_cohort(cohort, output)
    _write_json(as_document(cohort), json_file)
    _require_some(cohort)


def _require_some(cohort: Cohort) -> None:
    """Fail loudly when not a single result could be scored: the folder or the table is the wrong one."""
    unreadable = [problem for problem in cohort.problems if problem.kind == "unusable input"]
    if len(unreadable) == len(cohort.cases):
        raise InputError(f"no pair can be scored ({unreadable[0].what}); do the paths start elsewhere? give --data")
    for method in cohort.folders:
        if not any(row["status"] == "ok" for row in cohort.rows if row["method"] == method):
            raise InputError(
                f"{cohort.folders[method]}: not one of the {len(cohort.cases)} pairs has a usable result there; "
                f"expected e.g. {cohort.cases[0]}/transform.h5, {cohort.cases[0]}.h5 or disp_FIXED_MOVING.nii.gz"
            )


def _write_json(document: dict[str, Any], json_file: str | None) -> None:
    if json_file is None:
        return
    if json_file == "-":
        import json

        print(json.dumps(document, indent=1))
        return
    from verimorph.io.documents import write_json

    write_json(document, json_file)
