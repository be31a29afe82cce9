"""Maps of uncertainty as they lie in a result folder: read at points, summed up where nothing else is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from verimorph.errors import InputError
from verimorph.field import sample
from verimorph.image import Image

#: The map that ``metrics.json`` beside it speaks of.
BOUND = "error_mm.nii.gz"


class NothingSaidError(InputError):
    """A result that says nothing about its error."""


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


def facts_of_result(path: Path) -> dict[str, Any]:
    """What is said about the error of a result: ``uncertainty`` and ``verdict`` of its ``metrics.json``.

    Parameters
    ----------
    path
        A result folder, or the ``error_mm.nii.gz`` in one. Of a map that lies there without ``metrics.json``, or has
        another name, only its sizes are known.

    Raises
    ------
    NothingSaidError
        If a result says nothing about its error.
    InputError
        If nothing is there.
    """
    from verimorph.io import read_image

    if not path.exists():
        raise InputError(f"{path}: no such file; give what 'verimorph register --uncertainty' wrote")
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and (path / BOUND).is_file() and not (path / "metrics.json").is_file():
        path = path / BOUND
    facts = {}
    if (folder / "metrics.json").is_file() and (path.is_dir() or path.name == BOUND):
        try:
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            facts = {key: dict(metrics[key]) for key in ("verdict", "uncertainty") if metrics.get(key)}
        except (ValueError, TypeError, AttributeError):
            raise InputError(f"{folder / 'metrics.json'}: is damaged; register again") from None
    if path.is_file() and "uncertainty" not in facts:
        # Outside the anatomy the bound says little, and where it ends is not known here.
        values = read_image(path).array
        known = values[np.isfinite(values) & (values > 0)]
        if known.size == 0:
            raise InputError(f"{path}: holds no error bound (no voxel above 0)")
        facts["uncertainty"] = {
            "level": None,
            "median_mm": float(np.median(known)),
            "p95_mm": float(np.percentile(known, 95)),
        }
    if not facts:
        raise NothingSaidError(f"{folder}: says nothing about its error; register with --uncertainty")
    return facts
