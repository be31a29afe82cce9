"""How much work each quality means: levels, iterations, smoothing. The same numbers for every kind of image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from verimorph.errors import OptionError, nearest
from verimorph.grid import Grid
from verimorph.solve.deformable import DeformableSettings
from verimorph.solve.pyramid import level_shape

STAGES = ("rigid", "similarity", "affine", "deformable")


@dataclass(frozen=True)
class Preset:
    """One quality: what is done at which level."""

    levels: tuple[int, ...]
    """Shrink factors of the deformable stage, coarse first."""
    iterations: tuple[int, ...]
    deformable: DeformableSettings
    lncc_radius: float = 2.0


PRESETS = {
    "fast": Preset((4, 2), (100, 50), DeformableSettings()),
    "balanced": Preset((4, 2, 1), (100, 70, 40), DeformableSettings()),
    "best": Preset((8, 4, 2, 1), (200, 150, 100, 60), DeformableSettings(convergence=1e-4)),
}

# Window radius of lncc in the linear stages. A wider window than the deformable stage's: few unknowns, smoother valley.
LINEAR_RADIUS = 3.0

# The start is sought on a copy with about this many voxels along its longest side: some 30 000 voxels in all.
_START_VOXELS = 36
_START_ITERATIONS = 25
_LINEAR_ITERATIONS = (40, 25, 20)


@dataclass(frozen=True)
class LinearLevel:
    """One level of the linear stages."""

    spacing_mm: float
    shrink: int
    iterations: int
    shape: tuple[int, ...]


def preset(quality: str) -> Preset:
    """Return the preset of that name.

    Raises
    ------
    OptionError
        Naming the nearest one that exists.
    """
    if quality not in PRESETS:
        raise OptionError(f"unknown quality '{quality}'{nearest(quality, PRESETS)}")
    return PRESETS[quality]


def deformable_levels(
    quality: str, levels: Sequence[int] | None, iterations: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return shrink factors and iterations, from the preset where the user gave none.

    Raises
    ------
    OptionError
        If they do not match, are not positive or do not go from coarse to fine.
    """
    base = preset(quality)
    if levels is None and iterations is None:
        return base.levels, base.iterations
    if levels is None:
        assert iterations is not None
        levels = tuple(2**k for k in reversed(range(len(iterations))))
    levels = tuple(int(n) for n in levels)
    if iterations is None:
        known = dict(zip(base.levels, base.iterations, strict=True))
        iterations = [known.get(n, max(base.iterations)) for n in levels]
    iterations = tuple(int(n) for n in iterations)
    if len(levels) != len(iterations):
        raise OptionError(
            f"levels {_times(levels)} and iterations {_times(iterations)} differ in number; give one each a level"
        )
    if not levels or min(levels) < 1 or list(levels) != sorted(set(levels), reverse=True):
        raise OptionError(f"levels {_times(levels)}: give shrink factors from coarse to fine, such as 4x2x1")
    if min(iterations) < 0:
        raise OptionError(f"iterations {_times(iterations)}: none may be negative")
    return levels, iterations


def _times(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers))


def start_spacing(fixed: Grid, moving: Grid) -> float:
    """Target spacing of the level on which the start is sought, mm."""
    finest = min(fixed.spacing.min(), moving.spacing.min())
    return float(max(fixed.extent.max() / _START_VOXELS, finest))


def linear_levels(fixed: Grid, moving: Grid, *, final: bool) -> list[LinearLevel]:
    """Levels of the linear stages, each half the spacing of the one before.

    Parameters
    ----------
    final
        Whether the linear map is the result: then the last level has the full size, else twice the finest spacing is
        fine enough for a deformable stage to go on from.
    """
    finest = float(fixed.spacing.min())
    spacing = start_spacing(fixed, moving)
    last = finest if final else 2 * finest
    spacings = [spacing]
    while spacings[-1] > last * 1.01:
        spacings.append(max(spacings[-1] / 2, last))
    out = []
    for k, value in enumerate(spacings):
        count = _LINEAR_ITERATIONS[min(k, len(_LINEAR_ITERATIONS) - 1)]
        out.append(LinearLevel(value, max(1, round(value / finest)), count, level_shape(fixed, value)))
    return out


def search_cost(fixed: Grid, moving: Grid, candidates: int) -> float:
    """Voxel evaluations of the search for a start."""
    return candidates * _START_ITERATIONS * float(math.prod(level_shape(fixed, start_spacing(fixed, moving))))
