"""The stages of one registration, in order: prepare intensities, find a start, fit the linear map, fit the field.

Works on images already read and checked; ``registration.py`` is the public face.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from threadpoolctl import ThreadpoolController
from torch import Tensor

from verimorph import prepare
from verimorph.errors import OptionError
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.solve.deformable import DeformableResult, DeformableSettings, solve_deformable
from verimorph.solve.initialise import find_start
from verimorph.solve.linear import LinearKind, solve_linear
from verimorph.solve.measure import Measure, make_measure
from verimorph.solve.progress import Event, Recorder, Step
from verimorph.solve.pyramid import Volume, level_shape, make_level
from verimorph.solve.regularity import make_regularity
from verimorph.solve.schedule import (
    LINEAR_RADIUS,
    STAGES,
    LinearLevel,
    deformable_levels,
    linear_levels,
    preset,
    start_spacing,
)

# What each requested transform goes through: a stiffer model first, so that a free one starts near.
_LADDER: dict[str, tuple[LinearKind, ...]] = {
    "rigid": ("rigid",),
    "similarity": ("rigid", "similarity"),
    "affine": ("rigid", "affine"),
    "deformable": ("rigid", "affine"),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a result, resolved: no defaults are left to fill in."""

    transform: str
    stages: tuple[str, ...]
    initial: str
    similarity: str
    quality: str
    levels: tuple[int, ...]
    iterations: tuple[int, ...]
    deformable: DeformableSettings
    winsorise: tuple[float, float] | None
    histogram_matching: bool
    bias_correction: bool
    regularity: str | None
    free_axes: tuple[bool, ...] | None
    device: str
    seed: int

    @property
    def linear_kinds(self) -> tuple[LinearKind, ...]:
        """The linear stages, in order."""
        return tuple(kind for kind in _LADDER[self.transform] if kind in self.stages)

    @property
    def deforms(self) -> bool:
        """Whether there is a deformable stage."""
        return "deformable" in self.stages


