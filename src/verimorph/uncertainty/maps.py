"""Maps of uncertainty read at points: bound, spread, entropy where a landmark or a lattice point lies."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from verimorph.field import sample
from verimorph.image import Image


def values_at(image: Image, points: Float[ndarray, "n d"]) -> Float[ndarray, " n"]:
    """Values of a map at world points (RAS+ mm), linear between voxel centres; NaN outside the map.

    >>> image = Image.from_array(np.array([[0.0, 1.0], [2.0, 3.0]]))
    >>> values_at(image, np.array([[0.5, 0.5], [1.0, 0.0], [9.0, 9.0]]))
    array([1.5, 2. , nan])
    """
    index = torch.from_numpy(np.ascontiguousarray(image.grid.world_to_index(points).T, dtype=np.float32))
    shaped = index.reshape(1, image.grid.ndim, -1, *[1] * (image.grid.ndim - 1))
    values = sample(image.tensor(), shaped).numpy().ravel().astype(float)
    return np.where(image.grid.contains(points), values, np.nan)
