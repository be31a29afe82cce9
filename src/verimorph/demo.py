"""The demonstration: a template brain, deformed by a known transform, registered back, and the true error in mm.

The template is the MNI ICBM152 2009a brain (skull removed) that the ``nilearn`` wheel carries; nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

from verimorph.errors import InputError, MissingExtraError
from verimorph.evaluate.consistency import endpoint_error
from verimorph.field import sample
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.synthetic import preimage, random_transform, scan
from verimorph.transform import Composite, DisplacementField, identity

if TYPE_CHECKING:
    from verimorph.registration import Registration
    from verimorph.transform import Transform

TEMPLATE = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
LARGEST_MEAN_ERROR_MM = 1.0
MARGIN_MM = 12.0
MOVING_SPACING_MM = (1.0, 1.0, 1.2)


@dataclass(frozen=True, eq=False)
class KnownPair:
    """Two images, the transform between them, and where it counts.

    Parameters
    ----------
    fixed, moving
        The template, and the same brain deformed, on another grid, with other contrast, uneven brightness and noise.
    truth
        The transform that was used, fixed to moving.
    brain
        Brain mask on the fixed grid (uint8).
    """

    fixed: Image
    moving: Image
    truth: Transform
    brain: Image


def template() -> tuple[Image, Image]:
    """Return the template and its brain mask, cut to the brain and a margin of 12 mm.

    Raises
    ------
    MissingExtraError
        If nilearn is not installed.
    InputError
        If the installed nilearn does not carry the template.
    """
    from verimorph.io import read_image

    found = find_spec("nilearn")  # found, not imported: its import takes seconds and only a file is wanted
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError("nilearn", "demo", "the demonstration")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / TEMPLATE
    if not path.exists():
        raise InputError(
            f"{path}: this nilearn does not carry the template; install another: pip install 'nilearn>=0.11'"
        )
    whole = read_image(path)
    inside = whole.array > 0
    margin = np.ceil(MARGIN_MM / whole.grid.spacing).astype(int)
    ends = [np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))[[0, -1]] for axis in range(3)]
    first = np.maximum([a for a, _ in ends] - margin, 0)
    last = np.minimum([b + 1 for _, b in ends] + margin, whole.grid.shape)
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    affine = whole.grid.affine.copy()
    affine[:3, 3] = whole.grid.index_to_world(first)
    grid = Grid(tuple(int(n) for n in last - first), affine)
    fixed = Image.from_array(np.ascontiguousarray(whole.array[box]), grid, name="MNI152 T1 template")
    return fixed, Image.from_array(inside[box].astype(np.uint8), grid, name="brain mask")


def make_pair(*, seed: int = 0, mean_mm: float = 6.0) -> KnownPair:
    """Deform the template by a random transform: rotation of 15 degrees, scale of 10 %, bending of ``mean_mm`` mean.

    The moving image lies on a grid of its own: voxels of 1 x 1 x 1.2 mm, stored towards left, posterior and superior.
    """
    fixed, brain = template()
    truth = random_transform(fixed.grid, mask=brain.array > 0, mean_mm=mean_mm, seed=seed)
    rim = truth.map_points(fixed.grid.index_to_world(np.argwhere(brain.array > 0)[::97]))
    low, high = rim.min(0) - MARGIN_MM, rim.max(0) + MARGIN_MM
    spacing = np.array(MOVING_SPACING_MM)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = high[0], high[1], low[2]
    grid = Grid(tuple(int(n) + 1 for n in np.ceil((high - low) / spacing)), affine)
    moving = replace(scan(_deformed(fixed, brain, truth, grid), seed=seed), name="deformed template")
    return KnownPair(fixed, moving, truth, brain)


def _deformed(fixed: Image, brain: Image, truth: Composite, grid: Grid) -> Image:
    """Return ``fixed(truth^-1(y))`` at every voxel y of ``grid``, with preimages exact to a thousandth of a millimetre.

    Only voxels near the brain are computed; the template is black elsewhere.
    """
    bend, linear = truth.parts
    assert isinstance(bend, DisplacementField)
    points = grid.index_to_world(np.argwhere(np.ones(grid.shape, bool)))
    straightened = linear.inverse().map_points(points)
    near = functional.max_pool3d(brain.tensor(), 5, stride=1, padding=2)
    chosen = np.flatnonzero(_read(near, fixed.grid, bend.inverse().map_points(straightened)) > 0)
    values = np.zeros(grid.shape, np.float32)
    values.flat[chosen] = _read(fixed.tensor(), fixed.grid, preimage(bend, straightened[chosen]))
    return Image.from_array(values, grid, name=fixed.name)


def _read(image: Tensor, grid: Grid, points: ndarray) -> ndarray:
    """Linear interpolation of a 3-D tensor on ``grid`` at world points."""
    index = torch.from_numpy(grid.world_to_index(points).T.astype(np.float32)).reshape(1, 3, -1, 1, 1)
    return sample(image, index).ravel().numpy()


def true_error(transform: Transform, truth: Transform, mask: Image) -> dict[str, float]:
    """Return statistics of ``|transform(x) - truth(x)|`` over the voxels of a mask: mean, median, p95, max; mm."""
    distance = endpoint_error(transform, truth, grid=mask.grid, mask=mask.array)
    return {
        "mean": float(distance.mean()),
        "median": float(np.median(distance)),
        "p95": float(np.percentile(distance, 95)),
        "max": float(distance.max()),
    }


def add_truth(registration: Registration, pair: KnownPair) -> dict[str, Any]:
    """Measure a registration of a known pair against the truth; the result also goes into its ``metrics``."""
    found: dict[str, Any] = {
        "where": f"brain, {int(np.count_nonzero(pair.brain.array)):,} voxels",
        "unit": "mm",
        "identity": true_error(identity(3), pair.truth, pair.brain),
        "registered": true_error(registration.transform, pair.truth, pair.brain),
    }
    registration.truth = pair.truth
    registration.metrics["true_error"] = found
    return found


def write_inputs(pair: KnownPair, folder: Path) -> None:
    """Write the made-up pair, its brain mask and the true transform, for everybody to try their own tools on."""
    from verimorph.io import write_image, write_transform

    for name, image in (("fixed", pair.fixed), ("moving", pair.moving), ("brain_mask", pair.brain)):
        write_image(image, folder / f"{name}.nii.gz")
    write_transform(pair.truth, folder / "truth.h5")
