"""Which pairs to score, and where a method put its result for each: from a table, or from a Learn2Reg task file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verimorph.errors import InputError, OptionError, nearest
from verimorph.io.pairs import (
    Row,
    learn2reg_pairs,
    learn2reg_place,
    names_of_split,
    read_learn2reg_lists,
    read_rows,
    start_of,
    stem,
)

LEARN2REG_SPLITS = ("eval_pairs", "registration_val", "registration_test", "evaluation", "training_paired_images")
TRANSFORM_SUFFIXES = (".h5", ".hdf5", ".tfm", ".mat", ".txt", ".lta", ".x5", ".npz", ".npy", ".nii.gz", ".nii", ".nrrd")


@dataclass(frozen=True)
class Case:
    """One pair to score. Paths may be missing; what can be measured depends on what is there.

    Attributes
    ----------
    name
        Unique name of the pair; results are looked for under it.
    fixed, moving
        The images (for their grids).
    fixed_labels, moving_labels, fixed_landmarks, moving_landmarks, fixed_mask
        What to score with. A landmark path may end in ``::prefix`` (one table with both lists).
    identifiers
        What a Learn2Reg field file calls the two images, most telling form first: ``("0001_0000", "0002_0000")``, ...
    unit
        ``"mm"``, or ``"voxel"`` where the images have no known voxel size.
    """

    name: str
    fixed: Path | None = None
    moving: Path | None = None
    fixed_labels: Path | None = None
    moving_labels: Path | None = None
    fixed_landmarks: str | None = None
    moving_landmarks: str | None = None
    fixed_mask: Path | None = None
    identifiers: tuple[tuple[str, str], ...] = ()
    unit: str = "mm"

    def inputs(self) -> dict[str, Path]:
        """Files this case names, by role."""
        roles = ("fixed", "moving", "fixed_labels", "moving_labels", "fixed_mask")
        found = {role: getattr(self, role) for role in roles}
        for role in ("fixed_landmarks", "moving_landmarks"):
            text = getattr(self, role)
            found[role] = Path(text.partition("::")[0]) if text else None
        return {role: path for role, path in found.items() if path is not None}


@dataclass(frozen=True)
class Task:
    """The list of pairs, and the labels that count (``None``: all).

    ``landmarks_in_voxels`` marks Learn2Reg's landmark files: no header, voxel coordinates.
    """

    name: str
    cases: tuple[Case, ...]
    labels: tuple[int, ...] | None = None
    landmarks_in_voxels: bool = False


@dataclass(frozen=True)
class Result:
    """What one method left for one case."""

    transform: Path | None = None
    format: str | None = None
    inverse: Path | None = None
    moved_labels: Path | None = None


def read_task(path: str | Path, *, data: str | Path | None = None, split: str | None = None) -> Task:
    """Read the pairs to score from a CSV, or from a Learn2Reg dataset or evaluation JSON.

    The columns of a CSV are those of `verimorph.io.pairs.read_rows`; without a name a pair is called after its two
    images.

    Learn2Reg JSON: pairs of ``eval_pairs``, ``registration_val``, ``registration_test`` ... (the first there, or
    ``split``); labels, masks and landmarks lie in the folders that the image folder's name leads to
    (``imagesTs`` -> ``labelsTs``, ``masksTs``, ``landmarksTs`` or ``keypointsTs``).

    Parameters
    ----------
    path
        The file.
    data
        Folder that relative names start from; default: that of the file.
    split
        Which list of a Learn2Reg JSON, or which lines of a CSV (column ``split``): ``val``, ``train``, ``test`` or any
        name; see `verimorph.io.pairs.names_of_split`. What is not chosen is not looked at.

    Raises
    ------
    InputError
        If the file is missing, unreadable, empty, or names a pair twice.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a CSV of pairs or a Learn2Reg dataset JSON")
    task = (_from_json if file.suffix.lower() == ".json" else _from_csv)(file, data, split)
    names = [case.name for case in task.cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{file}: the pair {twice[0]} stands there {names.count(twice[0])} times; name each pair once")
    return task


def find_results(folder: Path, task: Task) -> tuple[dict[str, Result], list[Path]]:
    """Find what a method left for each case, and what in the folder belongs to none.

    Looked for, in this order: a folder ``CASE/`` as ``verimorph register`` writes it (``transform.h5`` and
    ``inverse.h5``, or ``moved_labels.*`` alone); a transform file ``CASE.<suffix>``; a label map
    ``CASE_moved_labels.*``; a Learn2Reg field ``disp_FIXED_MOVING.nii.gz`` or ``.npz``.

    Returns
    -------
    results, extra
        Case name to result, for the cases that have one; and files and folders that belong to no case, but for those
        that ``predict`` and ``evaluate`` write for all.

    Raises
    ------
    InputError
        If the folder is missing, or holds two results for one case.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds one result a pair")
    entries = {entry.name: entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")}
    results, used = {}, set()
    for case in task.cases:
        names = [name for name in _candidates(case) if name in entries]
        found = [(name, result) for name in names if (result := _result(entries[name], case)) is not None]
        transforms = [name for name, result in found if result.transform is not None]
        if len(transforms) > 1:
            raise InputError(f"{folder}: {' and '.join(transforms)} are both results of {case.name}; leave one of them")
        used.update(names)
        if found:
            results[case.name] = _merge([result for _, result in found])
    known = ("results.json", "pairs.csv", "labels.csv", "summary.csv", "comparison.csv", "report.html", "submission")
    return results, [entry for name, entry in entries.items() if name not in used and name not in known]


def _candidates(case: Case) -> list[str]:
    names = [case.name]
    names += [case.name + suffix for suffix in TRANSFORM_SUFFIXES]
    names += [f"{case.name}_moved_labels{suffix}" for suffix in (".nii.gz", ".nii", ".nrrd", ".mha", ".mgz", ".png")]
    for fixed, moving in case.identifiers:
        names += [f"disp_{fixed}_{moving}{suffix}" for suffix in (".npz", ".nii.gz", ".nii", ".npy")]
    return list(dict.fromkeys(names))


def _merge(parts: list[Result]) -> Result:
    """Join what several files of one case offer; the first to offer something is taken."""

    def first(field: str) -> Any:
        return next((getattr(part, field) for part in parts if getattr(part, field) is not None), None)

    return Result(first("transform"), first("format"), first("inverse"), first("moved_labels"))


def _result(entry: Path, case: Case) -> Result | None:
    if entry.is_dir():
        transform, inverse = (
            next((entry / (name + s) for s in TRANSFORM_SUFFIXES if (entry / (name + s)).is_file()), None)
            for name in ("transform", "inverse")
        )
        moved = next(iter(sorted(entry.glob("moved_labels.*"))), None)
        return Result(transform, None, inverse, moved) if transform or moved else None
    if entry.name.startswith(f"{case.name}_moved_labels"):
        return Result(moved_labels=entry)
    if entry.name.startswith("disp_") and entry.name.endswith((".npz", ".npy", ".nii.gz", ".nii")):
        return Result(transform=entry, format="learn2reg")
    return Result(transform=entry)


def _from_csv(file: Path, data: str | Path | None, split: str | None) -> Task:
    rows, columns = read_rows(file, data=data, split=split)
    if not {"fixed", "fixed_labels", "fixed_landmarks", "landmarks"} & set(columns):
        raise InputError(
            f"{file}: its columns are {', '.join(sorted(columns))}; it needs fixed and moving, "
            "or fixed_labels and moving_labels, or landmarks"
        )
    return Task(file.stem, tuple(_case(file, row) for row in rows))


def _case(file: Path, row: Row) -> Case:
    images = [row.fixed or row.fixed_labels, row.moving or row.moving_labels]
    stems = tuple(stem(image) for image in images if image is not None)
    if not row.name and len(stems) < 2:
        raise InputError(f"{file}: line {row.line} has neither a name nor two images")
    return Case(
        name=row.name or "-".join(stems),
        fixed=row.fixed,
        moving=row.moving,
        fixed_labels=row.fixed_labels,
        moving_labels=row.moving_labels,
        fixed_landmarks=row.fixed_landmarks,
        moving_landmarks=row.moving_landmarks,
        fixed_mask=row.fixed_mask,
        identifiers=((stems[0], stems[1]),) if len(stems) == 2 else (),
        unit=row.unit,
    )


def _from_json(file: Path, data: str | Path | None, split: str | None) -> Task:
    content, lists = read_learn2reg_lists(file)
    names = LEARN2REG_SPLITS if split is None else names_of_split(split)
    chosen = next((name for name in names if name in lists), None)
    if split is not None and chosen is None:
        raise OptionError(f"{file}: has no list of pairs '{names[-1]}'{nearest(names[-1], lists)}")
    chosen = chosen or next(iter(lists), None)
    if chosen is None:
        raise InputError(f"{file}: has no list of pairs such as {', '.join(LEARN2REG_SPLITS[:3])}")
    methods = content.get("evaluation_methods", [])
    labels = next((tuple(m["labels"]) for m in methods if m.get("labels")), None)
    root = start_of(file, data)
    destinations = [m["dest"] for m in methods if m.get("dest")] or ["landmarks", "keypoints"]
    pairs = learn2reg_pairs(file, chosen, lists[chosen])
    cases = [_learn2reg_case(root / fixed, root / moving, destinations) for fixed, moving in pairs]
    name = str(content.get("task_name") or content.get("name") or file.stem)
    return Task(name, tuple(cases), labels, landmarks_in_voxels=True)


def _learn2reg_case(fixed: Path, moving: Path, destinations: list[str]) -> Case:
    stems = stem(fixed), stem(moving)
    # TASK_0001_0000: subject, modality; a field is named by both, or by the subject alone
    parts = [one.split("_") for one in stems]
    full = tuple("_".join(p[-2:]) for p in parts)
    subjects = tuple(p[-2] if len(p) > 1 else p[-1] for p in parts)
    landmarks = next((d for d in destinations if learn2reg_place(fixed, d, ".csv").is_file()), None)
    labels = learn2reg_place(fixed, "labels"), learn2reg_place(moving, "labels")
    mask = learn2reg_place(fixed, "masks")
    return Case(
        name=f"{full[0]}-{full[1]}",
        fixed=fixed,
        moving=moving,
        fixed_labels=labels[0] if labels[0].is_file() else None,
        moving_labels=labels[1] if labels[1].is_file() else None,
        fixed_landmarks=str(learn2reg_place(fixed, landmarks, ".csv")) if landmarks else None,
        moving_landmarks=str(learn2reg_place(moving, landmarks, ".csv")) if landmarks else None,
        fixed_mask=mask if mask.is_file() else None,
        identifiers=(full, subjects, stems),  # type: ignore[arg-type]
    )
