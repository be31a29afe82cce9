"""Deformable solver: known maps found again, no folds, true inverses, symmetry, frozen axes, determinism."""

import numpy as np
import pytest
import torch
from tests.solve.phantom import body, centred_grid, volume, world_points

from verimorph.field import compose, jacobian_determinant
from verimorph.field.backend import set_threads
from verimorph.grid import Grid
from verimorph.solve import Level, Volume, make_measure, make_regularity, solve_deformable
from verimorph.solve.deformable import DeformableSettings
from verimorph.solve.progress import Recorder
from verimorph.solve.pyramid import make_level


def known_field(points: np.ndarray, amplitude_mm: float) -> np.ndarray:
    """A smooth map in the world that is no Gaussian and no exponential: products of sines."""
    x = points / 30.0
    parts = [np.sin(x[..., 0] + 0.5) * np.cos(x[..., 1]), np.cos(x[..., 0] - 0.3), np.sin(x[..., 1] + x[..., -1])]
    return amplitude_mm * np.stack(parts[: points.shape[-1]], -1)


def pair(ndim: int, n: int, amplitude_mm: float = 4.0) -> tuple[Volume, Volume, np.ndarray]:
    """Fixed and moving with ``fixed(x) = moving(x + d(x))`` exactly, and d in voxels of the fixed grid."""
    grid = centred_grid((n,) * ndim, 110 / n)
    intensity = body(ndim)
    points = world_points(grid)
    displacement = known_field(points, amplitude_mm)
    fixed = volume(grid, intensity(points + displacement))
    return fixed, volume(grid, intensity(points)), displacement / (110 / n)


def solve(fixed: Volume, moving: Volume, *, measure: str = "lncc", levels=(2, 1), iterations=(60, 40), **more):
    settings = more.pop("settings", DeformableSettings())
    finest = float(fixed.grid.spacing.min())
    makers = [lambda n=n: make_level(fixed=fixed, moving=moving, shrink=n, spacing_mm=n * finest) for n in levels]
    return solve_deformable(
        levels=makers,
        iterations=iterations,
        measure=make_measure(measure),
        linear=np.eye(fixed.grid.ndim + 1),
        grid=fixed.grid,
        settings=settings,
        **more,
    )


def error_inside(found: torch.Tensor, truth: np.ndarray, fixed: Volume) -> float:
    inside = fixed.tensor[0, 0].numpy() > 0.05
    difference = np.moveaxis(found[0].numpy(), 0, -1) - truth
    return float(np.linalg.norm(difference[inside], axis=-1).mean())


@pytest.mark.parametrize(
    ("ndim", "measure", "symmetric"),
    [(d, m, s) for d in (2, 3) for m in ("lncc", "mse", "mi", "mind") for s in (False, True) if d == 2 or m == "lncc"]
    + [(3, "mi", False), (3, "mind", False)],
)
def test_known_map_is_found_again_without_folds(ndim, measure, symmetric):
    fixed, moving, truth = pair(ndim, 64 if ndim == 2 else 40)
    result = solve(fixed, moving, measure=measure, settings=DeformableSettings(symmetric=symmetric))
    before = error_inside(torch.zeros_like(result.displacement), truth, fixed)
    after = error_inside(result.displacement, truth, fixed)
    assert after < (0.35 if measure in ("lncc", "mse") else 0.5) * before
    assert float(jacobian_determinant(result.displacement).min()) > 0


@pytest.mark.parametrize("symmetric", [False, True])
def test_inverse_composes_to_identity(symmetric):
    fixed, moving, _ = pair(3, 40)
    result = solve(fixed, moving, settings=DeformableSettings(symmetric=symmetric))

    def rest(outer: torch.Tensor, inner: torch.Tensor) -> float:
        left = compose(outer, inner)[..., 4:-4, 4:-4, 4:-4]
        return float(left.square().sum(1).sqrt().mean())

    # The inverse is solved for in this order; in the other, linear interpolation between its voxels adds its own error.
    assert rest(result.displacement, result.inverse.displacement) < 0.005
    assert rest(result.inverse.displacement, result.displacement) < 0.05
    assert result.inverse.mean_residual < 0.01


