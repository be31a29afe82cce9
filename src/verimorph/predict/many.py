"""Many pairs or images through one model: resumable, one table; a failure is listed and the rest goes on."""

from __future__ import annotations

import csv
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from verimorph import pipeline
from verimorph.errors import InputError, ResourceError, VerimorphError, VerimorphWarning
from verimorph.evaluate.score import flat_measures
from verimorph.io import write_image, write_images, write_transform
from verimorph.io.documents import write_json
from verimorph.io.images import content_hash
from verimorph.io.lock import locked
from verimorph.io.safe import keep_inputs, replacing, replacing_folder
from verimorph.memory import is_out_of_memory
from verimorph.predict.jobs import ImageJob, PairJob
from verimorph.predict.pair import described, identity_of, predict_pair, same_model, short_hash
from verimorph.predict.registrar import Prediction, Registrar
from verimorph.predict.segmenter import Segmenter, with_true_labels
from verimorph.predict.submission import field_names, write_field
from verimorph.uncertainty.maps import facts_of_result

if TYPE_CHECKING:
    from verimorph.registration import Registration
    from verimorph.uncertainty.bound import Calibration

TABLE, IMAGES = "pairs.csv", "images.csv"
SUBMISSION = "submission"
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Wanted:
    """What is written for each pair besides ``transform.h5``, ``metrics.json`` and ``provenance.json``.

    Attributes
    ----------
    moved
        ``moved.nii.gz`` and ``moved_labels.nii.gz``.
    field
        ``field.nii.gz``: the whole transform as one displacement, mm, as ITK and ANTs read it; and ``inverse.h5``.
    grid
        ``grid.nii.gz``: where in the moving image, in its voxels, every voxel of the fixed image is read; of models
        that predict spatial gradients also ``gradients.nii.gz``, on the model's grid.
    everything, report
        What ``verimorph register`` writes; with its page or without.
    submission
        Form of a challenge (`verimorph.predict.submission`); fields go to ``submission/``.
    calibration, level
        Of the error bound, its maps and the verdict; None: none of them.
    """

    moved: bool = False
    field: bool = False
    grid: bool = False
    everything: bool = False
    report: bool = True
    submission: str | None = None
    suffix: str = ".nii.gz"
    calibration: Calibration | None = None
    level: float = 0.9


