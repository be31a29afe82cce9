"""A registration made as those of the calibration, for results that were not.

What the error of a registration is learned from is how the defaults register: how smooth their fields are, how two of
them differ. A rigid map, a network's field or one of another program says nothing of the kind about itself. For these
the pair is registered once more, by the defaults. With ``r`` that reference and ``B`` its bound, the result ``t`` is
bounded by the triangle inequality,

    |t(x) - truth(x)|  <=  |t(x) - r(x)| + |r(x) - truth(x)|  <=  |t(x) - r(x)| + B(x),

at every voxel where ``B`` holds, wherever ``t`` comes from.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from verimorph import pipeline
from verimorph.errors import VerimorphWarning
from verimorph.grid import Grid
from verimorph.transform import Transform

if TYPE_CHECKING:
    from verimorph.registration import Registration

SAME = (
    *("transform", "stages", "similarity", "quality", "levels", "iterations", "regularity"),
    *("update_sigma", "total_sigma", "step_voxels", "symmetric", "convergence", "lncc_radius"),
)
"""Settings that decide how a field comes about. Where it started does not count; how intensities were prepared, which
axes are frozen and the device are as they may be, and the reference has them in common with the result."""


def by_defaults(settings: Mapping[str, Any]) -> bool:
    """Whether a registration came about as those of a calibration do."""
    wanted = pipeline.describe(pipeline.make_recipe())
    found = dict(settings)
    if found.get("similarity") == "lncc":
        found["similarity"] = "auto"
    return all(name in found and found[name] == wanted[name] for name in SAME)


def reference_of(registration: Registration, seed: int) -> Registration:
    """The same pair registered by the defaults: same masks, preparation, frozen axes and device."""
    from verimorph.registration import register

    recipe = pipeline.recipe_of(registration.settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerimorphWarning)  # what there is to say of the images has been said
        return register(
            fixed=registration.fixed,
            moving=registration.moving,
            fixed_mask=registration.fixed_mask,
            moving_mask=registration.moving_mask,
            winsorise=recipe.winsorise,
            histogram_matching=recipe.histogram_matching,
            bias_correction=recipe.bias_correction,
            restrict=recipe.free_axes,
            device=recipe.device,
            seed=seed,
        )


def distance_between(one: Transform, other: Transform, grid: Grid) -> Float[Tensor, "*space"]:
    """How far apart two transforms send the voxels of a grid, mm."""
    points = grid.index_to_world(np.indices(grid.shape).reshape(grid.ndim, -1).T)
    away = np.linalg.norm(one.map_points(points) - other.map_points(points), axis=1)
    return torch.from_numpy(away.reshape(grid.shape).astype(np.float32))
