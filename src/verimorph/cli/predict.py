"""``verimorph predict``: a trained model on a pair, a list of pairs, a split of a data set, or on single images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verimorph.cli.options import application, examples, flag, option
from verimorph.cli.progress import CountBar, ProgressBar
from verimorph.cli.runtime import (
    CALIBRATION,
    LEVEL,
    USER_ERROR,
    VERDICT_FAIL,
    choose,
    counted,
    refuse,
    refuse_uncertainty_options,
    say,
    schedule,
    set_threads,
)
from verimorph.errors import OptionError

if TYPE_CHECKING:
    from verimorph.pipeline import Recipe
    from verimorph.predict.many import Done, Wanted
    from verimorph.registration import Registration

FORMS = ("learn2reg-2020", "learn2reg")
SUFFIXES = (".nii.gz", ".npz")

_PAIR = "One pair"
_MANY = "Many pairs"
_IMAGES = "Segmentation models"
_REFINE = "Refinement on the pair at hand"
_START = "Before the model"
_SURE = "How sure"
_OUTPUT = "Output"
_MACHINE = "Machine"

app = application()


@app.command(
    epilog=examples(
        (
            "One pair, written as 'register' writes it:",
            "verimorph predict model -f fixed.nii.gz -m moving.nii.gz -o out",
        ),
        ("The same, improved by 20 iterations:", "verimorph predict model -f a.nii.gz -m b.nii.gz -o out --refine 20"),
        (
            "The validation pairs of a challenge, as a submission:",
            "verimorph predict model --dataset l2r_abdomen_ct --root data --val -o out --save-submission learn2reg",
        ),
        ("Labels for every image of a folder:", "verimorph predict segmenter --folder images -o labels"),
    )
)
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a trained model.", show_default=False)],
    output: Annotated[Path, option("-o", "--output", value="FOLDER", text="Where results go; made if missing.")],
    fixed: Annotated[
        list[Path] | None,
        option("-f", "--fixed", value="FILE", text="Image that stays; again for each further contrast.", panel=_PAIR),
    ] = None,
    moving: Annotated[
        list[Path] | None, option("-m", "--moving", value="FILE", text="Image that is aligned to it.", panel=_PAIR)
    ] = None,
    volume: Annotated[
        int | None, option("--volume", value="N", text="Which volume of 4-D images, from 0.", panel=_PAIR)
    ] = None,
    fixed_labels: Annotated[
        Path | None, option("--fixed-labels", value="FILE", text="Label map, for scoring only.", panel=_PAIR)
    ] = None,
    moving_labels: Annotated[
        Path | None, option("--moving-labels", value="FILE", text="The same of the moving image.", panel=_PAIR)
    ] = None,
    fixed_landmarks: Annotated[
        Path | None, option("--fixed-landmarks", value="FILE", text="Points, for scoring only.", panel=_PAIR)
    ] = None,
    moving_landmarks: Annotated[
        Path | None, option("--moving-landmarks", value="FILE", text="As many, in the same order.", panel=_PAIR)
    ] = None,
    pairs: Annotated[
        Path | None,
        option("--pairs", value="FILE", text="CSV with fixed and moving, or a Learn2Reg dataset JSON.", panel=_MANY),
    ] = None,
    data: Annotated[
        Path | None, option("--data", value="FOLDER", text="Where relative names in --pairs start.", panel=_MANY)
    ] = None,
    dataset: Annotated[
        str | None, option("--dataset", value="NAME", text="A known data set, such as l2r_abdomen_ct.", panel=_MANY)
    ] = None,
    root: Annotated[Path | None, option("--root", value="FOLDER", text="Where the data set lies.", panel=_MANY)] = None,
    split: Annotated[
        str | None,
        option(
            "--split",
            value="NAME",
            text="Which part: train, val or test. Default: val of pairs of a data set, else all.",
            panel=_MANY,
        ),
    ] = None,
    train: Annotated[bool, flag("--train", text="Short for --split train.", panel=_MANY)] = False,
    val: Annotated[bool, flag("--val", text="Short for --split val.", panel=_MANY)] = False,
    test: Annotated[bool, flag("--test", text="Short for --split test.", panel=_MANY)] = False,
    image: Annotated[
        list[Path] | None,
        option("--image", value="FILE", text="Image to label; again for each further contrast.", panel=_IMAGES),
    ] = None,
    folder: Annotated[
        Path | None, option("--folder", value="FOLDER", text="Label every image in it.", panel=_IMAGES)
    ] = None,
    largest: Annotated[
        str | None,
        option("--largest", value="all|1,2", text="Keep the largest component of these labels.", panel=_IMAGES),
    ] = None,
    keep_true: Annotated[
        bool, flag("--keep-true", text="Put true labels back where the data set has them.", panel=_IMAGES)
    ] = False,
    refine: Annotated[
        str | None,
        option(
            "--refine",
            value="N",
            text="Iterations of the solver after the model; 100x70x10: of each level, coarse first.",
            panel=_REFINE,
        ),
    ] = None,
    similarity: Annotated[
        str, option("-s", "--similarity", value="TERM", text="What the solver compares by.", panel=_REFINE)
    ] = "auto",
    regularity: Annotated[
        str | None,
        option("--regularity", value="TERM", text="What keeps the field smooth: diffusion:weight=0.1.", panel=_REFINE),
    ] = None,
    levels: Annotated[
        str | None,
        option(
            "--levels",
            value="4x2x1",
            text="Shrink factors; default: 2x1. Those above 1 get half of a single N.",
            panel=_REFINE,
        ),
    ] = None,
    start: Annotated[
        str | None,
        option(
            "--start",
            value="NAME|FILE",
            text="Another start than the model's: none, centres, rigid, affine, or a linear transform file.",
            panel=_START,
        ),
    ] = None,
    uncertainty: Annotated[
        bool,
        flag(
            "--uncertainty", text="A bound of the error in mm, label uncertainty, a verdict, of each pair.", panel=_SURE
        ),
    ] = False,
    level: Annotated[
        float | None,
        option("--level", value="Q", text="Share of voxels for which the bound holds; default: 0.9.", panel=_SURE),
    ] = None,
    calibration: Annotated[
        str | None,
        option(
            "--calibration",
            value="NAME|FILE[:KIND]",
            text="What the bound was learned on; default: general.",
            panel=_SURE,
        ),
    ] = None,
    strict: Annotated[
        bool, flag("--strict", text="Exit with 3 when the verdict is fail (with --uncertainty).", panel=_SURE)
    ] = False,
    save_submission: Annotated[
        str | None,
        option("--save-submission", value="FORM", text="Also as learn2reg-2020 or learn2reg wants it.", panel=_OUTPUT),
    ] = None,
    submission_suffix: Annotated[
        str, option("--submission-suffix", value="SUFFIX", text=".nii.gz or .npz (of 2020: .npz).", panel=_OUTPUT)
    ] = ".nii.gz",
    save_moved: Annotated[
        bool, flag("--save-moved", text="Of many pairs: moved images and labels.", panel=_OUTPUT)
    ] = False,
    save_field: Annotated[
        bool, flag("--save-field", text="The whole displacement as field.nii.gz, mm.", panel=_OUTPUT)
    ] = False,
    save_grid: Annotated[
        bool, flag("--save-grid", text="Moving voxel of each fixed voxel; spatial gradients.", panel=_OUTPUT)
    ] = False,
    save_all: Annotated[
        bool, flag("--save-all", text="Of many pairs: all that 'register' writes.", panel=_OUTPUT)
    ] = False,
    no_report: Annotated[bool, flag("--no-report", text="Leave out report.html.", panel=_OUTPUT)] = False,
    device: Annotated[
        str, option("--device", value="NAME", text="cpu, cuda, cuda:1, mps (see 'verimorph doctor').", panel=_MACHINE)
    ] = "cpu",
    threads: Annotated[
        int | None, option("-j", "--threads", value="N", text="Processor cores to use; default: all.", panel=_MACHINE)
    ] = None,
    tile: Annotated[
        str | None,
        option("--tile", value="96x96x96", text="Largest piece at once; default: what memory holds.", panel=_MACHINE),
    ] = None,
    seed: Annotated[
        int, option("--seed", value="N", min=0, text="Same seed, threads and machine: the same bits.", panel=_MACHINE)
    ] = 0,
) -> None:
    """Align images by a trained model, or label them by a trained segmentation model.

    A pair is written as 'register' writes it. Of many pairs each has a folder with its transform and metrics, and
    pairs.csv has a line; what is there already is not done again.
    """
    set_threads(threads)
    chosen = _split(split, train=train, val=val, test=test)
    if save_submission is not None:
        choose(save_submission, FORMS, "--save-submission")
    choose(submission_suffix, SUFFIXES, "--submission-suffix")
    pieces = schedule(tile, "--tile", least=1)
    offered = {
        "-f and -m": fixed or moving,
        "--pairs": pairs,
        "--dataset": dataset,
        "--image": image,
        "--folder": folder,
    }
    given = [name for name, value in offered.items() if value]
    if len(given) != 1:
        many = f"{' and '.join(given)} are given" if given else "nothing is"
        raise OptionError(f"{many}; give one of: -f and -m, --pairs, --dataset with --root, --image, --folder")
    if chosen is not None and pairs is None and dataset is None:
        raise OptionError("--split chooses among the pairs of --pairs or --dataset; neither is given")
    if not uncertainty:
        refuse_uncertainty_options(strict=strict, level=level, calibration=calibration)
    level = LEVEL if level is None else level
    calibration = CALIBRATION if calibration is None else calibration
    from verimorph.uncertainty.bound import read_calibration

    if uncertainty:
        read_calibration(calibration).check(level)  # before the model is loaded
    solver = {"--similarity": similarity != "auto", "--regularity": regularity, "--levels": levels}
    scores = {
        "--fixed-labels": fixed_labels,
        "--moving-labels": moving_labels,
        "--fixed-landmarks": fixed_landmarks,
        "--moving-landmarks": moving_landmarks,
    }
    if refine is None:
        refuse(solver, "for the refinement; give --refine N")
    if save_submission is None:
        refuse({"--submission-suffix": submission_suffix != SUFFIXES[0]}, "for a submission; give --save-submission")
    if pairs is None:
        refuse({"--data": data}, "where the names in a list start; give --pairs")
    if dataset is None:
        refuse({"--root": root}, "where a data set lies; give --dataset")
    if not fixed and not moving:
        refuse(scores, "of one pair (-f and -m); a list has columns for them, a data set brings its own")
        refuse({"--volume": volume is not None}, "of one pair (-f and -m); save the volume as a file of its own")
    if moving_labels is None:
        refuse({"--fixed-labels": fixed_labels}, "compared with those of the moving image; give --moving-labels")

    from verimorph.io.safe import require_writable
    from verimorph.methods.checkpoint import read_card

    card = read_card(model)
    require_writable(output)
    if card.task == "segmentation":
        if fixed or moving or pairs:
            raise OptionError(f"{model}: is a segmentation model; it takes --image, --folder or --dataset, not pairs")
        others = {
            "--uncertainty": uncertainty,
            "--refine": refine,
            "--start": start,
            "--save-submission": save_submission,
            "--save-moved": save_moved,
            "--save-field": save_field,
            "--save-grid": save_grid,
            "--save-all": save_all,
            "--no-report": no_report,
            "--seed": seed,
        }
        refuse(others, f"of registrations; {model} is a segmentation model")
        _segment(model, output, image, folder, dataset, root, chosen, largest, keep_true, device, pieces)
        return
    refuse({"--largest": largest, "--keep-true": keep_true}, f"of label maps; {model} is a registration model")
    if image or folder:
        raise OptionError(f"{model}: is a registration model; it takes pairs (-f and -m, --pairs, --dataset)")
    if (fixed is None) != (moving is None):
        raise OptionError(f"{'--moving' if moving is None else '--fixed'} is missing; a pair needs both")

    from verimorph.predict.many import Wanted

    recipe = None
    iterations = schedule(refine, "--refine")
    if iterations is not None:
        from verimorph.predict.refine import refinement_recipe

        recipe = refinement_recipe(
            iterations,
            similarity=similarity,
            regularity=regularity,
            levels=schedule(levels, "--levels"),
            device=device,
            seed=seed,
        )
    registrar = _registrar(model, device, start, pieces, seed)
    held = None
    if uncertainty:
        held = read_calibration(calibration, ndim=registrar.preparation.ndim)
    wanted = Wanted(
        moved=save_moved,
        field=save_field,
        grid=save_grid,
        everything=save_all,
        report=not no_report,
        submission=save_submission,
        suffix=submission_suffix,
        calibration=held,
        level=level,
    )
    if fixed and moving:
        inputs = {name.removeprefix("--").replace("-", "_"): file for name, file in scores.items()}
        read = [*fixed, *moving, *(Path(file) for file in (*scores.values(), start) if file is not None)]
        result = _one(registrar, fixed, moving, inputs, recipe, wanted, output, read, volume)
        if strict and result.uncertainty is not None and result.uncertainty.verdict == "fail":
            raise typer.Exit(VERDICT_FAIL)
        return
    from verimorph.predict.jobs import dataset_of, jobs_of_dataset, jobs_of_table

    if pairs is not None:
        jobs = jobs_of_table(pairs, data=data, split=chosen)
    else:
        jobs = jobs_of_dataset(dataset_of(str(dataset), root), chosen or "val")
    from verimorph.predict.many import means, predict_many

    with CountBar() as tell:
        done = predict_many(registrar, jobs, output, wanted=wanted, refinement=recipe, tell=tell)
    if held is not None:
        _verdicts(done, output)
    _summary(done, means(done.rows), output, "pairs")
    if strict and any(row.get("verdict") == "fail" for row in done.rows):
        raise typer.Exit(VERDICT_FAIL)


def _registrar(model: Path, device: str, start: str | None, tile: tuple[int, ...] | None, seed: int) -> Any:
    from verimorph.predict.registrar import Registrar
    from verimorph.registration import check_device

    check_device(device)
    settings: dict[str, Any] = {"tile": tile, "seed": seed}
    if start is not None:
        settings["start"] = _start(start)
    registrar = Registrar.load(model, device=device, **settings)
    ndim = registrar.preparation.ndim
    _check_tile(tile, ndim)
    if not isinstance(registrar.start, str) and len(registrar.start) != ndim + 1:
        raise OptionError(
            f"--start {start}: is {len(registrar.start) - 1}-D, the model is {ndim}-D; give a fitting one"
        )
    return registrar


def _check_tile(tile: tuple[int, ...] | None, ndim: int) -> None:
    if tile is not None and len(tile) != ndim:
        raise OptionError(f"--tile has {len(tile)} sides, the model is {ndim}-D")


def _start(text: str) -> Any:
    """The name of a start, or the matrix of a linear transform file."""
    starts = ("none", "centres", "rigid", "affine")
    if text in starts or not Path(text).exists():
        return choose(text, starts, "--start")
    from verimorph.io import read_transform
    from verimorph.transform import Linear

    found = read_transform(text)
    if not isinstance(found, Linear):
        raise OptionError(f"--start {text}: is no linear transform; give one, or a name")
    return found.matrix


def _split(split: str | None, *, train: bool, val: bool, test: bool) -> str | None:
    named = [name for name, wanted in (("train", train), ("val", val), ("test", test)) if wanted]
    named += [split] if split is not None else []
    if len(set(named)) > 1:
        raise OptionError(f"{' and '.join(named)} are asked for at once; give one split")
    return named[0] if named else None


def _one(
    registrar: Any,
    fixed: list[Path],
    moving: list[Path],
    inputs: dict[str, Any],
    recipe: Recipe | None,
    wanted: Wanted,
    output: Path,
    read: list[Path],
    volume: int | None,
) -> Registration:
    from verimorph.cli.summary import print_summary
    from verimorph.io import read_image
    from verimorph.io.safe import keep_inputs, writing_folder
    from verimorph.predict.many import write_extras, write_submission
    from verimorph.predict.pair import predict_pair
    from verimorph.predict.submission import field_names
    from verimorph.registration import left_behind, taken

    keep_inputs(taken(output), read)  # before the work; below, with what else is written
    names = fixed[0].name, moving[0].name
    if wanted.submission is not None:
        field_names([names], form=wanted.submission, suffix=wanted.suffix)  # refused before the work, not after it
    seen: list[Any] = []
    with ProgressBar() as progress:
        result = predict_pair(
            registrar,
            fixed=[read_image(file, volume=volume) for file in fixed],
            moving=[read_image(file, volume=volume) for file in moving],
            **inputs,
            refinement=recipe,
            progress=progress,
            watch=seen.append,
        )
        if wanted.calibration is not None:
            result.assess(calibration=wanted.calibration, level=wanted.level)
    with writing_folder(output, stale=left_behind(output)) as out:
        write_submission(result, out, names, wanted)
        result.save(out, report=wanted.report)
        write_extras(result, seen[0], out, wanted)
        keep_inputs((output / file.relative_to(out) for file in out.rglob("*")), read)
    print_summary(result, output)
    return result


def _segment(
    model: Path,
    output: Path,
    image: list[Path] | None,
    folder: Path | None,
    dataset: str | None,
    root: Path | None,
    split: str | None,
    largest: str | None,
    keep_true: bool,
    device: str,
    tile: tuple[int, ...] | None,
) -> None:
    from verimorph.predict.jobs import dataset_of, images_of_dataset, images_of_folder, job_of_images
    from verimorph.predict.many import means, segment_many
    from verimorph.predict.segmenter import Segmenter
    from verimorph.registration import check_device

    kept: list[int] | bool = largest == "all"
    if largest not in (None, "all"):
        words = str(largest).split(",")
        if not all(word.strip().isdigit() for word in words):
            raise OptionError(f"--largest is '{largest}'; give 'all' or label values with commas: 1,6")
        kept = [int(word) for word in words]
    if keep_true and dataset is None:
        raise OptionError("--keep-true needs a data set that knows the true labels; give --dataset and --root")
    check_device(device)
    segmenter = Segmenter.load(model, device=device, tile=tile)
    _check_tile(tile, segmenter.preparation.ndim)
    drawn = {value for value in segmenter.values or () if value}
    strangers = sorted(set(kept) - drawn) if drawn and isinstance(kept, list) else []
    if strangers:
        labels = ", ".join(map(str, sorted(drawn)))
        raise OptionError(f"--largest: the model draws no label {strangers[0]}; its labels are {labels}")
    if image:
        jobs = [job_of_images(image)]
    elif folder is not None:
        jobs = images_of_folder(folder)
    else:
        jobs = images_of_dataset(dataset_of(str(dataset), root), split)
    with CountBar() as tell:
        done = segment_many(segmenter, jobs, output, largest=kept, keep_true=keep_true, tell=tell)
    _summary(done, means(done.rows), output, "images")


def _verdicts(done: Done, output: Path) -> None:
    """Print what a look at all pairs together says."""
    from verimorph.cli.summary import print_cohort
    from verimorph.uncertainty.cohort import cohort
    from verimorph.uncertainty.maps import facts_of_result

    names = [str(row["case"]) for row in done.rows if row.get("status") == "ok"]
    if names:
        print_cohort(cohort({name: facts_of_result(output / name) for name in names}))


def _summary(done: Done, means: dict[str, float], output: Path, what: str) -> None:
    """Print the means, what was skipped and where it is; list what failed, and end as a mistake in the input does."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(f"mean of {counted(len(done.rows) - len(done.failures), what)}")
    table.add_column("", justify="right")
    for name, value in means.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}")
    if means:
        console.print(table)
    if done.skipped:
        console.print(f"{counted(done.skipped, what)} {'was' if done.skipped == 1 else 'were'} there already")
    if len(done.failures) < len(done.rows):
        console.print(f"Results in {output}", soft_wrap=True)
    if done.failures:
        for name, message in done.failures:
            say("failed", f"{name}: {message}")
        some = f"{len(done.failures)} of {counted(len(done.rows), what)} failed"
        say("error", f"{some}; the others are in {output}" if len(done.failures) < len(done.rows) else some)
        raise typer.Exit(USER_ERROR)