@dataclass
class Done:
    """What came of a list of pairs or images."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    skipped: int = 0


def predict_many(
    registrar: Registrar,
    jobs: Sequence[PairJob],
    folder: str | Path,
    *,
    wanted: Wanted = Wanted(),
    refinement: pipeline.Recipe | None = None,
    tell: Callable[[str, int, int], None] | None = None,
) -> Done:
    """Predict pairs, each into a folder of its name, and keep ``pairs.csv`` up to date after each.

    A pair that is there already, of the same files, by the same model in the same way (start, refinement, tiles, seed),
    measured in the same unit and with the files now wanted, is not done again. Lines of other pairs made alike stay as
    long as their folders do: a table is of one model. Of a pair that now fails, for other reasons than want of memory,
    an earlier result of other files, by another model or made in another way is set aside (``NAME.outdated``).

    Parameters
    ----------
    tell
        Called with the name of a pair, its number from 0 and how many there are, before each.

    Raises
    ------
    InputError
        Before anything is predicted: if a result would take the place of an input or of what another program left, or
        names cannot be those of folders or of a submission, or another process writes there.

    Warns
    -----
    VerimorphWarning
        If results of another model, or made in another way, are there: their lines are left out.
    """
    root = Path(folder)
    _check_names(jobs, reserved=(TABLE, SUBMISSION))
    _check_table(root / TABLE)
    _check_folders(root, jobs)
    if wanted.submission is not None:
        names = field_names([job.files for job in jobs], form=wanted.submission, suffix=wanted.suffix)
        keep_inputs((root / SUBMISSION / name for name in names), _read_by(jobs))
    done = Done()
    with locked(root, doing="predicting"):
        earlier = _made_alike(root, jobs, registrar, refinement)
        others = _of_others(earlier, jobs, lambda name: (root / name / "transform.h5").is_file())
        for number, job in enumerate(jobs):
            if tell is not None:
                tell(job.name, number, len(jobs))
            row = earlier.get(job.name)
            if row is not None and not _finished(root, job, row, wanted):
                row = None
            if row is None:
                try:
                    row = _predict(registrar, job, root, wanted, refinement)
                except (VerimorphError, MemoryError, RuntimeError) as error:
                    message = _told(error)
                    done.failures.append((job.name, message))
                    row = {"case": job.name, "status": "failed", "message": message}
                    if not _for_want(error):
                        _set_aside(root, job, registrar, refinement)
            else:
                done.skipped += 1
            done.rows.append(row)
            # Lines of an earlier run stay until it is their turn: this run may be stopped as well.
            waiting = [earlier[later.name] for later in jobs[number + 1 :] if later.name in earlier]
            write_table([*done.rows, *waiting, *others], root / TABLE)
    return done


def _made_alike(
    root: Path, jobs: Sequence[PairJob], registrar: Registrar, refinement: pipeline.Recipe | None
) -> dict[str, dict[str, Any]]:
    """Lines of an earlier run but for those of results by another model or made in another way."""
    rows, kept = read_rows(root / TABLE), {}
    for name, row in rows.items():
        if row.get("status") != "ok":
            kept[name] = row
        elif _alike(_read_json(root / name / "provenance.json"), registrar, refinement):
            kept[name] = row | _marked(identity_of(registrar.card))  # tables of earlier versions do not say it
    ours = {job.name for job in jobs}
    strangers = [name for name in rows if name not in kept and name not in ours and (root / name).is_dir()]
    if strangers:
        few = ", ".join(strangers[:3]) + ", ..." * (len(strangers) > 3)
        text = f"{root}: holds results of another model, or made in another way ({few}), which {TABLE} leaves out; "
        warnings.warn(VerimorphWarning(text + "give each way a folder of its own"), stacklevel=3)
    return kept


def _alike(told: Mapping[str, Any], registrar: Registrar, refinement: pipeline.Recipe | None) -> bool:
    """Whether a result, by its provenance, is by this model and made in this way."""
    asked = {"refinement": None if refinement is None else pipeline.describe(refinement)}
    way = _way(described(registrar) | asked)
    return same_model(told.get("model"), identity_of(registrar.card)) and _way(told.get("settings", {})) == way


def _way(settings: Mapping[str, Any]) -> Any:
    """What of a result's settings must be equal for it to be the same."""
    refined = settings.get("refinement")
    names = ("similarity", "regularity", "levels", "iterations", "step_voxels", "seed")
    told = [settings.get(name) for name in ("start", "tile", "seed")]
    return json.loads(json.dumps([told, None if refined is None else [refined.get(name) for name in names]]))


def _told(error: Exception) -> str:
    """What the list says of a pair or image that failed; a mistake of ours is raised again."""
    if isinstance(error, VerimorphError):
        return str(error)
    if is_out_of_memory(error):
        return "not enough memory; use smaller tiles, fewer threads, or close other programs"
    raise error


def _for_want(error: Exception) -> bool:
    """Whether an error is one of the machine, of its memory or disk, which says nothing of files."""
    return isinstance(error, ResourceError) or is_out_of_memory(error)


def _of_others(
    earlier: Mapping[str, dict[str, Any]], jobs: Sequence[PairJob | ImageJob], there: Callable[[str], bool]
) -> list[dict[str, Any]]:
    """Lines of an earlier run, of another split or list, whose results are still there."""
    ours = {job.name for job in jobs}
    return [row for name, row in earlier.items() if name not in ours and row.get("status") == "ok" and there(name)]


