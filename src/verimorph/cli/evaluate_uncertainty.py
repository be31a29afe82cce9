"""``verimorph evaluate --uncertainty``: what lies in a result folder beside a truth, as a table, JSON and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verimorph.cli.evaluate_inputs import from_result_folder, read_chain, read_names
from verimorph.errors import InputError, OptionError
from verimorph.uncertainty.maps import BOUND

if TYPE_CHECKING:
    from verimorph.image import Image
    from verimorph.transform import Transform

DEFAULT_LEVEL = 0.9
SPREAD, LABELS = "displacement_std.nii.gz", "label_uncertainty.nii.gz"


def score_uncertainty(
    results: list[str],
    given: dict[str, Any],
    *,
    truth: Path | None,
    level: float | None,
    large_error_mm: float,
    labels: list[int] | None,
) -> dict[str, Any]:
    """Read what there is and score it; returns the document that goes to the table, the JSON file and the pictures.

    Parameters
    ----------
    results
        A result folder, or a map in one.
    given
        Files given as options, by role; they win over those in the folder.
    truth
        Known transform.
    level
        Level of the bound; default what ``metrics.json`` says, or 0.9.
    large_error_mm, labels
        As the options of the command say.
    """
    from verimorph import __version__
    from verimorph.io.documents import without_nan

    maps, folder, theirs = _maps(results)
    facts = {} if theirs else _calibration(folder)
    if not theirs and facts == {} and (folder / "metrics.json").is_file():
        raise InputError(
            f"{folder}: its metrics.json knows of no error bound, so {', '.join(p.name for p in maps.values())} "
            "there belong to another registration; register with --uncertainty"
        )
    level, source = _level(level, facts)
    given = _with_siblings(folder, given)
    images = _images(maps, given)
    document: dict[str, Any] = {
        "verimorph": __version__,
        "mode": "uncertainty",
        "unit": "mm",
        "level": level,
        "level_from": source,
        "calibration": facts.get("calibration"),
        "calibrated_for": facts.get("calibrated_for"),
        "maps": {name: str(path) for name, path in maps.items()},
    }
    paired = given["fixed_landmarks"] is not None and given["moving_landmarks"] is not None
    if truth is not None or paired:
        document |= _judge_bound(images, given, truth, paired, level, large_error_mm, labels)
    entropy, fixed_labels = images.get("label_uncertainty"), images["fixed_labels"]
    if entropy is not None and fixed_labels is not None:
        document["labels"] = _judge_labels(entropy, fixed_labels, images, given, labels)
    if not document.keys() & {"transform", "landmarks", "labels"}:
        raise OptionError(_nothing_to_compare(images))
    return dict(without_nan(document))


def inputs_of(results: list[str], given: dict[str, Any], truth: Path | None) -> list[Path]:
    """Every file that may be read to judge a result."""
    from verimorph.registration import RESULT_FILES

    found = [Path(name) for name in results] + ([] if truth is None else [truth])
    found += [folder / name for folder in found if folder.is_dir() for name in RESULT_FILES]
    for value in given.values():
        found += [Path(one) for one in (value if isinstance(value, list | tuple) else [value]) if one is not None]
    return found


def _judge_bound(
    images: dict[str, Image | None],
    given: dict[str, Any],
    truth: Path | None,
    paired: bool,
    level: float,
    large_error_mm: float,
    labels: list[int] | None,
) -> dict[str, Any]:
    """The bound beside a known transform, landmarks, or both."""
    from verimorph.io import as_points
    from verimorph.uncertainty.against import against_landmarks, against_transform

    bound = images.get("bound")
    if bound is None:
        raise InputError(f"there is no {BOUND} to judge; register with --uncertainty, or give the map itself")
    how: dict[str, Any] = {"level": level, "spread": images.get("spread"), "large_error_mm": large_error_mm}
    transform = _read(given["transform"], images, bound)
    if transform is None:
        raise OptionError("the error is that of a transform; give it with -t, or give the folder it lies in")
    found = {}
    if truth is not None:
        known = _read([truth], images, bound)
        assert known is not None
        if {known.ndim, transform.ndim} != {bound.grid.ndim}:
            raise InputError(
                f"{truth} is {known.ndim}-D, the transform {transform.ndim}-D, {bound.name} {bound.grid.ndim}-D; "
                "all must be of one pair"
            )
        found["transform"] = against_transform(
            bound,
            transform,
            known,
            regions=images["fixed_labels"],
            mask=images["mask"],
            fixed=images["fixed"],
            **how,
        )
        if labels is not None and "regions" in found["transform"]:
            rows = found["transform"]["regions"]
            found["transform"]["regions"] = [row for row in rows if row["group"] in labels]
    if paired:
        points = [as_points(given[f"{side}_landmarks"], columns=side) for side in ("fixed", "moving")]
        found["landmarks"] = against_landmarks(bound, transform, *points, **how)
    return found


def _judge_labels(
    entropy: Image,
    fixed_labels: Image,
    images: dict[str, Image | None],
    given: dict[str, Any],
    labels: list[int] | None,
) -> dict[str, Any]:
    """The uncertainty of the moved labels beside the labels of the fixed image."""
    from verimorph.uncertainty.against import against_labels

    moved = images["moved_labels"]
    if moved is None:
        transform = _read(given["transform"], images, entropy)
        if images["moving_labels"] is None or transform is None:
            raise OptionError("-f needs something to compare with; give -m moved labels, or --moving-labels and -t")
        moved = transform.resample(images["moving_labels"], entropy.grid, interpolation="nearest")
    return against_labels(entropy, fixed_labels, moved, labels=labels, mask=images["mask"])


def _read(paths: list[Path] | None, images: dict[str, Image | None], reference: Image) -> Transform | None:
    """Read transforms; the map stands in for the fixed image, whose grid it has."""
    return read_chain(paths, fixed=images["fixed"] or reference, moving=images["moving"] or images["moving_labels"])


def finish(
    document: dict[str, Any],
    *,
    output: Path | None,
    json_file: str | None,
    label_names: Path | None,
    per_label: bool,
) -> None:
    """Print the table and write what was asked for."""
    names = read_names(label_names)
    if output is not None:
        from verimorph.uncertainty.output import write_scores

        write_scores(document, output, names=names)
    if json_file != "-":
        from verimorph.cli.evaluate_tables import print_uncertainty

        print_uncertainty(document, names=names, per_label=per_label, output=output)


def _maps(results: list[str]) -> tuple[dict[str, Path], Path, bool]:
    """The maps, the folder they lie in, and whether it is one of somebody else's that lies there.

    A map of another name than ours is judged alone: what lies beside it says nothing of it.
    """
    if len(results) != 1:
        raise OptionError(f"--uncertainty judges one result; give its folder or its {BOUND}")
    path = Path(results[0])
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give what 'verimorph register --uncertainty' wrote")
    folder = path if path.is_dir() else path.parent
    beside = {"bound": folder / BOUND, "spread": folder / SPREAD, "label_uncertainty": folder / LABELS}
    theirs = path.is_file() and path.name not in (BOUND, SPREAD, LABELS)
    if theirs:
        role = "label_uncertainty" if path.name.startswith("label_uncertainty") else "bound"
        return {role: path}, folder, True
    maps = {name: file for name, file in beside.items() if file.is_file()}
    if not maps.keys() & {"bound", "label_uncertainty"}:
        raise InputError(f"{folder}: has neither {BOUND} nor {LABELS}; register with --uncertainty")
    return maps, folder, False


def _calibration(folder: Path) -> dict[str, Any]:
    """What ``metrics.json`` says about the bound; nothing where there is none."""
    file = folder / "metrics.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return dict(found.get("uncertainty") or {})
    except (ValueError, AttributeError, TypeError):
        raise InputError(f"{file}: is damaged; register again, or give --level and move it away") from None


def _level(level: float | None, facts: dict[str, Any]) -> tuple[float, str]:
    """Level of the bound and where it comes from."""
    known = facts.get("level")
    for value, source in ((level, "--level"), (known, "metrics.json")):
        if value is not None and not (isinstance(value, int | float) and 0 < value < 1):
            raise OptionError(f"the level of the bound is {value} ({source}); it lies between 0 and 1, e.g. 0.9")
    if level is not None and known is not None and abs(level - known) > 1e-9:
        raise OptionError(
            f"--level is {level:g}, but metrics.json says that the bound is at {known:g}; leave out --level"
        )
    if level is not None:
        return level, "--level"
    return (DEFAULT_LEVEL, "default") if known is None else (float(known), "metrics.json")


def _with_siblings(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Fill in what ``register`` wrote beside the maps, where it did."""
    if (folder / "transform.h5").is_file() or any(folder.glob("moved_labels.*")):
        found = from_result_folder(folder, given)
        if found["fixed"] is not None and found["fixed"] == found.get("jacobian"):
            found["fixed"] = None  # a Jacobian map shows no anatomy
        return found
    return given


def _images(maps: dict[str, Path], given: dict[str, Any]) -> dict[str, Image | None]:
    from verimorph.io import read_image

    images: dict[str, Any] = {name: read_image(path) for name, path in maps.items()}
    for role in ("fixed", "moving", "fixed_labels", "moved_labels", "moving_labels", "mask"):
        images[role] = None if given[role] is None else read_image(given[role])
    return images


def _nothing_to_compare(images: dict[str, Image | None]) -> str:
    if images["fixed_labels"] is not None:
        return f"labels are compared with {LABELS}, which is not there; register with --uncertainty and --moving-labels"
    return (
        "nothing to compare the uncertainty with; give --truth, --fixed-landmarks and --moving-landmarks, or -f labels "
        "of the fixed image"
    )
