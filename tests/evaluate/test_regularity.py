"""Jacobian measures against analytic fields and SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from verimorph.errors import InputError
from verimorph.evaluate import folding_percent, jacobian_summary, sd_log_jacobian
from verimorph.grid import Grid
from verimorph.transform import DisplacementField


def smooth_field(shape, amplitude=1.0):
    i, j, k = np.indices(shape, dtype=float)
    field = np.stack([np.sin(0.4 * i) * np.cos(0.3 * j), np.cos(0.5 * j + 0.2 * k), np.sin(0.3 * k + 0.1 * i)])
    return amplitude * field


def test_linear_stretch_has_the_product_of_its_factors_and_no_spread():
    grid = Grid((8, 8, 8), np.diag([2.0, 1.0, 0.5, 1.0]))
    stretch = np.array([0.1, -0.2, 0.3])
    field = stretch.reshape(3, 1, 1, 1) * np.indices((8, 8, 8))
    transform = DisplacementField(grid, torch.tensor(field[None], dtype=torch.float32))
    inner = transform.jacobian_determinant(grid)[0].numpy()[2:-2, 2:-2, 2:-2]
    found = jacobian_summary(inner)
    assert found["mean"] == pytest.approx(np.prod(1 + stretch), abs=1e-5)
    assert found["sd_log_jacobian"] == pytest.approx(0.0, abs=1e-5)
    assert found["folding_percent"] == 0


def test_determinants_behind_the_measures_equal_simpleitk_in_millimetres():
    spacing = np.array([2.0, 1.0, 1.0])
    grid = Grid((16, 15, 14), np.diag([*spacing, 1.0]))
    field = smooth_field(grid.shape, 4.0)
    ours = DisplacementField(grid, torch.tensor(field[None], dtype=torch.float32)).jacobian_determinant(grid)[0].numpy()
    # ITK: vectors in mm, LPS; with x and y turned round in space and in the vectors the numbers are those of RAS
    vectors = np.moveaxis(field * spacing.reshape(3, 1, 1, 1), 0, -1).transpose(2, 1, 0, 3)
    image = sitk.GetImageFromArray(vectors, isVector=True)
    image.SetSpacing(spacing.tolist())
    theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image)).transpose(2, 1, 0)
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=2e-4)
    assert folding_percent(ours[inner]) == pytest.approx(100 * (theirs[inner] <= 0).mean())
    assert folding_percent(ours[inner]) > 0


def test_folding_counts_zero_as_folded():
    assert folding_percent(np.array([1.0, 0.5, 0.0, -1.0])) == 50.0


def test_spread_of_log_leaves_folds_out_and_takes_no_shift():
    values = np.array([np.e, 1 / np.e, -5.0, 0.0])
    assert sd_log_jacobian(values) == pytest.approx(1.0)
    assert np.isnan(sd_log_jacobian(np.array([-1.0])))


def test_quantiles_and_mask(random):
    values = random.lognormal(0, 0.2, (10, 9, 8)).astype(np.float32)
    mask = random.random(values.shape) < 0.5
    found = jacobian_summary(values, mask)
    chosen = values[mask].astype(np.float64)
    assert found["voxels"] == mask.sum()
    assert found["quantiles"]["0.95"] == pytest.approx(np.quantile(chosen, 0.95))
    assert found["sd_log_jacobian"] == pytest.approx(np.log(chosen).std())
    with pytest.raises(InputError, match="empty"):
        jacobian_summary(values, np.zeros(values.shape))
    with pytest.raises(InputError, match="one grid"):
        jacobian_summary(values, mask[:3])