OUTDATED = ".outdated"
"""Ends the name of what an earlier run made of files that have changed since, and that could not be made anew."""


def _set_aside(root: Path, job: PairJob, registrar: Registrar, refinement: pipeline.Recipe | None) -> None:
    """Put an earlier result of a pair that failed out of the way where it is of other files, by another model or made
    in another way: it would be scored as this one.

    What cannot be read now, or could not be written, says nothing against the result that is there, which then stays.
    """
    folder = root / job.name
    provenance = _read_json(folder / "provenance.json")
    settings = provenance.get("settings", {})
    # Results that do not tell their tiles are of versions whose hashes were of another kind.
    before = settings.get("files_sha256") if "tile" in settings else None
    alike = _alike(provenance, registrar, refinement)
    if "model" not in provenance or (alike and not _changed(before, hashes(job.inputs))):
        return
    places = [folder]
    if isinstance(settings.get("submission"), str):
        places.append(root / settings["submission"])
    for place in places:
        if place.exists():
            _rename(place, place.with_name(place.name + OUTDATED))


def _changed(before: Mapping[str, str] | None, now: Mapping[str, str]) -> bool:
    """Whether files are others than they were; one that cannot be read may be the same."""
    return before is not None and any(before.get(name) not in (None, digest) for name, digest in now.items())


