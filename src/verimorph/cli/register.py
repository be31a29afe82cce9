"""``verimorph register``: align a moving image to a fixed one and write everything that came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verimorph.cli.options import application, examples, flag, option
from verimorph.cli.progress import ProgressBar
from verimorph.cli.runtime import (
    CALIBRATION,
    LEVEL,
    VERDICT_FAIL,
    choose,
    refuse_uncertainty_options,
    schedule,
    set_threads,
)
from verimorph.errors import OptionError

if TYPE_CHECKING:
    from verimorph.image import Image
    from verimorph.registration import Registration

TRANSFORMS = ("rigid", "similarity", "affine", "deformable")
QUALITIES = ("fast", "balanced", "best")
STYLES = ("verimorph", "ants")
STAGES = ("rigid", "similarity", "affine", "deformable")

_FIT = "What is fitted"
_SCORE = "Scoring (never used for fitting)"
_PREPARE = "Intensities"
_EFFORT = "Effort"
_MACHINE = "Machine"
_SURE = "How sure"
_OUTPUT = "Output"

app = application()


@app.command(
    epilog=examples(
        ("Two brains, everything by default:", "verimorph register -f fixed.nii.gz -m moving.nii.gz -o out"),
        (
            "Two contrasts of one patient:",
            "verimorph register -f t1.nii.gz -m flair.nii.gz -o out -t rigid",
        ),
        (
            "Scored with labels:",
            "verimorph register -f a.nii.gz -m b.nii.gz -o out --fixed-labels as.nii.gz --moving-labels bs.nii.gz",
        ),
        (
            "With a bound of the error in mm and a verdict:",
            "verimorph register -f a.nii.gz -m b.nii.gz -o out --uncertainty",
        ),
        (
            "What would be done, how long, how much memory:",
            "verimorph register -f a.nii.gz -m b.nii.gz -o out --dry-run",
        ),
    )
)
def register(
    fixed: Annotated[
        Path, option("-f", "--fixed", value="FILE", text="Image that stays: NIfTI, MGH, NRRD, MHA, PNG, DICOM folder.")
    ],
    moving: Annotated[Path, option("-m", "--moving", value="FILE", text="Image that is aligned to it.")],
    output: Annotated[Path, option("-o", "--output", value="FOLDER", text="Where results go; made if missing.")],
    transform: Annotated[
        str, option("-t", "--transform", value="NAME", text="rigid, similarity, affine or deformable.", panel=_FIT)
    ] = "deformable",
    initial: Annotated[
        str,
        option(
            "--initial",
            value="NAME|FILE",
            text="Where to start: auto, header, identity, centre, centre-of-mass, moments, search, landmarks, "
            "or a transform file of any known format.",
            panel=_FIT,
        ),
    ] = "auto",
    stages: Annotated[
        str | None,
        option("--stages", value="A,B", text="Only these stages, in order; deformable if already aligned.", panel=_FIT),
    ] = None,
    restrict: Annotated[
        str | None,
        option("--restrict", value="1x1x0", text="0 freezes that axis of the fixed image.", panel=_FIT),
    ] = None,
    fixed_mask: Annotated[
        Path | None, option("-x", "--fixed-mask", value="FILE", text="Compare only where this is not 0.", panel=_FIT)
    ] = None,
    moving_mask: Annotated[
        Path | None, option("-X", "--moving-mask", value="FILE", text="The same for the moving image.", panel=_FIT)
    ] = None,
    symmetric: Annotated[
        bool | None, flag("--symmetric/--one-directional", text="Whether both images are treated alike.", panel=_FIT)
    ] = None,
    fixed_labels: Annotated[
        Path | None, option("--fixed-labels", value="FILE", text="Label map of the fixed image.", panel=_SCORE)
    ] = None,
    moving_labels: Annotated[
        Path | None, option("--moving-labels", value="FILE", text="Label map of the moving image.", panel=_SCORE)
    ] = None,
    fixed_landmarks: Annotated[
        Path | None,
        option("--fixed-landmarks", value="FILE", text="CSV, FCSV or MRK.JSON; see --initial landmarks.", panel=_SCORE),
    ] = None,
    moving_landmarks: Annotated[
        Path | None, option("--moving-landmarks", value="FILE", text="As many, in the same order.", panel=_SCORE)
    ] = None,
    nan_value: Annotated[
        float | None,
        option("--nan-value", value="NUMBER", text="Put this in place of NaN and infinite voxels.", panel=_PREPARE),
    ] = None,
    winsorise: Annotated[
        str, option("--winsorise", value="LOW,HIGH", text="Quantiles that intensities are cut at.", panel=_PREPARE)
    ] = "0.005,0.995",
    no_winsorise: Annotated[
        bool, flag("--no-winsorise", text="Leave the extremes of the intensities.", panel=_PREPARE)
    ] = False,
    histogram_matching: Annotated[
        bool, flag("--histogram-matching", text="Match the moving histogram; same contrast only.", panel=_PREPARE)
    ] = False,
    bias_correction: Annotated[
        bool, flag("--bias-correction", text="Remove slow changes of brightness first (N4).", panel=_PREPARE)
    ] = False,
    volume: Annotated[
        int | None, option("--volume", value="N", text="Which volume of 4-D images, from 0.", panel=_PREPARE)
    ] = None,
    fixed_volume: Annotated[
        int | None, option("--fixed-volume", value="N", text="The same for the fixed image alone.", panel=_PREPARE)
    ] = None,
    moving_volume: Annotated[
        int | None, option("--moving-volume", value="N", text="The same for the moving image alone.", panel=_PREPARE)
    ] = None,
    quality: Annotated[str, option("-q", "--quality", value="NAME", text="fast, balanced or best.", panel=_EFFORT)] = (
        "balanced"
    ),
    similarity: Annotated[
        str,
        option(
            "-s",
            "--similarity",
            value="TERM",
            text="auto, lncc, mi, mse, mind; or terms with settings: lncc:radius=4+mind:weight=0.5.",
            panel=_EFFORT,
        ),
    ] = "auto",
    regularity: Annotated[
        str | None,
        option("--regularity", value="TERM", text="What keeps the field smooth: diffusion:weight=0.1.", panel=_EFFORT),
    ] = None,
    levels: Annotated[
        str | None, option("--levels", value="4x2x1", text="Shrink factors, coarse first.", panel=_EFFORT)
    ] = None,
    iterations: Annotated[
        str | None, option("--iterations", value="100x70x50", text="At most so many at each level.", panel=_EFFORT)
    ] = None,
    device: Annotated[
        str, option("--device", value="NAME", text="cpu, cuda, cuda:1, mps (see 'verimorph doctor').", panel=_MACHINE)
    ] = "cpu",
    threads: Annotated[
        int | None,
        option("-j", "--threads", value="N", text="Processor cores to use; default: all.", panel=_MACHINE),
    ] = None,
    seed: Annotated[
        int, option("--seed", value="N", min=0, text="Same seed, threads and machine: the same bits.", panel=_MACHINE)
    ] = 0,
    uncertainty: Annotated[
        bool,
        flag("--uncertainty", text="Also a bound of the error in mm, label uncertainty and a verdict.", panel=_SURE),
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
    output_style: Annotated[
        str,
        option("--output-style", value="NAME", text="verimorph, or ants: also files by ANTs' names.", panel=_OUTPUT),
    ] = "verimorph",
    both: Annotated[bool, flag("--both", text="Also carry the fixed image into moving space.", panel=_OUTPUT)] = False,
    no_report: Annotated[bool, flag("--no-report", text="Leave out report.html.", panel=_OUTPUT)] = False,
    dry_run: Annotated[
        bool, flag("--dry-run", text="Say what would be done, time and memory; then stop.", panel=_OUTPUT)
    ] = False,
    verbose: Annotated[
        bool, flag("-v", "--verbose", text="A line an iteration, and the settings used.", panel=_OUTPUT)
    ] = False,
) -> None:
    """Align a moving image to a fixed one.

    Writes the moved image, transforms both ways, Jacobian, metrics, provenance and a report to the output folder.
    """
    used_threads = set_threads(threads)
    settings: dict[str, Any] = {
        "transform": choose(transform, TRANSFORMS, "--transform"),
        "initial": initial,
        "stages": _names(stages, STAGES, "--stages"),
        "restrict": _axes(restrict),
        "symmetric": symmetric,
        "nan_value": nan_value,
        "winsorise": None if no_winsorise else _quantiles(winsorise),
        "histogram_matching": histogram_matching,
        "bias_correction": bias_correction,
        "similarity": similarity,
        "regularity": regularity,
        "quality": choose(quality, QUALITIES, "--quality"),
        "levels": schedule(levels, "--levels"),
        "iterations": schedule(iterations, "--iterations"),
        "device": device,
        "threads": used_threads,
        "seed": seed,
        "uncertainty": uncertainty,
        "level": LEVEL if level is None else level,
        "calibration": CALIBRATION if calibration is None else calibration,
    }
    if not uncertainty:
        refuse_uncertainty_options(strict=strict, level=level, calibration=calibration)
    choose(output_style, STYLES, "--output-style")
    volumes = {
        "fixed": volume if fixed_volume is None else fixed_volume,
        "moving": volume if moving_volume is None else moving_volume,
    }

    from verimorph.io.safe import keep_inputs, require_writable
    from verimorph.registration import taken

    given = [fixed, moving, fixed_mask, moving_mask, fixed_labels, moving_labels, fixed_landmarks, moving_landmarks]
    given += [Path(initial)] if Path(initial).is_file() else []
    keep_inputs(taken(output), [file for file in given if file is not None])
    if not dry_run:
        require_writable(output)
    inputs: dict[str, Any] = {
        "fixed": _read(fixed, volumes["fixed"]),
        "moving": _read(moving, volumes["moving"]),
        "fixed_mask": fixed_mask,
        "moving_mask": moving_mask,
        "fixed_labels": fixed_labels,
        "moving_labels": moving_labels,
        "fixed_landmarks": fixed_landmarks,
        "moving_landmarks": moving_landmarks,
    }
    if dry_run:
        from verimorph.cli.summary import print_plan
        from verimorph.registration import plan

        print_plan(plan(**inputs, **settings))
        return

    from verimorph.registration import register as align

    with ProgressBar(verbose=verbose) as progress:
        result: Registration = align(**inputs, **settings, progress=progress)
    from verimorph.cli.summary import print_summary

    result.save(output, style=output_style, both=both, report=not no_report)
    print_summary(result, output, verbose=verbose)
    if strict and result.uncertainty is not None and result.uncertainty.verdict == "fail":
        raise typer.Exit(VERDICT_FAIL)


def _read(path: Path, volume: int | None) -> Image | Path:
    """Return ``path`` itself, or the chosen volume of the file."""
    if volume is None:
        return path
    from verimorph.io import read_image

    return read_image(path, volume=volume)


def _names(text: str | None, known: tuple[str, ...], option: str) -> tuple[str, ...] | None:
    """Read names with commas or plus signs between them.

    >>> _names("rigid,affine", STAGES, "--stages")
    ('rigid', 'affine')
    """
    if text is None:
        return None
    return tuple(choose(name.strip(), known, option) for name in text.replace("+", ",").split(","))


def _axes(text: str | None) -> tuple[bool, ...] | None:
    """Read which axes are free to move.

    >>> _axes("1x1x0")
    (True, True, False)
    """
    numbers = schedule(text, "--restrict")
    if numbers is None:
        return None
    if set(numbers) - {0, 1} or len(numbers) not in (2, 3) or not any(numbers):
        raise OptionError(
            f"--restrict is '{text}'; give 1 (free) or 0 (frozen) for each axis of the fixed image: 1x1x0"
        )
    return tuple(bool(number) for number in numbers)


def _quantiles(text: str) -> tuple[float, float]:
    """Read two quantiles.

    >>> _quantiles("0.01,0.99")
    (0.01, 0.99)
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 1:
        raise OptionError(f"--winsorise is '{text}'; give two quantiles between 0 and 1, e.g. 0.005,0.995")
    return low, high
