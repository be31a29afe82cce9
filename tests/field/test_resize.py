"""Resizing and the pyramid keep the field of view."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verimorph.errors import OptionError
from verimorph.field import resize, resize_displacement, shrink, voxel_index, warp
from verimorph.grid import Grid


def centres(new: tuple[int, ...], old: tuple[int, ...]) -> torch.Tensor:
    """Index in the old grid of every voxel centre of the new one, equal outer edges: ``(j + 1/2) N / N' - 1/2``."""
    d = len(new)
    ratio = torch.tensor([o / n for o, n in zip(old, new, strict=True)]).reshape(1, d, *[1] * d)
    return (voxel_index(new) + 0.5) * ratio - 0.5


@pytest.mark.parametrize(("old", "new"), [((8, 6), (16, 9)), ((8, 6, 10), (4, 3, 5)), ((8, 6, 10), (13, 17, 7))])
def test_a_linear_ramp_keeps_its_place(old, new):
    """Away from the repeated edge, the resized index ramp is the index of the new centres, axis by axis."""
    resized, expected = resize(voxel_index(old), new), centres(new, old)
    limit = torch.tensor(old).reshape(1, -1, *[1] * len(old)) - 1
    torch.testing.assert_close(resized, expected.clamp(min=torch.zeros_like(limit), max=limit), atol=1e-5, rtol=0)


def test_resized_grid_of_the_house_agrees(oblique_grid):
    """A world ramp sampled on ``grid.resized`` is the ramp resized: grid and field room mean the same by resizing."""
    grid = oblique_grid(3, (12, 10, 8))
    small = grid.resized((6, 5, 4))

    def ramp(where: Grid) -> torch.Tensor:
        index = voxel_index(where.shape)[0].reshape(3, -1).double().numpy()
        world = where.affine[:3, :3] @ index + where.affine[:3, 3:]
        return torch.from_numpy(world.reshape(1, 3, *where.shape)).float()

    torch.testing.assert_close(resize(ramp(grid), small.shape), ramp(small), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("old", "new"), [((10, 12), (20, 6)), ((10, 12, 8), (5, 24, 8))])
def test_displacement_scales_with_the_number_of_voxels(old, new):
    """The same motion in world units: component d times ``N'/N`` along d, and warping commutes with resizing."""
    d = len(old)
    u = torch.arange(1.0, d + 1).reshape(1, d, *[1] * d).expand(1, d, *old).contiguous()
    resized = resize_displacement(u, new)
    for axis in range(d):
        assert resized[0, axis].unique().item() == pytest.approx((axis + 1) * new[axis] / old[axis])


def test_warp_after_resizing_moves_the_same_structure(smooth_noise):
    """A blob warped on the fine grid and on a grid of half the voxels ends at the same place of the field of view."""
    fine = (48, 48)
    index = voxel_index(fine)
    blob = torch.exp(-((index - 20) ** 2).sum(1, keepdim=True) / 60)
    u = torch.full((1, 2, *fine), 6.0)

    def middle(x: torch.Tensor) -> np.ndarray:
        where = (voxel_index(tuple(x.shape[2:])) + 0.5) / x.shape[2]
        return ((x * where).sum((2, 3)) / x.sum()).numpy()

    moved_fine = warp(blob, u)
    moved_coarse = warp(resize(blob, (24, 24)), resize_displacement(u, (24, 24)))
    np.testing.assert_allclose(middle(moved_fine), middle(moved_coarse), atol=2e-3)
    assert np.abs(middle(blob) - middle(moved_fine)).min() > 0.1


def test_shrinking_does_not_alias():
    """A pattern of period two voxels vanishes at half size; plain resampling of a finer one would beat."""
    stripes = (torch.arange(64.0) % 3 - 1)[:, None].expand(64, 64)[None, None].contiguous()
    assert float(shrink(stripes, 4).std()) < 0.1 * float(resize(stripes, (16, 16)).std())


def test_shrink_keeps_the_field_of_view_and_leaves_axes_of_factor_one():
    ramp = voxel_index((24, 20, 7))
    small = shrink(ramp, (4, 2, 1))
    assert small.shape[2:] == (6, 10, 7)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(small[inner], centres((6, 10, 7), (24, 20, 7))[inner], atol=1e-4, rtol=0)
    assert shrink(ramp, 1) is ramp
    assert shrink(torch.zeros(1, 1, 3, 40), 8).shape[2:] == (1, 5)
    with pytest.raises(OptionError, match="factors"):
        shrink(ramp, (2, 0.5, 1))
