"""What a registration is given: read, checked, and its provenance. Every refusal is one line that says what to do."""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from verimorph.errors import InputError, OptionError, VerimorphWarning, nearest
from verimorph.image import Image
from verimorph.io import Points, as_image, read_transform, validate
from verimorph.io.images import content_hash
from verimorph.io.points import as_points
from verimorph.solve.initialise import STARTS
from verimorph.transform import Affine, Composite, Transform


@dataclass(frozen=True)
class Inputs:
    """Everything a registration is given, read and checked."""

    fixed: Image
    moving: Image
    fixed_mask: Image | None
    moving_mask: Image | None
    fixed_labels: Image | None
    moving_labels: Image | None
    fixed_landmarks: Points | None
    moving_landmarks: Points | None

    @classmethod
    def read(
        cls, *, fixed: Any, moving: Any, nan_value: float | None = None, fillable: bool = True, **more: Any
    ) -> Inputs:
        """Read and check. ``nan_value`` takes the place of NaN and infinite voxels of the two images.

        ``fillable``: whether a message may advise it.
        """
        found: dict[str, Any] = {"fixed": as_image(fixed), "moving": as_image(moving)}
        if nan_value is not None:
            for side in ("fixed", "moving"):
                found[side] = _finite(found[side], float(nan_value), f"{side} image")
        for role in ("fixed_mask", "moving_mask", "fixed_labels", "moving_labels"):
            found[role] = None if more[role] is None else as_image(more[role])
        for side in ("fixed", "moving"):
            role = f"{side}_landmarks"
            found[role] = None if more[role] is None else as_points(more[role], columns=side)
        given = cls(**found)
        validate.check_pair(given.fixed, given.moving, fillable=fillable)
        for side in ("fixed", "moving"):
            image, mask, labels = (getattr(given, name) for name in (side, f"{side}_mask", f"{side}_labels"))
            if mask is not None:
                validate.check_mask(mask, image, f"{side} mask")
            if labels is not None:
                validate.check_labels(labels, image, f"{side} labels")
        if (given.fixed_landmarks is None) != (given.moving_landmarks is None):
            missing = "moving" if given.moving_landmarks is None else "fixed"
            raise InputError(f"landmarks were given for one image only; give {missing} landmarks as well, or neither")
        if given.fixed_landmarks is not None and given.moving_landmarks is not None:
            validate.check_landmarks(
                given.fixed_landmarks, given.moving_landmarks, fixed=given.fixed, moving=given.moving
            )
        return given


def _finite(image: Image, value: float, role: str) -> Image:
    """Return the image with ``value`` where it is NaN or infinite, and say how often."""
    if not math.isfinite(value):
        raise OptionError(f"nan_value is {value}; give a number to put in place of NaN and infinite voxels")
    if image.array.dtype.kind != "f":
        return image
    bad = ~np.isfinite(image.array)
    count = int(np.count_nonzero(bad))
    if not count:
        return image
    warnings.warn(
        f"{role} {image.name}: {count} of {bad.size} voxels are NaN or infinite and were replaced by {value:g}",
        VerimorphWarning,
        stacklevel=4,
    )
    voxels = np.where(bad, image.array.dtype.type(value), image.array)
    return replace(image.with_array(voxels), path=image.path)


def read_start(given: Inputs, initial: Any) -> tuple[str, np.ndarray | None, torch.Tensor | None]:
    """Return what a start is called and, where it need not be sought, its matrix and the field that acts before it.

    Parameters
    ----------
    initial
        A name, a transform file or a transform, as :func:`verimorph.register` takes it.

    Returns
    -------
    name, matrix, field
        The matrix is fixed to moving, RAS+ mm; the field is on the fixed grid, voxels. None where there is none.
    """
    ndim = given.fixed.grid.ndim
    if isinstance(initial, str) and initial in STARTS:
        return initial, None, None
    if isinstance(initial, str) and initial == "landmarks":
        if given.fixed_landmarks is None or given.moving_landmarks is None:
            raise OptionError("a start from landmarks needs landmarks of both images; give both, or another start")
        matrix = _rigid_fit(given.fixed_landmarks.coordinates, given.moving_landmarks.coordinates)
        return initial, matrix, None
    if isinstance(initial, str | PathLike):
        path = Path(initial)
        if not path.exists():
            raise OptionError(
                f"start '{initial}' is neither a file nor a known start{nearest(str(initial), (*STARTS, 'landmarks'))}"
            )
        initial = read_transform(path, fixed=given.fixed.grid, moving=given.moving.grid)
    if isinstance(initial, np.ndarray):
        initial = Affine(initial)
    if not isinstance(initial, Transform):
        raise OptionError(f"a start is a name, a transform file or a transform, not {type(initial).__name__}")
    if initial.ndim != ndim:
        raise InputError(f"the transform to start from is {initial.ndim}-D, the images are {ndim}-D")
    parts = parts_of(initial)
    matrix = np.eye(ndim + 1)
    while parts and isinstance(last := parts[-1], Affine):
        matrix = matrix @ last.matrix
        parts.pop()
    if not parts:
        return "file", matrix, None
    before = parts[0] if len(parts) == 1 else Composite(parts)
    return "file", matrix, before.displacement_on(given.fixed.grid)


def _rigid_fit(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Least-squares rotation and translation from fixed to moving points (Kabsch 1976)."""
    centre_fixed, centre_moving = fixed.mean(0), moving.mean(0)
    ndim = fixed.shape[1]
    for name, points in (("fixed", fixed - centre_fixed), ("moving", moving - centre_moving)):
        # A rotation in 3-D needs points off one line; in 2-D two that differ.
        if np.linalg.matrix_rank(points, tol=1e-3) < ndim - 1:
            needed = "two that differ" if ndim == 2 else "three that are not on one line"
            raise InputError(f"{len(points)} {name} landmarks do not fix a rotation; give at least {needed}")
    u, _, vt = np.linalg.svd((fixed - centre_fixed).T @ (moving - centre_moving))
    turn = np.diag([1.0] * (fixed.shape[1] - 1) + [np.sign(np.linalg.det(vt.T @ u.T))])
    rotation = vt.T @ turn @ u.T
    matrix = np.eye(fixed.shape[1] + 1)
    matrix[:-1, :-1], matrix[:-1, -1] = rotation, centre_moving - rotation @ centre_fixed
    return matrix


def parts_of(transform: Transform) -> list[Transform]:
    return list(transform.parts) if isinstance(transform, Composite) else [transform]


def fingerprint(image: Image) -> dict[str, Any]:
    """Name, geometry and SHA-256: of the file where there is one, else of the voxels."""
    if image.path is not None and Path(image.path).is_file():
        of, digest = "file", content_hash(image.path)
    else:
        of, digest = "voxels", hashlib.sha256(np.ascontiguousarray(image.array).tobytes()).hexdigest()
    return {
        "name": image.name,
        "path": None if image.path is None else str(image.path),
        "shape": list(image.grid.shape),
        "spacing_mm": [round(float(s), 6) for s in image.grid.spacing],
        "sha256": digest,
        "sha256_of": of,
    }
