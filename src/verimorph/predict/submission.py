"""Displacement fields as the Learn2Reg challenges take them: names, folders, shapes, and what the rules refuse.

A field says, at every voxel of the fixed image, by how many voxels the moving image is read elsewhere:
``warped(p) = moving(p + u(p))``, axes and components in NIfTI order, the identity not in it. Two forms:

``learn2reg-2020``
    ``task_03/disp_0001_0004.npz``: one array ``arr_0``, float16, ``(3, X, Y, Z)``. In tasks 1 to 3 every axis is halved
    by a second-order spline, the values stay in voxels of full resolution; task 4 has full resolution.
``learn2reg``
    Today's: ``disp_0001_0000_0004_0000.nii.gz`` (or ``.npz``), float32, ``(X, Y, Z, 3)``, full resolution.

Sources: submission pages of the challenge of 2020 and of learn2reg.grand-challenge.org; the evaluator of MDL-UzL/L2R.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from verimorph.errors import InputError, OptionError, VerimorphWarning, nearest
from verimorph.grid import Grid
from verimorph.io.safe import replacing
from verimorph.io.transforms import write_transform
from verimorph.transform import Transform

FORMS = ("learn2reg-2020", "learn2reg")
LARGEST_ROUNDING_VOXELS = 0.05
"""A field that float16 changes by more than this somewhere gets a warning: beyond 128 voxels its steps are 1/8."""


@dataclass(frozen=True)
class Task2020:
    """One task of Learn2Reg 2020: the shape of its images, and whether its fields are stored at half resolution."""

    shape: tuple[int, int, int]
    halved: bool = True

    @property
    def stored(self) -> tuple[int, int, int, int]:
        """Shape of the array in a file."""
        x, y, z = (n // 2 for n in self.shape) if self.halved else self.shape
        return (3, x, y, z)


TASKS_2020: Mapping[int, Task2020] = {
    1: Task2020((256, 256, 288)),
    2: Task2020((192, 192, 208)),
    3: Task2020((192, 160, 256)),
    4: Task2020((64, 64, 64), halved=False),
}


@dataclass(frozen=True)
class Identity:
    """What the challenge calls an image: subject and modality, four digits each."""

    subject: str
    modality: str = "0000"

    @classmethod
    def of(cls, name: str) -> Identity:
        """Read it from a file name: ``TASK_0001_0000`` has both; in other names the only number is the subject.

        >>> Identity.of("AbdomenCTCT_0012_0000.nii.gz")
        Identity(subject='0012', modality='0000')
        >>> Identity.of("img0003.nii.gz").subject
        '0003'
        """
        stem = re.sub(r"(\.nii)?(\.gz)?$", "", Path(name).name)
        if both := re.search(r"(?<!\d)(\d{4})_(\d{4})$", stem):
            return cls(both[1], both[2])
        numbers = re.findall(r"\d+", stem)
        if len(numbers) != 1 or len(numbers[0]) > 4:
            found = f"has {' and '.join(numbers)}" if numbers else "has none"
            raise InputError(
                f"{name}: the challenge names fields by the numbers of the subjects, up to four digits, and this name "
                f"{found}; name images like TASK_0001_0000.nii.gz"
            )
        return cls(numbers[0].zfill(4))


def file_name(*, fixed: Identity, moving: Identity, form: str, suffix: str = ".nii.gz") -> str:
    """Name of a field in a submission.

    Parameters
    ----------
    suffix
        ``.nii.gz`` or ``.npz``; the form of 2020 knows ``.npz`` only.

    >>> file_name(fixed=Identity("0001"), moving=Identity("0004"), form="learn2reg-2020")
    'disp_0001_0004.npz'
    >>> file_name(fixed=Identity("0001"), moving=Identity("0004"), form="learn2reg")
    'disp_0001_0000_0004_0000.nii.gz'
    """
    check_form(form)
    if form == "learn2reg-2020":
        return f"disp_{fixed.subject}_{moving.subject}.npz"
    if suffix not in (".nii.gz", ".npz"):
        raise OptionError(f"a submission holds .nii.gz or .npz files, not '{suffix}'")
    return f"disp_{fixed.subject}_{fixed.modality}_{moving.subject}_{moving.modality}{suffix}"


def field_names(files: Sequence[tuple[str, str]], *, form: str, suffix: str = ".nii.gz") -> list[str]:
    """Names of the fields of pairs, given the file names of fixed and moving image.

    Raises
    ------
    InputError
        If a name says no subject, or two pairs come to one field: the later would take the place of the earlier.
    """
    found: dict[str, tuple[str, str]] = {}
    for pair in files:
        name = file_name(fixed=Identity.of(pair[0]), moving=Identity.of(pair[1]), form=form, suffix=suffix)
        if name in found:
            one, other = (" and ".join(names) for names in (found[name], pair))
            raise InputError(
                f"the pair {one} and the pair {other} both come to {name}; name images like TASK_0001_0000.nii.gz"
            )
        found[name] = pair
    return list(found)


def check_form(form: str) -> None:
    """Refuse a form that is not known."""
    if form not in FORMS:
        raise OptionError(f"unknown form of submission '{form}'{nearest(form, FORMS)}")


def task_of(grid: Grid) -> int:
    """Number of the task of 2020 whose images have this shape.

    Raises
    ------
    InputError
        If none has.
    """
    for number, task in TASKS_2020.items():
        if task.shape == grid.shape:
            return number
    known = ", ".join(f"{n}: {'x'.join(map(str, task.shape))}" for n, task in TASKS_2020.items())
    raise InputError(
        f"an image of {'x'.join(map(str, grid.shape))} voxels belongs to no task of Learn2Reg 2020 ({known}); "
        "for other images use the form 'learn2reg'"
    )


def write_field(
    transform: Transform,
    folder: str | Path,
    *,
    fixed: Grid,
    moving: Grid,
    names: tuple[str, str],
    form: str = "learn2reg",
    suffix: str = ".nii.gz",
) -> Path:
    """Write one field of a submission and return where it is.

    Parameters
    ----------
    transform
        Fixed world to moving world.
    folder
        Of the submission; the form of 2020 adds ``task_03`` and the like, by the shape of the fixed image.
    fixed, moving
        Grids of the two images.
    names
        File names of fixed and moving image, from which the subjects are read.

    Raises
    ------
    InputError
        If a value is not finite or does not fit float16 (65504), or the shape belongs to no task.
    """
    check_form(form)
    identities = Identity.of(names[0]), Identity.of(names[1])
    name = file_name(fixed=identities[0], moving=identities[1], form=form, suffix=suffix)
    if form == "learn2reg":
        path = Path(folder) / name
        write_transform(transform, path, format="learn2reg", fixed=fixed, moving=moving)
        return path
    number = task_of(fixed)
    path = Path(folder) / f"task_{number:02d}" / name
    field = _values(transform, fixed, moving)
    values = narrowed(half_field(field) if TASKS_2020[number].halved else field, path.name)
    with replacing(path) as beside:
        np.savez_compressed(beside, values)
    return path


def half_field(field: Float[ndarray, "d *space"]) -> Float[ndarray, "d *half"]:
    """Halve every axis by a second-order spline between the corner voxels; values stay in voxels of full resolution."""
    from scipy import ndimage

    return np.stack([ndimage.zoom(component, 0.5, order=2, mode="nearest") for component in field])


def narrowed(field: Float[ndarray, "d *space"], name: str = "the field") -> Float[ndarray, "d *space"]:
    """Round to float16; refuse what does not fit and warn where rounding moves a point by more than 0.05 voxel."""
    if not np.isfinite(field).all():
        raise InputError(f"{name}: has {int((~np.isfinite(field)).sum())} values that are not finite; nothing written")
    largest = float(np.abs(field).max(initial=0.0))
    if largest > float(np.finfo(np.float16).max):
        raise InputError(f"{name}: the largest displacement is {largest:.3g} voxels, float16 ends at 65504")
    values = field.astype(np.float16)
    lost = float(np.abs(values.astype(np.float64) - field).max(initial=0.0))
    if lost > LARGEST_ROUNDING_VOXELS:
        warnings.warn(
            VerimorphWarning(
                f"{name}: float16 changes displacements by up to {lost:.2g} voxels (the largest is {largest:.0f}); "
                "the form 'learn2reg' keeps float32"
            ),
            stacklevel=3,
        )
    return values


def _values(transform: Transform, fixed: Grid, moving: Grid) -> Float[ndarray, "d *space"]:
    from verimorph.evaluate.challenge import voxel_displacement

    return np.moveaxis(voxel_displacement(transform, fixed_grid=fixed, moving_grid=moving), -1, 0)
