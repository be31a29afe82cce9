"""Maps of evidence against what they are on fields and images that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verimorph.grid import Grid
from verimorph.solve.pyramid import Level, Volume
from verimorph.transform import Composite, DisplacementField, rigid
from verimorph.uncertainty.evidence import (
    _image_maps,
    as_field,
    bending,
    border,
    noise_level,
    remaining_shift,
    ripple,
)


def volume(shape: tuple[int, ...], spacing: tuple[float, ...]) -> Volume:
    grid = Grid(shape, np.diag([*spacing, 1.0]))
    return Volume(torch.zeros(1, 1, *shape), grid)


@pytest.mark.parametrize("shape", [(20, 24), (20, 24, 16)])
def test_bend_is_the_second_derivative(shape: tuple[int, ...]) -> None:
    spacing = (1.0, 2.0, 3.0)[: len(shape)]
    grid = volume(shape, spacing).grid
    x = torch.arange(shape[1], dtype=torch.float64).view(-1, *[1] * (len(shape) - 2)) * spacing[1]
    # u_0 = a x_1^2 mm: its second derivative is 2 a per mm everywhere.
    u = torch.zeros(1, len(shape), *shape, dtype=torch.float64)
    u[0, 0] = 0.01 * x.square() / spacing[0]
    unit = 1.5
    found = bending(u, grid, unit)
    inner = tuple(slice(6, -6) if n > 16 else slice(2, -2) for n in shape)
    assert torch.allclose(found[inner], torch.full_like(found[inner], 2 * 0.01 * unit), rtol=1e-3)
    # An affine field does not bend.
    u[0, 0] = 0.3 * x
    assert bending(u, grid, unit).abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(40, 60), (24, 60, 20)])
def test_ripple_is_what_a_gaussian_takes_away(shape: tuple[int, ...]) -> None:
    """Of a x^2, smoothing by a Gaussian of width s makes a (x^2 + s^2); of a line, nothing."""
    spacing = (1.0, 2.0, 3.0)[: len(shape)]
    grid = volume(shape, spacing).grid
    x = torch.arange(shape[1], dtype=torch.float64).view(-1, *[1] * (len(shape) - 2)) * spacing[1]
    u = torch.zeros(1, len(shape), *shape, dtype=torch.float64)
    u[0, 0] = 0.01 * x.square() / spacing[0]
    width, unit = 4.0, 1.5  # voxels of the finest spacing, 1 mm
    found = ripple(u, grid, unit, width)[:, 20:-20]
    assert torch.allclose(found, torch.full_like(found, 0.01 * width**2 / unit), rtol=2e-2)
    u[0, 0] = 0.3 * x
    assert ripple(u, grid, unit, width)[:, 20:-20].abs().max() < 1e-6


def test_noise_is_read_from_all_slices() -> None:
    """A step that divides the sides would meet the same few slices only; here these are empty."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, 100, 100, 100, generator=generator)
    image[..., ::10] = 0
    assert noise_level(image) == pytest.approx(1.0, abs=0.15)


def test_smoothing_takes_noise_from_the_mismatch_and_leaves_what_is_out_of_place() -> None:
    generator = torch.Generator().manual_seed(0)
    grid = volume((40, 40, 40), (1.0, 1.0, 1.0)).grid
    waves = [torch.sin(torch.arange(40.0) / 2.5 + k) for k in range(3)]
    scene = (waves[0][:, None, None] + waves[1][None, :, None] + waves[2][None, None, :])[None, None]
    noise = 0.3 * torch.randn(2, *scene.shape, generator=generator)
    still = torch.zeros(1, 3, 40, 40, 40)
    off = torch.full_like(still, 0.5)
    inner = (slice(8, -8),) * 3

    def medians(fixed: torch.Tensor, moving: torch.Tensor, u: torch.Tensor) -> list[float]:
        maps = _image_maps(Level(Volume(fixed, grid), Volume(moving, grid), 1), u, np.eye(4), 1.0)
        return [float(maps[name][inner].median()) for name in ("mismatch 1.5", "soft mismatch", "noise")]

    noisy, moved = medians(scene + noise[0], scene + noise[1], still), medians(scene, scene, off)
    assert noisy[1] < 0.2 * noisy[0]
    assert moved[1] > 0.5 * moved[0]
    assert noisy[2] == pytest.approx(0.3, rel=0.25)
    assert moved[2] < 0.1


def waves(grid: Grid, moved_mm: tuple[float, ...], between: tuple[float, float] = (8, 20)) -> torch.Tensor:
    """An analytic scene, which can be read anywhere: forty waves of these lengths, mm, moved by so much."""
    random = np.random.default_rng(0)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
    at = index * np.array(grid.spacing) + np.array(moved_mm)
    total = np.zeros(grid.shape)
    for _ in range(40):
        direction = random.normal(size=grid.ndim)
        wave = direction / np.linalg.norm(direction) * 2 * np.pi / random.uniform(*between)
        total += np.sin(at @ wave + random.uniform(0, 2 * np.pi))
    return torch.from_numpy((total / total.std()).astype(np.float32))[None, None]


