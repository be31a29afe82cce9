"""Landmark errors in millimetres: target registration error and its summaries."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray

from verimorph.errors import InputError


@runtime_checkable
class MapsPoints(Protocol):
    """Anything that carries world points of the fixed image to world points of the moving image."""

    def map_points(self, points: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]: ...


def target_registration_error(
    fixed_points: Shaped[ndarray, "..."], moving_points: Shaped[ndarray, "..."], transform: MapsPoints | None = None
) -> Float[ndarray, " n"]:
    """Distance in mm between mapped fixed landmarks and their partners in the moving image.

    ``TRE_i = || T(p_i) - q_i ||_2`` with ``T`` the transform from fixed to moving, measured in the moving image's
    world space.

    Parameters
    ----------
    fixed_points, moving_points
        World points (RAS+ mm) that correspond row by row, ``(n, D)``.
    transform
        Fixed to moving; ``None`` is the identity (the error before registration).

    Returns
    -------
    Errors in mm, ``(n,)``; NaN where a landmark is NaN.

    Raises
    ------
    InputError
        If the lists differ in length or dimension.

    Examples
    --------
    >>> target_registration_error(np.zeros((2, 3)), np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]]))
    array([5., 1.])
    """
    fixed, moving = np.asarray(fixed_points, dtype=float), np.asarray(moving_points, dtype=float)
    if fixed.ndim != 2 or moving.ndim != 2:
        raise InputError(f"landmarks must be (n, D) arrays, got shapes {fixed.shape} and {moving.shape}")
    if len(fixed) != len(moving):
        raise InputError(
            f"{len(fixed)} fixed landmarks and {len(moving)} moving landmarks: they must correspond row by row; "
            "remove the ones without a partner"
        )
    if fixed.shape[1] != moving.shape[1]:
        raise InputError(f"fixed landmarks are {fixed.shape[1]}-D, moving landmarks {moving.shape[1]}-D")
    mapped = fixed if transform is None else np.asarray(transform.map_points(fixed), dtype=float)
    return np.linalg.norm(mapped - moving, axis=1)


def summarise_errors(errors: Shaped[ndarray, "..."], *, percentiles: tuple[float, ...] = (25, 75, 90, 95)) -> dict:
    """Summarise distances: count, mean, standard deviation, median, percentiles, maximum.

    Percentiles interpolate linearly between order statistics (NumPy's default). NaN entries are left out and counted.

    >>> summarise_errors(np.array([1.0, 2.0, 3.0]), percentiles=(75,))
    {'n': 3, 'n_missing': 0, 'mean': 2.0, 'std': 0.816496580927726, 'median': 2.0, 'p75': 2.5, 'max': 3.0}
    """
    values = np.asarray(errors, dtype=float).ravel()
    kept = values[~np.isnan(values)]
    summary: dict = {"n": len(kept), "n_missing": len(values) - len(kept)}
    if len(kept) == 0:
        return summary | dict.fromkeys(
            ["mean", "std", "median", *(f"p{p:g}" for p in percentiles), "max"], float("nan")
        )
    summary |= {"mean": float(kept.mean()), "std": float(kept.std()), "median": float(np.median(kept))}
    summary |= {f"p{p:g}": float(np.percentile(kept, p)) for p in percentiles}
    return summary | {"max": float(kept.max())}
