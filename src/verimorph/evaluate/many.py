"""Score the results of one or several methods on many pairs. What cannot be scored is named and counted, never skipped.

Each mode has its own run and its own tables: `evaluate_cohort` takes ``"honest"`` or ``"challenge"``, never both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verimorph.errors import InputError, OptionError, VerimorphError
from verimorph.evaluate import challenge
from verimorph.evaluate.cases import Case, Result, Task, find_results
from verimorph.evaluate.cohort import IDENTITY, MODES, Cohort, Problem
from verimorph.evaluate.overlap import label_values
from verimorph.evaluate.score import flat_measures, score
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io import Points, read_image, read_points, read_transform
from verimorph.io.validate import check_same_grid
from verimorph.transform import DisplacementField, Transform, identity

# measures of the pair; label to measures; errors of the landmarks
_Scored = tuple[dict[str, float], dict[int, dict[str, float]], list[float]]


def evaluate_cohort(
    task: Task,
    methods: Mapping[str, Path],
    *,
    mode: str = "honest",
    with_identity: bool = True,
    label_names: Mapping[int, str] | None = None,
    surface: bool = True,
    non_diffeomorphic: bool = True,
    tolerance_mm: float = 1.0,
    threads: int = 2,
    progress: Callable[[str, str], None] | None = None,
) -> Cohort:
    """Score the result folders of one or several methods.

    Parameters
    ----------
    task
        The pairs (`cases.read_task`).
    methods
        Method name to folder of results (`cases.find_results` says what is looked for there).
    mode
        ``"honest"``: millimetres, true log-Jacobian, true folding. ``"challenge"``: the Learn2Reg evaluator's numbers.
    with_identity
        Add the unregistered pairs as a method named ``identity``.
    label_names
        Names of the known labels. A label in an image that is neither here nor in the task's list is reported.
    surface, non_diffeomorphic, tolerance_mm, threads
        As in `score`.
    progress
        Called with method and case before each is scored.

    Raises
    ------
    InputError
        If a folder is missing or holds two results for one case. Everything that concerns a single case is a `Problem`.
    OptionError
        If the mode is unknown or a method is called ``identity``.
    """
    if mode not in MODES:
        raise OptionError(f"unknown mode '{mode}'; use one of {', '.join(MODES)}")
    if with_identity and IDENTITY in methods:
        raise OptionError(f"a method cannot be called '{IDENTITY}', the row of the unregistered pairs is; rename it")
    results: dict[str, dict[str, Result]] = {IDENTITY: {}} if with_identity else {}
    cohort = Cohort(task.name, mode, [*results, *methods], [case.name for case in task.cases])
    for method, folder in methods.items():
        results[method], extra = find_results(Path(folder), task)
        cohort.folders[method] = str(folder)
        cohort.problems += [Problem("extra file", method, "", f"{entry.name} belongs to no pair") for entry in extra]

    for case in task.cases:
        try:
            inputs = _Inputs.read(case, task)
        except VerimorphError as error:
            cohort.problems.append(Problem("unusable input", "", case.name, str(error)))
            cohort.rows += [{"method": m, "case": case.name, "status": "failed"} for m in cohort.methods]
            continue
        cohort.problems += inputs.label_problems(task.labels, label_names)
        for method in cohort.methods:
            if progress is not None:
                progress(method, case.name)
            row: dict[str, Any] = {"method": method, "case": case.name, "status": "ok"}
            result = Result() if method == IDENTITY else results[method].get(case.name)
            if result is None:
                row["status"] = "missing"
                cohort.problems.append(Problem("missing result", method, case.name, "no result for this pair"))
            else:
                try:
                    if mode == "challenge":
                        measures, labels, errors = _score_challenge(inputs, result, method, task, threads)
                    else:
                        measures, labels, errors = _score_honest(
                            inputs, result, method, task, surface, non_diffeomorphic, tolerance_mm, threads
                        )
                    row |= measures
                    if errors:
                        cohort.landmark_errors[method, case.name] = errors
                    names = label_names or {}
                    cohort.label_rows += [
                        {"method": method, "case": case.name, "label": n, "name": names.get(n, "")} | values
                        for n, values in labels.items()
                    ]
                    cohort.problems += [
                        Problem("label lost", method, case.name, f"label {n} is gone after registration")
                        for n, values in labels.items()
                        if values.get("dice") == 0.0 and values.get("volume_similarity", -2.0) == -2.0
                    ]
                except VerimorphError as error:
                    row["status"] = "failed"
                    cohort.problems.append(Problem("unusable result", method, case.name, str(error)))
            cohort.rows.append(row)
    return cohort


@dataclass
class _Inputs:
    """What a case is scored with, read once for all methods."""

    case: Case
    fixed_grid: Grid
    moving_grid: Grid
    fixed_labels: Image | None
    moving_labels: Image | None
    fixed_landmarks: Points | None
    moving_landmarks: Points | None
    mask: Image | None

    @classmethod
    def read(cls, case: Case, task: Task) -> _Inputs:
        for role, path in case.inputs().items():
            if not path.exists():
                raise InputError(f"{path}: no such file ({role.replace('_', ' ')})")
        images = {role: read_image(path) for role, path in case.inputs().items() if "landmarks" not in role}
        fixed, moving = (images.get(role) or images.get(f"{role}_labels") for role in ("fixed", "moving"))
        if fixed is None or moving is None:
            raise InputError(f"{case.name}: neither images nor labels are given for both sides; name them in the table")
        for role, image in (("fixed labels", fixed), ("moving labels", moving), ("fixed mask", fixed)):
            if (other := images.get(role.replace(" ", "_"))) is not None:
                check_same_grid(image, other, role)
        landmarks: list[Points | None] = [None, None]
        if case.fixed_landmarks and case.moving_landmarks:
            pair = (case.fixed_landmarks, fixed.grid), (case.moving_landmarks, moving.grid)
            landmarks = [_voxel_points(Path(p), g) if task.landmarks_in_voxels else read_points(p) for p, g in pair]
        return cls(
            case,
            fixed_grid=fixed.grid,
            moving_grid=moving.grid,
            fixed_labels=images.get("fixed_labels"),
            moving_labels=images.get("moving_labels"),
            fixed_landmarks=landmarks[0],
            moving_landmarks=landmarks[1],
            mask=images.get("fixed_mask"),
        )

    def label_problems(self, wanted: tuple[int, ...] | None, names: Mapping[int, str] | None) -> list[Problem]:
        """Name labels that no list knows, and labels that only one of the two images has."""
        if self.fixed_labels is None or self.moving_labels is None:
            return []
        found = [set(label_values(image.array)) for image in (self.fixed_labels, self.moving_labels)]
        known = set(wanted or ()) | set(names or ())
        problems = []
        if known:
            problems += [
                Problem("unknown label", "", self.case.name, f"label {n} is in no list of labels")
                for n in sorted((found[0] | found[1]) - known)
            ]
        counted = set(wanted) if wanted is not None else found[0] | found[1]
        for here, there, side in ((0, 1, "fixed"), (1, 0, "moving")):
            problems += [
                Problem("label in one image", "", self.case.name, f"label {n} is in the {side} image only, not scored")
                for n in sorted((found[here] - found[there]) & counted)
            ]
        return problems

    def transform(self, result: Result, method: str) -> Transform | None:
        if method == IDENTITY:
            return identity(self.fixed_grid.ndim)
        if result.transform is None:
            return None
        return read_transform(result.transform, format=result.format, fixed=self.fixed_grid, moving=self.moving_grid)


def _score_honest(
    inputs: _Inputs,
    result: Result,
    method: str,
    task: Task,
    surface: bool,
    non_diffeomorphic: bool,
    tolerance_mm: float,
    threads: int,
) -> _Scored:
    transform = inputs.transform(result, method)
    inverse = None
    if result.inverse is not None:
        inverse = read_transform(result.inverse, fixed=inputs.moving_grid, moving=inputs.fixed_grid)
    # labels are moved here, by nearest neighbour, alike for every method; a method's own only count without a transform
    moved = read_image(result.moved_labels) if transform is None and result.moved_labels is not None else None
    metrics = score(
        fixed_labels=inputs.fixed_labels,
        moved_labels=moved if transform is None else _moved(inputs, transform),
        moving_labels=inputs.moving_labels,
        fixed_landmarks=inputs.fixed_landmarks if transform is not None else None,
        moving_landmarks=inputs.moving_landmarks if transform is not None else None,
        transform=transform,
        inverse=inverse,
        fixed_grid=inputs.fixed_grid,
        moving_grid=inputs.moving_grid,
        mask=inputs.mask,
        labels=task.labels,
        surface=surface,
        non_diffeomorphic=non_diffeomorphic,
        surface_dice_tolerance_mm=tolerance_mm,
        unit=inputs.case.unit,
        threads=threads,
    )
    labels = {
        int(n): {name: np.nan if v is None else v for name, v in values.items()}
        for n, values in metrics.get("labels", {}).get("per_label", {}).items()
        if values["dice"] is not None
    }
    errors = metrics.get("landmarks", {}).get(f"tre_{inputs.case.unit}", {}).get("per_landmark", [])
    return flat_measures(metrics), labels, [row["tre"] for row in errors]


def _moved(inputs: _Inputs, transform: Transform) -> Image | None:
    if inputs.moving_labels is None or inputs.fixed_labels is None:
        return None
    return transform.resample(inputs.moving_labels, inputs.fixed_grid, interpolation="nearest")


def _score_challenge(inputs: _Inputs, result: Result, method: str, task: Task, threads: int) -> _Scored:
    transform = inputs.transform(result, method)
    if transform is None:
        raise InputError(
            f"{inputs.case.name}: the challenge scores displacement fields, this result is only a label map"
        )
    grids = {"fixed_grid": inputs.fixed_grid, "moving_grid": inputs.moving_grid}
    first = getattr(transform, "parts", [transform])[0]
    if result.format == "learn2reg" and isinstance(first, DisplacementField):
        displacement = np.moveaxis(first.displacement[0].cpu().numpy(), 0, -1)  # as in the file, bit for bit
    else:
        displacement = challenge.voxel_displacement(transform, **grids)
    voxels = [
        None if points is None else grid.world_to_index(points.coordinates)
        for points, grid in (
            (inputs.fixed_landmarks, inputs.fixed_grid),
            (inputs.moving_landmarks, inputs.moving_grid),
        )
    ]
    fixed, moving = inputs.fixed_labels, inputs.moving_labels
    wanted = list(task.labels) if task.labels is not None else [] if fixed is None else label_values(fixed.array)
    scored = challenge.challenge_score(
        displacement,
        fixed_labels=None if fixed is None else fixed.array,
        moving_labels=None if moving is None else moving.array,
        labels=wanted,
        fixed_voxels=voxels[0],
        moving_voxels=voxels[1],
        moving_spacing=inputs.moving_grid.spacing,
        mask=None if inputs.mask is None else inputs.mask.array,
        threads=threads,
    )
    units = {"hd95": "hd95_voxel", "tre": "tre_mm", "sdlogj": "sdlogj_plus3"}
    measures = {units.get(name, name): float(found["mean"]) for name, found in scored.items()}
    labels: dict[int, dict[str, float]] = {}
    if "dice" in scored:
        detailed = zip(wanted, scored["dice"]["detailed"], scored["hd95"]["detailed"], strict=True)
        labels = {n: {"dice": d, "hd95_voxel": h} for n, d, h in detailed if not np.isnan(d)}
    return measures, labels, list(scored["tre"]["detailed"]) if "tre" in scored else []


def _voxel_points(path: Path, grid: Grid) -> Points:
    """Read Learn2Reg landmarks: no header, one point a line, voxel coordinates of the image."""
    try:
        voxels = np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a table of voxel coordinates ({error})") from None
    if voxels.shape[1] != grid.ndim:
        raise InputError(f"{path}: has {voxels.shape[1]} columns, a landmark of this image has {grid.ndim}")
    return Points(grid.index_to_world(voxels), name=path.name)