@pytest.mark.parametrize(
    ("shape", "spacing", "moved"),
    [((60, 50), (1.0, 1.5), (0.2, -0.15)), ((40, 36, 20), (1.0, 1.0, 2.0), (0.2, 0.0, -0.3))],
)
def test_a_small_shift_is_read_off_the_images(shape, spacing, moved) -> None:
    grid = volume(shape, spacing).grid
    unit = 1.3
    fixed, other = waves(grid, (0.0,) * len(shape)), waves(grid, moved)
    found = remaining_shift(fixed, other, grid, unit)
    inner = tuple(slice(6, -6) if n > 20 else slice(4, -4) for n in shape)
    assert float(found["shift 3"][inner].median()) == pytest.approx(np.linalg.norm(moved) / unit, rel=0.1)
    # Brighter, of higher contrast, or inverted: the same shift, and no less sure.
    for scale, offset in ((7.0, 30.0), (-0.5, 1.0)):
        again = remaining_shift(fixed, scale * other + offset, grid, unit)
        for name, expected in found.items():
            assert torch.allclose(again[name][inner], expected[inner], rtol=1e-2, atol=1e-3), name
    assert max(float(one.max()) for one in remaining_shift(fixed, fixed, grid, unit).values()) < 1e-4


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-5, 1e-3])
@pytest.mark.parametrize("shape", [(48, 48), (32, 32, 24), (24, 24, 1), (1, 1)])
def test_edges_that_tell_nothing_along_themselves_are_no_error(shape, noise) -> None:
    """Diagonal edges and stripes: the small systems are singular, but for rounding."""
    grid = volume(shape, (1.0,) * len(shape)).grid
    i, j = np.indices(shape)[:2]
    generator = torch.Generator().manual_seed(0)
    for scene in ((i + j > shape[0]), (i + j) % 5 == 0, np.zeros(shape)):
        fixed = torch.from_numpy(scene.astype(np.float32))[None, None]
        moved = fixed + noise * torch.randn(fixed.shape, generator=generator)
        for name, found in remaining_shift(fixed, moved, grid, 1.0).items():
            assert torch.isfinite(found).all(), name
            assert float(found.max()) < 3, name


@pytest.mark.parametrize(("shape", "spacing"), [((48, 40), (1.0, 1.4)), ((32, 30, 16), (1.0, 1.0, 2.0))])
def test_what_noise_makes_of_a_shift_is_its_standard_error(shape, spacing) -> None:
    """The root mean square of shifts that noise alone makes, over draws, against what is said of each."""
    grid = volume(shape, spacing).grid
    scene = waves(grid, (0.0,) * len(shape), between=(7, 10))  # of longer ones the local means take noise and all
    generator = torch.Generator().manual_seed(0)
    square, said = torch.zeros(shape), torch.zeros(shape)
    draws = 40
    for _ in range(draws):
        noisy = scene + 0.05 * torch.randn(scene.shape, generator=generator)
        found = remaining_shift(scene, noisy, grid, 1.0)
        square += found["shift 3"].square() / draws
        said += found["shift error 3"].square() / draws
    inner = tuple(slice(6, -6) if n > 20 else slice(4, -4) for n in shape)
    ratio = (square[inner].sum() / said[inner].sum()).sqrt()
    assert float(ratio) == pytest.approx(1.0, abs=0.15)


def test_border_is_the_nearest_face_of_either_image() -> None:
    fixed, moving = volume((10, 12, 8), (1.0, 1.0, 2.0)), volume((10, 12, 8), (1.0, 1.0, 2.0))
    level = Level(fixed, moving, 1)
    still = border(level, torch.zeros(1, 3, 10, 12, 8), np.eye(4), 1.0)
    assert still[5, 6, 0] == pytest.approx(1.0)  # half of a slice of 2 mm
    assert still[0, 6, 4] == pytest.approx(0.5)
    assert still[5, 6, 4] == pytest.approx(4.5)
    # Sent 3 mm towards the first face: what lay 5.5 voxels from it arrives 2.5 from it, and the first three outside.
    shift = np.eye(4)
    shift[0, 3] = -3.0
    moved = border(level, torch.zeros(1, 3, 10, 12, 8), shift, 1.0)
    assert moved[5, 6, 4] == pytest.approx(2.5)
    assert moved[2, 6, 4] == 0


def test_any_map_has_its_nearest_matrix_also_where_there_is_one_slice() -> None:
    """Along an axis without extent nothing can be fitted, and nothing must change."""
    for shape in ((32, 32, 1), (32, 32, 3), (20, 24, 16)):
        grid = Grid(shape, np.diag([1.0, 1.0, 4.0, 1.0]))
        foreign = Grid((5, 5, 5), np.diag([8.0, 8.0, 3.0, 1.0]))
        turn = rigid(rotation=(0.0, 0.0, 20.0), centre=(16.0, 16.0, 0.0))
        still = DisplacementField(foreign, torch.zeros(1, 3, 5, 5, 5))
        matrix, u = as_field(Composite([turn, still]), grid, grid)
        assert matrix == pytest.approx(turn.matrix, abs=1e-9)
        assert u.abs().max() < 1e-4
