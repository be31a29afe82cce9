"""Jacobian determinant: against analytic fields and SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from verimorph.field import jacobian_determinant, voxel_index
from verimorph.field.backend import plain_torch


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 7)])
def test_linear_map_has_its_determinant_everywhere(shape, backend):
    """Central and one-sided differences are exact for a linear map: border included."""
    d = len(shape)
    gain = 0.3 * np.random.default_rng(1).normal(size=(d, d))
    u = torch.einsum("ij,bj...->bi...", torch.from_numpy(gain).float(), voxel_index(shape))
    expected = np.linalg.det(np.eye(d) + gain)
    np.testing.assert_allclose(jacobian_determinant(u), np.full((1, *shape), expected), rtol=2e-5)


@pytest.mark.parametrize("shape", [(15, 13), (15, 13, 11)])
def test_equals_simpleitk_inside(shape, backend, smooth_noise):
    d = len(shape)
    u = smooth_noise(shape, d, 3.0, width=2.0)
    vectors = sitk.GetImageFromArray(np.ascontiguousarray(u[0].numpy().T.astype(np.float64)), isVector=True)
    theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(vectors)).T
    inner = (slice(1, -1),) * d
    ours = jacobian_determinant(u)[0].numpy()
    assert theirs[inner].min() < 0 or theirs[inner].std() > 0.1
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=2e-5)


def test_smooth_map_converges_to_its_analytic_determinant(backend):
    """``x + a sin(2 pi x / n)`` along each axis: the determinant is a product of ``1 + a (2 pi / n) cos``."""
    n, a = 64, 3.0
    index = voxel_index((n, n, n))
    rate = 2 * np.pi / n
    u = a * torch.sin(rate * index)
    expected = (1 + a * rate * torch.cos(rate * index)).prod(1)
    inner = (slice(None), *(slice(1, -1),) * 3)
    torch.testing.assert_close(jacobian_determinant(u)[inner], expected[inner], atol=3 * a * rate**3 / 6 * 1.7, rtol=0)


def test_a_fold_is_negative(backend):
    u = torch.zeros(1, 3, 10, 4, 4)
    u[0, 0, 5:] = -3.0
    j = jacobian_determinant(u)
    assert (j[0, 4:6] < 0).all()
    assert (j[0, :4] == 1).all()


@pytest.mark.parametrize("shape", [(12, 11, 9), (12, 11, 1), (1, 11, 9), (2, 1, 1), (1, 1, 1)])
def test_back_ends_agree_and_an_axis_of_one_voxel_does_not_stretch(shape, smooth_noise):
    u = smooth_noise(shape, 6, 2.0, width=1.0).reshape(2, 3, *shape)
    ours = jacobian_determinant(u)
    with plain_torch():
        theirs = jacobian_determinant(u)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