def _rename(place: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(place, target)


def _read_by(jobs: Sequence[PairJob | ImageJob]) -> list[Path]:
    return [file for job in jobs for file in job.inputs.values()]


def _check_names(jobs: Sequence[PairJob | ImageJob], reserved: Sequence[str] = ()) -> None:
    """Refuse names under which no result can be kept: they lead out of the folder, or two results to one place."""
    for name, count in Counter(job.name for job in jobs).items():
        if not name or name in (".", "..", *reserved) or "/" in name or "\\" in name:
            others = "".join(f", nor '{other}'" for other in reserved)
            raise InputError(
                f"case '{name}': results go to a folder or file of this name, so it cannot hold / or \\ nor be empty, "
                f". or ..{others}; rename it"
            )
        if count > 1:
            raise InputError(
                f"case '{name}': stands there {count} times, and its results would share one name; rename it"
            )


def _check_table(path: Path) -> None:
    """Refuse a table that an earlier run did not write: it may be the list of pairs itself."""
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8", newline="") as opened:
            columns = [name.strip() for name in next(csv.reader(opened), [])]
    except (OSError, UnicodeDecodeError, csv.Error):
        columns = []
    if columns[:2] != ["case", "status"] or "fixed" in columns:
        raise InputError(f"{path}: is no table of results, and one would take its place; choose another output folder")


def _check_folders(root: Path, jobs: Sequence[PairJob]) -> None:
    """Refuse the folder of a pair that holds what is read, or files of which no earlier run has left a record."""
    files = {file.resolve() for file in _read_by(jobs)}
    read = {place for file in files for place in (file, *file.parents)}
    for folder in (root / job.name for job in jobs):
        if not folder.is_dir():
            continue
        what = None
        if folder.resolve() in read:
            what = "an input"
        elif any(folder.iterdir()) and "verimorph" not in _read_json(folder / "provenance.json"):
            what = "files and no provenance.json of an earlier run"
        if what is not None:
            raise InputError(
                f"{folder}: holds {what}, and the results of a pair replace the folder of its name; "
                "choose another output folder, or rename the case"
            )


def _read_json(file: Path) -> dict[str, Any]:
    """What a file of an earlier run says; empty where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def hashes(inputs: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of what each holds; a name that leads nowhere has none."""
    found = {}
    for name, place in inputs.items():
        with suppress(OSError):  # reading it says what is wrong
            found[name] = content_hash(place)
    return found


def _predict(
    registrar: Registrar, job: PairJob, root: Path, wanted: Wanted, refinement: pipeline.Recipe | None
) -> dict[str, Any]:
    seen: list[Prediction] = []
    read = hashes(job.inputs)
    result = predict_pair(registrar, **job.read(), unit=job.unit, refinement=refinement, watch=seen.append)
    result.settings["files_sha256"] = read
    if wanted.calibration is not None:
        result.assess(calibration=wanted.calibration, level=wanted.level)
    row = measured(job.name, result)
    write_submission(result, root, job.files, wanted)
    with replacing_folder(root / job.name) as out:
        write_extras(result, seen[0], out, wanted)
        if wanted.everything:
            result.save(out, report=wanted.report)
            return row
        write_transform(result.transform, out / "transform.h5")
        images = {} if result.uncertainty is None else result.uncertainty.maps
        if wanted.moved:
            images["moved.nii.gz"] = result.moved
            if result.moved_labels is not None:
                images["moved_labels.nii.gz"] = result.moved_labels
        write_images(images, out)
        if wanted.field:
            write_transform(result.inverse, out / "inverse.h5")
        write_json(result.metrics, out / "metrics.json")
        write_json(result.provenance, out / "provenance.json")
    return row


def write_submission(result: Registration, folder: Path, names: tuple[str, str], wanted: Wanted) -> None:
    """The field of a pair below ``folder`` as a challenge wants it, where it is wanted; ``names``: fixed and moving.

    Where it is stands in the settings of the result: tasks of a challenge may have files of one name.
    """
    if wanted.submission is not None:
        file = write_field(
            result.transform,
            folder / SUBMISSION,
            fixed=result.fixed.grid,
            moving=result.moving.grid,
            names=names,
            form=wanted.submission,
            suffix=wanted.suffix,
        )
        result.settings["submission"] = file.relative_to(folder).as_posix()


def write_extras(result: Registration, predicted: Prediction, folder: Path, wanted: Wanted) -> None:
    grid = result.fixed.grid
    if wanted.field:
        write_transform(result.transform, folder / "field.nii.gz", format="itk-field", grid=grid)
    if wanted.grid:
        write_vectors(sampling_grid(result), grid.affine, folder / "grid.nii.gz")
        if "gradients" in predicted.raw:
            values = np.moveaxis(predicted.raw["gradients"][0].numpy(), 0, -1)
            write_vectors(values, predicted.extras["grid"].affine, folder / "gradients.nii.gz")


def sampling_grid(result: Registration) -> Float[ndarray, "*space d"]:
    """Where every voxel of the fixed image is read in the moving image, in voxels of the moving image."""
    from verimorph.evaluate.challenge import voxel_displacement

    shape = result.fixed.grid.shape
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij"), -1)
    return index + voxel_displacement(result.transform, fixed_grid=result.fixed.grid, moving_grid=result.moving.grid)


def write_vectors(values: Float[ndarray, "*space d"], affine: Float[ndarray, "h h"], path: Path) -> None:
    """Write an array ``(*space, d)`` as NIfTI, as it is: numbers, not vectors of the world."""
    import nibabel as nib

    matrix = np.eye(4)
    d = values.shape[-1]
    matrix[:d, :d], matrix[:d, 3] = affine[:d, :d], affine[:d, d]
    with replacing(path) as beside:
        nib.save(nib.Nifti1Image(values.astype(np.float32), matrix), beside)


def measured(name: str, result: Registration) -> dict[str, Any]:
    """One line of the table: the model, Dice before and after, of each label, landmark errors, folding, seconds."""
    metrics = result.metrics
    row: dict[str, Any] = {"case": name, "status": "ok"} | _marked(result.model)
    labels = metrics.get("labels") or {}
    before = (labels.get("identity") or {}).get("mean", {}).get("dice")
    if before is not None:
        row["dice_before"] = before
    row |= {key: value for key, value in flat_measures(metrics).items() if key in _COLUMNS or key.startswith("tre_")}
    for label, values in (labels.get("per_label") or {}).items():
        if values.get("dice") is not None:
            row[f"dice_{label}"] = values["dice"]
    if (sure := result.uncertainty) is not None:
        row |= {"verdict": sure.verdict, "probability_broken": sure.probability}
        row |= {f"bound_{key}": sure.summary()[key] for key in ("median_mm", "p95_mm")}
    seconds = result.timings
    row["seconds"] = sum(seconds.values())
    row["seconds_network"] = seconds.get("network", 0.0)
    if "refine" in seconds:
        row["seconds_refine"] = seconds["refine"]
    return row


def _marked(model: Mapping[str, Any] | None) -> dict[str, str]:
    return {} if model is None else {"model": short_hash(model["weights_sha256"])}


_COLUMNS = ("dice", "folding_percent", "sd_log_jacobian", "ndv_percent")


def _finished(
    root: Path,
    job: PairJob,
    row: dict[str, Any],
    wanted: Wanted,
) -> bool:
    """Whether an earlier run left all that is wanted of a pair, of the same files and in the same unit."""
    folder = root / job.name
    needed = ["transform.h5", "metrics.json", "provenance.json"]
    needed += ["moved.nii.gz"] * wanted.moved + ["field.nii.gz"] * wanted.field + ["grid.nii.gz"] * wanted.grid
    needed += ["moved.nii.gz", "jacobian.nii.gz", "inverse.h5"] * wanted.everything
    needed += ["report.html"] * (wanted.everything and wanted.report)
    needed += ["error_mm.nii.gz"] * (wanted.calibration is not None)
    if row.get("status") != "ok" or not all((folder / name).is_file() for name in needed):
        return False
    provenance = _read_json(folder / "provenance.json")
    if wanted.submission is not None and not _has_field(root, job, wanted, provenance):
        return False
    if wanted.calibration is not None and not _assessed(folder, wanted):
        return False
    if _read_json(folder / "metrics.json").get("unit") != job.unit:
        return False
    return bool(provenance.get("settings", {}).get("files_sha256") == hashes(job.inputs))


def _assessed(folder: Path, wanted: Wanted) -> bool:
    """Whether the bound that lies there is of the level and the calibration now wanted."""
    assert wanted.calibration is not None
    try:
        found = facts_of_result(folder).get("uncertainty") or {}
    except VerimorphError:
        return False
    return found.get("level") == wanted.level and found.get("calibration_hash") == wanted.calibration.digest


def _has_field(root: Path, job: PairJob, wanted: Wanted, provenance: Mapping[str, Any]) -> bool:
    (name,) = field_names([job.files], form=str(wanted.submission), suffix=wanted.suffix)
    written = provenance.get("settings", {}).get("submission")
    return isinstance(written, str) and Path(written).name == name and (root / written).is_file()


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Lines of a table that an earlier run left, by case; empty where there is none."""
    try:
        with path.open(encoding="utf-8", newline="") as opened:
            return {row["case"]: {k: v for k, v in row.items() if k and v} for row in csv.DictReader(opened)}
    except (OSError, KeyError, csv.Error, UnicodeDecodeError):
        return {}


def write_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write rows as CSV; columns in the order in which they first appear, the message last."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "message"))
    columns += ["message"] * any("message" in row for row in rows)
    with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})


def means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean of every number over the rows that have it."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if key in ("case", "status", "model", "message"):  # a hash may look like a number
                continue
            try:
                found.setdefault(key, []).append(float(value))
            except (TypeError, ValueError):
                continue
    return {key: float(np.nanmean(values)) for key, values in found.items() if not np.isnan(values).all()}


def _check_labels(root: Path, jobs: Sequence[ImageJob]) -> None:
    """Refuse, before anything is labelled, to write onto an image or onto what another program left."""
    _check_names(jobs)
    keep_inputs((root / f"{job.name}.nii.gz" for job in jobs), _read_by(jobs))
    _check_table(root / IMAGES)
    if (root / SETTINGS).exists() and "keep_true" not in _read_json(root / SETTINGS):
        raise InputError(f"{root / SETTINGS}: is of no earlier run and would be replaced; choose another output folder")


def _note(file: Path, settings: dict[str, Any], labelled: dict[str, dict[str, str]]) -> None:
    """Write down how images are labelled, and of which files each was."""
    write_json(settings | {"files_sha256": labelled}, file)


def segment_many(
    segmenter: Segmenter,
    jobs: Sequence[ImageJob],
    folder: str | Path,
    *,
    largest: Sequence[int] | bool = False,
    keep_true: bool = False,
    tell: Callable[[str, int, int], None] | None = None,
) -> Done:
    """Label images, each into ``NAME.nii.gz``, with a table of their overlap with true labels where there are any.

    Parameters
    ----------
    largest
        As for a `Segmenter`.
    keep_true
        Put true labels back where the data have them.
    """
    import time

    from verimorph.evaluate import dice_per_label

    root = Path(folder)
    _check_labels(root, jobs)
    done = Done()
    with locked(root, doing="predicting"):
        settings = {"model": identity_of(segmenter.card), "largest": largest, "keep_true": keep_true}
        settings["tile"] = segmenter.runner.tile
        settings = json.loads(json.dumps(settings))
        told = _read_json(root / SETTINGS)
        same = same_model(told.get("model"), settings["model"])
        same = same and all(told.get(name) == value for name, value in settings.items() if name != "model")
        before, rows_before = told.get("files_sha256", {}), read_rows(root / IMAGES)
        labelled, earlier = (dict(before), rows_before) if same else ({}, {})
        others = _of_others(earlier, jobs, lambda name: (root / f"{name}.nii.gz").is_file())
        if not same:  # what is replaced from here on must not count for the settings before
            _note(root / SETTINGS, settings, {})
        for number, job in enumerate(jobs):
            if tell is not None:
                tell(job.name, number, len(jobs))
            target = root / f"{job.name}.nii.gz"
            row: dict[str, Any] = {"case": job.name, "status": "ok"}
            there = target.is_file() and earlier.get(job.name, {}).get("status") == "ok"
            read = hashes(job.inputs)
            if there and labelled.get(job.name) == read:
                done.skipped += 1
                done.rows.append(earlier[job.name])
                continue
            try:
                begun = time.perf_counter()
                images, true = job.read()
                labels = segmenter(images, largest=largest)
                row["seconds"] = time.perf_counter() - begun
                if true is not None:
                    scores = dice_per_label(np.rint(true.array).astype(np.int64), labels.array.astype(np.int64))
                    counted = [values for values in (job.known, segmenter.values) if values is not None]
                    drawn = {n: d for n, d in scores.items() if all(n in values for values in counted)}
                    if drawn:
                        row["dice"] = float(np.nanmean(list(drawn.values())))
                        row |= {f"dice_{n}": float(d) for n, d in drawn.items()}
                    if keep_true:
                        labels = with_true_labels(labels, true, job.known)
                write_image(labels, target)
                labelled[job.name] = read
                _note(root / SETTINGS, settings, labelled)
            except (VerimorphError, MemoryError, RuntimeError) as error:
                message = _told(error)
                done.failures.append((job.name, message))
                row |= {"status": "failed", "message": message}
                ours = target.is_file() and rows_before.get(job.name, {}).get("status") == "ok"
                if ours and not _for_want(error) and (not same or _changed(before.get(job.name), read)):
                    # It would be taken for one of this run.
                    _rename(target, root / f"{job.name}{OUTDATED}.nii.gz")
            done.rows.append(row)
            waiting = [earlier[later.name] for later in jobs[number + 1 :] if later.name in earlier]
            write_table([*done.rows, *waiting, *others], root / IMAGES)
    return done