def test_symmetric_solution_of_swapped_images_is_the_inverse():
    fixed, moving, _ = pair(2, 64)
    settings = DeformableSettings(symmetric=True)
    there = solve(fixed, moving, settings=settings)
    back = solve(moving, fixed, settings=settings)
    difference = (there.inverse.displacement - back.displacement)[..., 6:-6, 6:-6]
    assert float(difference.square().sum(1).sqrt().mean()) < 0.05


def test_frozen_axis_does_not_move():
    fixed, moving, _ = pair(3, 32)
    result = solve(fixed, moving, settings=DeformableSettings(free_axes=(True, False, True)))
    assert float(result.displacement[:, 1].abs().max()) == 0
    assert float(result.displacement[:, 0].abs().max()) > 0.5


def test_linear_part_is_taken_into_account():
    """Moving is shifted by 12 mm; given that shift as the linear part, the field finds only the rest."""
    fixed, moving, truth = pair(3, 40)
    affine = moving.grid.affine.copy()
    affine[0, 3] += 12.0
    shifted = Volume(moving.tensor, Grid(moving.grid.shape, affine))
    linear = np.eye(4)
    linear[0, 3] = 12.0
    finest = float(fixed.grid.spacing.min())
    result = solve_deformable(
        levels=[lambda: make_level(fixed=fixed, moving=shifted, shrink=1, spacing_mm=finest)],
        iterations=[60],
        measure=make_measure("lncc"),
        linear=linear,
        grid=fixed.grid,
        settings=DeformableSettings(),
    )
    assert error_inside(result.displacement, truth, fixed) < 0.4 * error_inside(
        torch.zeros_like(result.displacement), truth, fixed
    )


def test_regularity_makes_the_field_smoother():
    fixed, moving, _ = pair(2, 64)
    energies = []
    for regularity in (None, make_regularity("diffusion:weight=3")):
        u = solve(fixed, moving, regularity=regularity).displacement
        energies.append(float(sum(u.diff(dim=k).square().mean() for k in (2, 3))))
    assert energies[1] < 0.8 * energies[0]


def test_start_field_is_used():
    fixed, moving, truth = pair(2, 64)
    start = torch.from_numpy(np.moveaxis(truth, -1, 0).astype(np.float32))[None]
    result = solve(fixed, moving, iterations=(0, 0), start=start)
    torch.testing.assert_close(result.displacement, start)


def test_fixed_mask_hides_what_it_hides():
    """Noise in a corner of the fixed image does not move the rest of a masked registration."""
    fixed, moving, truth = pair(2, 64)
    spoiled = fixed.tensor.clone()
    spoiled[..., 20:32, 20:32] = torch.rand(12, 12, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(spoiled)
    mask[..., 17:35, 17:35] = 0
    errors = []
    for region in (mask, None):
        result = solve(Volume(spoiled, fixed.grid, region), moving)
        errors.append(error_inside(result.displacement, truth, fixed))
    assert errors[0] < errors[1]


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_twice(threads):
    fixed, moving, _ = pair(3, 32)
    before = torch.get_num_threads()
    set_threads(threads)
    try:
        found = [solve(fixed, moving, iterations=(10, 5)).displacement for _ in range(2)]
    finally:
        set_threads(before)
    assert torch.equal(*found)


def test_level_ends_early_when_nothing_improves():
    fixed, _, _ = pair(2, 48)
    recorder = Recorder()
    solve(fixed, fixed, iterations=(200, 200), recorder=recorder)
    assert len(recorder.history) < 100


def test_levels_are_made_one_at_a_time():
    fixed, moving, _ = pair(2, 48)
    made: list[int] = []

    def maker(n: int) -> Level:
        made.append(n)
        return make_level(fixed=fixed, moving=moving, shrink=n, spacing_mm=n * 2.3)

    solve_deformable(
        levels=[lambda: maker(4), lambda: maker(2)],
        iterations=[3, 0],
        measure=make_measure("lncc"),
        linear=np.eye(3),
        grid=fixed.grid,
        settings=DeformableSettings(),
    )
    assert made == [4]
