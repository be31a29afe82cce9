"""Finished registrations to put on a page, made without a solver: what it would have found is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest

from verimorph.grid import Grid
from verimorph.image import Image


class Step(NamedTuple):
    stage: str
    level: int
    iteration: int
    value: float


@dataclass
class Finished:
    """The attributes of ``verimorph.register.Registration`` that the page reads."""

    fixed: Image
    moving: Image
    transform: Any
    inverse: Any
    initial: Any
    moved: Image
    jacobian: Image
    moved_labels: Image | None = None
    fixed_labels: Image | None = None
    moving_labels: Image | None = None
    fixed_landmarks: Any = None
    moving_landmarks: Any = None
    fixed_mask: Image | None = None
    moving_mask: Image | None = None
    history: list = field(default_factory=list)
    timings: dict = field(default_factory=dict)
    peak_memory_mb: float = 512.0
    settings: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    truth: Any = None
    warnings: list = field(default_factory=list)
    uncertainty: Any = None


@dataclass
class Unsure:
    """The attributes of ``verimorph.uncertainty.assess.Uncertainty`` that the page reads."""

    error_mm: Image
    displacement_std: Image
    level: float = 0.9
    label_uncertainty: Image | None = None
    volumes: dict = field(default_factory=dict)
    calibration: str = "known deformations of six brains"
    calibrated_for: str = "T1 images of whole heads, 1 mm"
    verdict: str = "review"
    reasons: str = "low similarity after alignment"
    probability: float | None = 0.31
    reference_away_mm: float | None = None


def finish(fixed: Image, moving: Image, transform: Any, **more: Any) -> Finished:
    """Resample everything through ``transform`` as a registration does."""
    from verimorph.transform import identity

    if more.get("moving_labels") is not None:
        more["moved_labels"] = transform.resample(more["moving_labels"], fixed.grid, interpolation="labels")
    return Finished(
        fixed=fixed,
        moving=moving,
        transform=transform,
        inverse=None,
        initial=more.pop("initial", identity(fixed.grid.ndim)),
        moved=transform.resample(moving, fixed.grid),
        jacobian=Image.from_array(transform.jacobian_determinant(fixed.grid)[0], fixed.grid, name="jacobian"),
        history=[
            Step(stage, level, i, -0.4 - 0.1 / level - 0.2 * (1 - np.exp(-i / 8)))
            for stage in ("affine", "deformable")
            for level in (4, 2, 1)
            for i in range(30)
        ],
        timings={"read": 0.2, "affine": 1.4, "deformable": 6.1},
        settings={"similarity": "lncc", "levels": [4, 2, 1], "nested": {"radius": 4}},
        provenance={"versions": {"verimorph": "0"}, "seed": 0},
        **more,
    )


def phantom(grid: Grid, *, seed: int = 0) -> tuple[Image, Image]:
    """A head of nested ellipsoids with noise, and its labels 1 to 3; the same anatomy in world space on any grid."""
    random = np.random.default_rng(seed)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    world = grid.index_to_world(index.reshape(-1, grid.ndim)).reshape(index.shape)
    radii = np.array([30.0, 36.0, 28.0])[: grid.ndim]
    labels = np.zeros(grid.shape, np.int16)
    for label, (shift, scale) in enumerate((((0, 0, 0), 1.0), ((-9, 6, 4), 0.45), ((12, -5, 2), 0.3)), 1):
        offset = world - np.array(shift)[: grid.ndim]
        labels[((offset / (radii * scale)) ** 2).sum(-1) < 1] = label
    values = np.array([0, 500, 900, 250])[labels] + random.normal(0, 15, grid.shape)
    return Image.from_array(values.astype(np.float32), grid, name="head"), Image.from_array(labels, grid, name="labels")


@pytest.fixture(scope="session")
def unsure():
    """``unsure(finished, **more)``: the same with a bound that grows from 0.4 mm in the middle to the rim."""
    from dataclasses import replace

    def doubt(finished: Finished, **more: Any) -> Finished:
        grid = finished.fixed.grid
        index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
        world = grid.index_to_world(index.reshape(-1, grid.ndim)).reshape(index.shape)
        bound = (0.4 + 0.06 * np.linalg.norm(world, axis=-1)).astype(np.float32)
        volumes = {
            1: {"volume_ml": 120.0, "low_ml": 116.0, "high_ml": 125.0},
            2: {"volume_ml": 11.5, "low_ml": 10.1, "high_ml": 12.4},
            3: {"volume_ml": 0.0, "low_ml": 0.0, "high_ml": 0.4},
        }
        given = {
            "error_mm": Image.from_array(bound, grid, name="error_mm"),
            "displacement_std": Image.from_array(bound / 3, grid, name="displacement_std"),
            "volumes": volumes if finished.moving_labels is not None else {},
        }
        return replace(finished, uncertainty=Unsure(**(given | more)))

    return doubt


@pytest.fixture(scope="session")
def known():
    """``known(ndim)``: a finished registration of the phantom with labels, landmarks and truth, a little off."""
    from verimorph.io import Points
    from verimorph.synthetic import random_affine, random_deformation
    from verimorph.transform import Composite

    def make(ndim: int = 3, shape: tuple[int, ...] | None = None, spacing: tuple[float, ...] | None = None) -> Finished:
        shape = shape or (42, 46, 36)[:ndim]
        spacing = spacing or (2.0, 2.0, 2.0)[:ndim]
        affine = np.diag([*spacing, 1.0])
        affine[:ndim, ndim] = -(np.array(shape) - 1) * np.array(spacing) / 2
        grid = Grid(shape, affine)
        fixed, fixed_labels = phantom(grid)
        linear = random_affine(grid.centre, rotation_degrees=8.0, scale_percent=5.0, translation_mm=6.0, seed=1)
        bend = random_deformation(grid, mean_mm=3.0, radii_mm=(60.0, 40.0), weights=(1.0, 0.4), seed=2)
        truth = Composite([bend, linear])
        back = truth.inverse()
        moving = back.resample(fixed, grid)
        moving_labels = back.resample(fixed_labels, grid, interpolation="labels")
        slip = random_deformation(grid, mean_mm=0.4, radii_mm=(40.0,), weights=(1.0,), seed=3)
        points = np.random.default_rng(4).uniform(-20, 20, (7, ndim))
        return finish(
            fixed,
            moving,
            Composite([slip, bend, linear]),
            truth=truth,
            initial=linear,
            fixed_labels=fixed_labels,
            moving_labels=moving_labels,
            fixed_landmarks=Points(points),
            moving_landmarks=Points(truth.map_points(points)),
        )

    return make