def make_recipe(
    *,
    transform: str = "deformable",
    stages: Sequence[str] | None = None,
    initial: str = "auto",
    similarity: str = "auto",
    quality: str = "balanced",
    levels: Sequence[int] | None = None,
    iterations: Sequence[int] | None = None,
    symmetric: bool | None = None,
    winsorise: tuple[float, float] | None = (0.005, 0.995),
    histogram_matching: bool = False,
    bias_correction: bool = False,
    regularity: str | None = None,
    restrict: Sequence[bool] | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Recipe:
    """Fill in what the user left open.

    Raises
    ------
    OptionError
        For a value that is unknown or contradicts another.
    """
    from verimorph.errors import nearest

    if transform not in _LADDER:
        raise OptionError(f"unknown transform '{transform}'{nearest(transform, _LADDER)}")
    wanted = (*_LADDER[transform], "deformable") if transform == "deformable" else _LADDER[transform]
    if stages is not None:
        for stage in stages:
            if stage not in STAGES:
                raise OptionError(f"unknown stage '{stage}'{nearest(stage, STAGES)}")
            if stage not in wanted:
                raise OptionError(f"stage '{stage}' is not part of a {transform} registration ({', '.join(wanted)})")
        if not stages:
            raise OptionError("no stages are left; name at least one")
        wanted = tuple(stage for stage in wanted if stage in stages)
        if tuple(stages) != wanted:
            raise OptionError(
                f"stages {','.join(stages)} cannot be run in that order; each runs once, stiff models first: "
                + ",".join(wanted)
            )
    chosen_levels, chosen_iterations = deformable_levels(quality, levels, iterations)
    base = preset(quality)
    make_measure(similarity, radius=base.lncc_radius)
    if regularity is not None:
        make_regularity(regularity)
    axes = None if restrict is None or all(restrict) else tuple(bool(free) for free in restrict)
    settings = DeformableSettings(
        update_sigma=base.deformable.update_sigma,
        total_sigma=base.deformable.total_sigma,
        step_voxels=base.deformable.step_voxels,
        symmetric=base.deformable.symmetric if symmetric is None else symmetric,
        free_axes=axes,
        convergence=base.deformable.convergence,
    )
    return Recipe(
        transform=transform,
        stages=wanted,
        initial=initial,
        similarity=similarity,
        quality=quality,
        levels=chosen_levels,
        iterations=chosen_iterations,
        deformable=settings,
        winsorise=winsorise,
        histogram_matching=histogram_matching,
        bias_correction=bias_correction,
        regularity=regularity,
        free_axes=axes,
        device=device,
        seed=seed,
    )


@dataclass
class Outcome:
    """What the stages found."""

    start: Float[ndarray, "h h"]
    start_name: str
    linear: Float[ndarray, "h h"]
    field: DeformableResult | None
    history: list[Step]
    timings: dict[str, float]


class Clock:
    """Seconds of each named part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[None]:
    """Keep BLAS to one thread: the quasi-Newton steps are of a dozen unknowns, and waking a pool for each of them costs
    more than everything else in them."""
    return _blas().limit(limits=1, user_api="blas")


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, MB."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def prepare_pair(
    *,
    fixed: Image,
    moving: Image,
    fixed_mask: Image | None,
    moving_mask: Image | None,
    recipe: Recipe,
) -> tuple[Volume, Volume]:
    """Return both images as volumes on the compute device, intensities in 0..1."""

    def one(image: Image, mask: Image | None, match: Tensor | None) -> Volume:
        tensor = image.tensor()
        region = None if mask is None else torch.from_numpy(mask.array > 0)[None, None]
        if recipe.bias_correction:
            tensor = prepare.bias_correct(tensor, spacing=tuple(image.grid.spacing), mask=region)
        if match is not None:
            tensor = prepare.histogram_match(fixed=match, moving=tensor)
        low, high = float(tensor.min()), float(tensor.max())
        if recipe.winsorise is not None:
            low, high = prepare.quantile_range(tensor, recipe.winsorise, mask=region)
        tensor = prepare.rescale(tensor.clamp(low, high), low, high)
        weight = None if region is None else region.to(tensor.dtype).to(recipe.device)
        return Volume(tensor.to(recipe.device), image.grid, weight)

    first = one(fixed, fixed_mask, None)
    match = fixed.tensor() if recipe.histogram_matching else None
    return first, one(moving, moving_mask, match)


def run(
    *,
    fixed: Volume,
    moving: Volume,
    recipe: Recipe,
    start: Float[ndarray, "h h"] | None = None,
    start_name: str = "file",
    start_field: Float[Tensor, "1 d *space"] | None = None,
    rough: bool = False,
    watcher: Callable[[Event], None] | None = None,
) -> Outcome:
    """Go through the stages of a recipe.

    Parameters
    ----------
    start
        World matrix (fixed to moving) to start from instead of seeking one; ``start_field`` a field on the fixed grid
        that acts before it.
    rough
        A linear result is for something else to go on from, so its finest level is left out.
    """
    torch.manual_seed(recipe.seed)
    clock, recorder = Clock(), Recorder(watcher)
    steps = linear_levels(fixed.grid, moving.grid, final=not (recipe.deforms or rough))
    planned = _planned_cost(fixed.grid, recipe, steps)
    recorder.budget = sum(planned.values())
    linear_measure = make_measure(recipe.similarity, radius=LINEAR_RADIUS)
    with clock("start"), one_blas_thread():
        coarse = make_level(
            fixed=fixed, moving=moving, shrink=steps[0].shrink, spacing_mm=start_spacing(fixed.grid, moving.grid)
        )
        if start is None:
            method = recipe.initial
            start, start_name = find_start(
                method, level=coarse, measure=linear_measure, free_axes=recipe.free_axes, recorder=recorder
            )
    recorder.reach(planned["start"])
    matrix = start
    for kind in recipe.linear_kinds:
        with clock(kind), one_blas_thread():
            matrix = _linear_stage(kind, fixed, moving, matrix, linear_measure, recipe, steps, recorder)
        recorder.reach(planned[kind])
    found = None
    if recipe.deforms:
        with clock("deformable"):
            found = _deformable_stage(fixed, moving, matrix, recipe, start_field, recorder)
    return Outcome(start, start_name, matrix, found, recorder.history, clock.seconds)


def _linear_stage(
    kind: LinearKind,
    fixed: Volume,
    moving: Volume,
    matrix: np.ndarray,
    measure: Measure,
    recipe: Recipe,
    steps: Sequence[LinearLevel],
    recorder: Recorder,
) -> np.ndarray:
    """One linear model, coarse to fine. All but the last model see the coarsest level only."""
    last = kind == recipe.linear_kinds[-1]
    for step in steps if last else steps[:1]:
        level = make_level(fixed=fixed, moving=moving, shrink=step.shrink, spacing_mm=step.spacing_mm)
        cost = float(level.fixed.grid.size) / 4

        def record(k: int, value: float, step: LinearLevel = step, cost: float = cost) -> None:
            recorder.record(kind, step.shrink, k, step.iterations, value, cost)

        matrix, _ = solve_linear(
            level=level,
            measure=measure,
            start=matrix,
            kind=kind,
            iterations=step.iterations,
            free_axes=recipe.free_axes,
            record=record,
        )
    return matrix


def _deformable_stage(
    fixed: Volume,
    moving: Volume,
    matrix: np.ndarray,
    recipe: Recipe,
    start: Tensor | None,
    recorder: Recorder,
) -> DeformableResult:
    finest = float(fixed.grid.spacing.min())
    makers = [partial(make_level, fixed=fixed, moving=moving, shrink=n, spacing_mm=n * finest) for n in recipe.levels]
    return solve_deformable(
        levels=makers,
        iterations=recipe.iterations,
        measure=make_measure(recipe.similarity, radius=preset(recipe.quality).lncc_radius),
        linear=matrix,
        grid=fixed.grid,
        settings=recipe.deformable,
        regularity=None if recipe.regularity is None else make_regularity(recipe.regularity),
        start=start,
        recorder=recorder,
    )


def _planned_cost(grid: Grid, recipe: Recipe, steps: Sequence[LinearLevel]) -> dict[str, float]:
    """Estimated cost of each stage, in voxels times deformable iterations (a linear one costs about a quarter)."""
    coarsest = float(np.prod(steps[0].shape))
    cost = {"start": coarsest * 40}
    for kind in recipe.linear_kinds:
        levels = steps if kind == recipe.linear_kinds[-1] else steps[:1]
        cost[kind] = sum(float(np.prod(step.shape)) * step.iterations / 4 for step in levels)
    if recipe.deforms:
        finest = float(grid.spacing.min())
        shapes = [level_shape(grid, shrink * finest) for shrink in recipe.levels]
        cost["deformable"] = float(sum(np.prod(s) * n for s, n in zip(shapes, recipe.iterations, strict=True)))
    return cost


def describe(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as JSON-able settings."""
    settings = {
        "transform": recipe.transform,
        "stages": list(recipe.stages),
        "initial": recipe.initial,
        "similarity": recipe.similarity,
        "quality": recipe.quality,
        "levels": list(recipe.levels),
        "iterations": list(recipe.iterations),
        "winsorise": None if recipe.winsorise is None else list(recipe.winsorise),
        "histogram_matching": recipe.histogram_matching,
        "bias_correction": recipe.bias_correction,
        "regularity": recipe.regularity,
        "restrict": None if recipe.free_axes is None else list(recipe.free_axes),
        "update_sigma": recipe.deformable.update_sigma,
        "total_sigma": recipe.deformable.total_sigma,
        "step_voxels": recipe.deformable.step_voxels,
        "symmetric": recipe.deformable.symmetric,
        "convergence": recipe.deformable.convergence,
        "lncc_radius": preset(recipe.quality).lncc_radius,
        "device": recipe.device,
        "seed": recipe.seed,
    }
    if not recipe.deforms:
        for key in ("levels", "iterations", "update_sigma", "total_sigma", "step_voxels", "symmetric", "convergence"):
            settings.pop(key)
    return settings


def recipe_of(settings: Mapping[str, Any]) -> Recipe:
    """How a registration saw its images, from its settings: similarity, preparation, frozen axes, device, seed.

    Of a prediction that was refined, the similarity is that of the refinement; of one that was not, the default.
    """
    refinement = settings.get("refinement") or {}
    limits = settings.get("winsorise", (0.005, 0.995))
    return make_recipe(
        similarity=str(settings.get("similarity") or refinement.get("similarity") or "auto"),
        winsorise=None if limits is None else (float(limits[0]), float(limits[1])),
        histogram_matching=bool(settings.get("histogram_matching", False)),
        bias_correction=bool(settings.get("bias_correction", False)),
        restrict=settings.get("restrict"),
        device=str(settings.get("device") or "cpu"),
        seed=int(settings.get("seed") or 0),
    )
