"""How regular a deformation is, from its Jacobian determinant: folding, volume change, their spread.

Everything here takes determinants as they are: no shift, no clip. The Learn2Reg numbers, which differ, live in
``evaluate/challenge.py``.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray

from verimorph.errors import InputError

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)


def folding_percent(jacobian: Shaped[ndarray, "..."], mask: Shaped[ndarray, "..."] | None = None) -> float:
    """Percentage of voxels whose Jacobian determinant is not positive, ``100 mean(det J <= 0)``.

    With central differences this misses folds of period two (a checkerboard has zero central difference);
    `non_diffeomorphic_volume` does not. 0 is best.
    """
    values = _inside(jacobian, mask)
    return float(100.0 * np.count_nonzero(values <= 0) / values.size)


def sd_log_jacobian(jacobian: Shaped[ndarray, "..."], mask: Shaped[ndarray, "..."] | None = None) -> float:
    """Standard deviation of the natural logarithm of the Jacobian determinant over voxels that do not fold.

    ``std(log det J | det J > 0)``, population form. 0 for any affine map. Folded voxels have no logarithm: they are
    left out here and counted by `folding_percent`. NaN if every voxel folds.
    """
    values = _inside(jacobian, mask)
    values = values[values > 0]
    return float(np.log(values).std()) if values.size else float("nan")


def jacobian_summary(jacobian: Shaped[ndarray, "..."], mask: Shaped[ndarray, "..."] | None = None) -> dict:
    """Summarise a map of Jacobian determinants.

    Parameters
    ----------
    jacobian
        Determinants (volume after over volume before; dimensionless), shaped as the grid.
    mask
        Voxels to count; default all.

    Returns
    -------
    dict
        ``voxels``, ``folding_voxels`` (det J <= 0), ``folding_percent``, ``sd_log_jacobian`` (see those functions),
        ``mean``, ``min``, ``max`` of det J and ``quantiles`` (level to value).

    Raises
    ------
    InputError
        If mask and map differ in shape, or the mask is empty.
    """
    values = _inside(jacobian, mask)
    folded = int(np.count_nonzero(values <= 0))
    positive = values[values > 0] if folded else values
    levels = np.quantile(values, QUANTILES)
    return {
        "voxels": int(values.size),
        "folding_voxels": folded,
        "folding_percent": 100.0 * folded / values.size,
        "sd_log_jacobian": float(np.log(positive).std()) if positive.size else float("nan"),
        "mean": float(values.mean()),
        "min": float(values.min()),
        "max": float(values.max()),
        "quantiles": {f"{q:g}": float(v) for q, v in zip(QUANTILES, levels, strict=True)},
    }


def _inside(jacobian: ndarray, mask: ndarray | None) -> Float[ndarray, " n"]:
    # float64: the mean of millions of float32 values near 1 loses digits otherwise
    values = np.asarray(jacobian)
    if mask is None:
        values = values.ravel()
    else:
        chosen = np.asarray(mask) > 0
        if chosen.shape != values.shape:
            raise InputError(f"the mask has shape {chosen.shape}, the Jacobian map {values.shape}; use one grid")
        values = values[chosen]
    if values.size == 0:
        raise InputError("the mask is empty: no voxel left to measure the Jacobian determinant on")
    return values.astype(np.float64)
