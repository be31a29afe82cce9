"""Interpolation: against SciPy, SimpleITK and exact polynomials."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from verimorph.errors import OptionError
from verimorph.field import sample, sample_field, voxel_index, warp, warp_with_gradient
from verimorph.grid import Grid

SHAPES = [(9, 7), (9, 7, 5)]
MODES = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor, "cubic": sitk.sitkBSpline}


def to_sitk(array: np.ndarray, grid: Grid) -> sitk.Image:
    """SimpleITK image of an array in NIfTI index order on a grid in RAS, written without our own readers."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    d = array.ndim
    flip = np.diag([-1.0, -1.0, 1.0][:d]) if d == 3 else np.eye(d)
    linear = flip @ grid.affine[:d, :d]
    spacing = np.linalg.norm(linear, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((linear / spacing).ravel().tolist())
    image.SetOrigin((flip @ grid.affine[:d, d]).tolist())
    return image


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_equals_scipy_inside(shape, backend, smooth_noise, positions):
    image = smooth_noise(shape, 2, 1.0, width=0.5)
    where = positions(shape, 400, reach=0.0)
    index = torch.from_numpy(where).float().reshape(1, len(shape), 20, 20, *[1] * (len(shape) - 2))
    ours = sample(image, index)[0].reshape(2, -1).numpy()
    for channel in range(2):
        theirs = ndimage.map_coordinates(image[0, channel].numpy(), where, order=1)
        np.testing.assert_allclose(ours[channel], theirs, atol=3e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", MODES)
def test_outside_is_beyond_half_a_voxel_and_the_rim_repeats_the_edge(shape, mode, backend, smooth_noise, positions):
    """Inside is ``[-0.5, N - 0.5)``; beyond is the background. The cubic spline is mirrored at the edge, as in ITK."""
    image = smooth_noise(shape, 1, 1.0, width=0.5)
    where = positions(shape, 600)
    limit = np.array(shape)[:, None] - 1
    inside = ((where >= -0.5) & (where < limit + 0.5)).all(0)
    order = {"linear": 1, "nearest": 0, "cubic": 3}[mode]
    clamped = where if mode == "cubic" else np.clip(where, 0, limit)
    if mode == "nearest":
        clamped = np.floor(clamped + 0.5)
    theirs = np.where(
        inside, ndimage.map_coordinates(image[0, 0].double().numpy(), clamped, order=order, mode="mirror"), -7
    )
    index = torch.from_numpy(where).float().reshape(1, len(shape), 30, 20, *[1] * (len(shape) - 2))
    ours = sample(image, index, mode=mode, background=-7.0).numpy().ravel()
    assert 0.1 < inside.mean() < 0.9
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_exact_rule_of_inside(backend):
    """-0.5 is inside, N - 0.5 is outside, as ITK has it."""
    image = torch.full((1, 1, 4, 3, 2), 5.0)
    index = torch.tensor([[-0.5, 0, 0], [-0.5001, 0, 0], [3.499, 0, 0], [3.5, 0, 0], [0, 2.5, 0], [0, 0, 1.5]])
    values = sample(image, index.T.reshape(1, 3, 6, 1, 1), background=-1.0).ravel()
    assert values.tolist() == [5, -1, 5, -1, -1, -1]


@pytest.mark.parametrize("backend_dtype", [torch.uint8, torch.int16, torch.float32])
def test_nearest_rounds_halves_up_and_keeps_the_type(backend_dtype):
    image = torch.arange(5, dtype=backend_dtype).reshape(1, 1, 5, 1).expand(1, 1, 5, 2).contiguous()
    along = torch.tensor([-0.5, 0.49, 0.5, 1.5, 2.5, 3.49, 4.49, 4.5])
    values = sample(image, torch.stack([along, torch.zeros(8)])[None, :, :, None], mode="nearest", background=9)
    assert values.dtype == backend_dtype
    assert values.ravel().tolist() == [0, 0, 1, 2, 3, 3, 4, 9]


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)])
def test_a_shift_of_half_a_voxel_takes_the_upper_one(shape, backend):
    """Along each axis: +1/2 reads the next voxel (background after the last), -1/2 the voxel itself."""
    labels = torch.arange(1, 1 + int(np.prod(shape)), dtype=torch.int16).reshape(1, 1, *shape)
    for axis in range(len(shape)):
        u = torch.zeros(1, len(shape), *shape)
        u[:, axis] = 0.5
        shifted = torch.roll(labels, -1, 2 + axis)
        shifted.select(2 + axis, -1).fill_(0)
        assert torch.equal(warp(labels, u, mode="nearest"), shifted)
        assert torch.equal(warp(labels, -u, mode="nearest"), labels)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_warp_equals_simpleitk_on_oblique_grids(ndim, mode, oblique_grid, backend, smooth_noise):
    """Resampling between two oblique anisotropic grids with a displacement: the matrix form and ITK agree."""
    fixed, moving = oblique_grid(ndim, seed=1), oblique_grid(ndim, (17, 15, 12)[:ndim], seed=2)
    middle = moving.affine @ [*(np.array(moving.shape) - 1) / 2, 1] - fixed.affine @ [
        *(np.array(fixed.shape) - 1) / 2,
        1,
    ]
    affine = fixed.affine.copy()
    affine[:, ndim] += middle
    fixed = Grid(fixed.shape, affine)
    image = smooth_noise(moving.shape, 1, 100.0, width=0.8)
    u = smooth_noise(fixed.shape, ndim, 1.5, seed=3)
    matrix = np.linalg.inv(moving.affine) @ fixed.affine
    ours = warp(image, u, matrix=matrix, mode=mode, background=-50.0)[0, 0].numpy()

    world = np.einsum("ij,j...->i...", fixed.affine[:ndim, :ndim], u[0].double().numpy())
    if ndim == 3:
        world[:2] *= -1
    vectors = sitk.GetImageFromArray(np.ascontiguousarray(world.T), isVector=True)
    reference = to_sitk(np.zeros(fixed.shape, np.float32), fixed)
    vectors.CopyInformation(reference)
    theirs = sitk.Resample(
        to_sitk(image[0, 0].numpy(), moving),
        reference,
        sitk.DisplacementFieldTransform(sitk.Cast(vectors, sitk.sitkVectorFloat64)),
        MODES[mode],
        -50.0,
        sitk.sitkFloat64,
    )
    difference = np.abs(ours - sitk.GetArrayFromImage(theirs).T)
    index = warp(voxel_index(moving.shape), u, matrix=matrix, background=float("nan"))[0].numpy()
    inside = np.isfinite(index).all(0)
    assert 0.2 < inside.mean() < 1.0
    assert (difference[~inside] == 0).all()
    tolerance = {"linear": 2e-3, "cubic": 2e-3, "nearest": 0}[mode]
    assert np.mean(difference > tolerance) <= (0.005 if mode == "nearest" else 0)  # ties of nearest may fall either way


def test_linear_function_is_reproduced_exactly(backend, smooth_noise):
    """Linear interpolation of ``a + b . i`` is exact; also through a matrix and with many channels."""
    index = voxel_index((8, 9, 10))
    ramp = 2.0 + 0.5 * index[:, :1] - index[:, 1:2] + 0.25 * index[:, 2:]
    image = torch.cat([ramp, -ramp, index], dim=1)
    u = smooth_noise((6, 5, 7), 3, 0.9, seed=5)
    matrix = np.array([[0.9, 0.1, 0, 1.2], [-0.1, 1.1, 0.05, 1.5], [0, 0.1, 0.8, 1.3], [0, 0, 0, 1]])
    moved = warp(image, u, matrix=matrix)
    where = np.einsum("ij,bj...->bi...", matrix[:3, :3], (voxel_index((6, 5, 7)) + u).double().numpy())
    where += matrix[:3, 3].reshape(1, 3, 1, 1, 1)
    expected = 2.0 + 0.5 * where[:, 0] - where[:, 1] + 0.25 * where[:, 2]
    np.testing.assert_allclose(moved[:, 0], expected, atol=2e-5)
    np.testing.assert_allclose(moved[:, 1], -expected, atol=2e-5)
    np.testing.assert_allclose(moved[:, 2:], where, atol=2e-5)


@pytest.mark.parametrize("shape", [(21, 18), (9, 8, 7)])
@pytest.mark.parametrize("identity", [True, False])
def test_gradient_of_warp_equals_finite_differences(shape, identity, backend, smooth_noise):
    """The second result is d(moved)/du, held to central differences of SciPy's interpolation in float64."""
    d = len(shape)
    image = smooth_noise(shape, 1, 1.0, width=0.7)
    u = smooth_noise(shape, d, 1.5, seed=7)
    matrix = np.eye(d + 1)
    if not identity:
        matrix[:d, :d] += 0.15 * np.random.default_rng(0).normal(size=(d, d))
        matrix[:d, d] = 0.3
    value, gradient = warp_with_gradient(image, u, matrix=matrix)
    homogeneous = (voxel_index(shape) + u)[0].double().numpy().reshape(d, -1)
    where = matrix[:d, :d] @ homogeneous + matrix[:d, d:]
    limit = np.array(shape)[:, None] - 1
    smooth_here = ((where > 0.02) & (where < limit - 0.02) & (np.abs(where - np.round(where)) > 0.02)).all(0)
    assert smooth_here.sum() > 100
    step = 1e-4
    volume = image[0, 0].double().numpy()
    for axis in range(d):
        shift = matrix[:d, axis : axis + 1] * step
        up = ndimage.map_coordinates(volume, where + shift, order=1)
        down = ndimage.map_coordinates(volume, where - shift, order=1)
        np.testing.assert_allclose(
            gradient[0, axis].numpy().ravel()[smooth_here], ((up - down) / (2 * step))[smooth_here], atol=2e-5
        )
    outside = ((where < -0.51) | (where > limit + 0.51)).any(0)
    assert outside.sum() > 5
    assert (gradient[0].reshape(d, -1)[:, outside] == 0).all()
    edge = ndimage.map_coordinates(volume, np.clip(where, 0, limit), order=1)
    np.testing.assert_allclose(value.numpy().ravel(), edge, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 11, 1), (1, 9, 8), (1, 1, 6), (1, 1, 1), (12, 1), (1, 1)])
def test_singleton_axes_are_constant_along_themselves(shape, backend, smooth_noise):
    """An axis of one voxel is constant within its half voxel and background beyond; value and derivative."""
    d = len(shape)
    image = smooth_noise(shape, 1, 1.0, width=0.7)
    u = smooth_noise((5, 4, 6)[:d], d, 3.0, seed=2)
    where = (voxel_index((5, 4, 6)[:d]) + u)[0].double().numpy()
    limit = np.array(shape).reshape(-1, *[1] * d) - 1
    inside = ((where >= -0.5) & (where < limit + 0.5)).all(0)
    theirs = ndimage.map_coordinates(image[0, 0].double().numpy(), np.clip(where, 0, limit), order=1)
    np.testing.assert_allclose(warp(image, u)[0, 0], np.where(inside, theirs, 0), atol=1e-5)
    value, gradient = warp_with_gradient(image, u)
    np.testing.assert_allclose(value[0, 0], theirs, atol=1e-5)
    for axis, n in enumerate(shape):
        if n == 1:
            assert (gradient[0, axis] == 0).all()
    # At rest, exactly on the only voxel, the derivative along its axis is zero too: there is no next voxel.
    _, gradient = warp_with_gradient(image, torch.zeros(1, d, *shape))
    for axis, n in enumerate(shape):
        if n == 1:
            assert (gradient[0, axis] == 0).all()


@pytest.mark.parametrize("ndim", [2, 3])
def test_bad_coordinates_read_background(ndim, backend):
    """NaN, infinite and huge positions are outside: background, zero derivative, no crash."""
    shape = (6, 5, 7)[:ndim]
    image = torch.rand(1, 2, *shape)
    u = torch.zeros(1, ndim, *shape)
    bad = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9]
    for n, value in enumerate(bad):
        u[0, n % ndim].view(-1)[n] = value
    moved = warp(image, u, background=-3.0)
    assert (moved.reshape(2, -1)[:, : len(bad)] == -3).all()
    np.testing.assert_allclose(moved.reshape(2, -1)[:, len(bad) :], image.reshape(2, -1)[:, len(bad) :], atol=1e-5)
    value, gradient = warp_with_gradient(image[:, :1], u)
    assert (gradient.reshape(ndim, -1)[:, : len(bad)] == 0).all()
    assert torch.isfinite(value.ravel()[1:]).all()


def test_a_batch_is_its_items(backend, smooth_noise):
    image, u = torch.rand(3, 2, 6, 5, 7), smooth_noise((6, 5, 7), 9, 2.0).reshape(3, 3, 6, 5, 7)
    together = warp(image, u, background=0.5)
    for b in range(3):
        torch.testing.assert_close(together[b : b + 1], warp(image[b : b + 1], u[b : b + 1], background=0.5))


def test_arguments_in_any_layout(backend, smooth_noise):
    """Strided and transposed inputs give what their contiguous copies give."""
    image = torch.rand(1, 1, 14, 10, 12)[..., ::2, ::2].transpose(3, 4)
    u = smooth_noise((5, 6, 7), 3, 1.0).permute(0, 1, 4, 3, 2)
    torch.testing.assert_close(warp(image, u), warp(image.contiguous(), u.contiguous()))
    for ours, theirs in zip(
        warp_with_gradient(image, u), warp_with_gradient(image.contiguous(), u.contiguous()), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_points_may_come_as_a_list(backend, smooth_noise, positions):
    """Indices may have any number of axes after the channel: a list of points reads as a volume of points does."""
    u = smooth_noise((6, 5, 7), 3, 1.0)
    points = torch.from_numpy(positions((6, 5, 7), 24)).float()[None]
    listed = sample_field(u, points)
    assert listed.shape == (1, 3, 24)
    torch.testing.assert_close(listed, sample_field(u, points.reshape(1, 3, 2, 3, 4)).reshape(1, 3, 24))


def test_unknown_interpolation_is_named():
    with pytest.raises(OptionError, match="linaer"):
        inspect.unwrap(sample)(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4), mode="linaer")


@pytest.mark.parametrize("shape", [(12, 11), (12, 11, 9), (12, 11, 1)])
def test_back_ends_agree(shape, smooth_noise):
    from verimorph.field.backend import plain_torch

    d = len(shape)
    image, u = smooth_noise(shape, 2, 1.0, width=0.7), smooth_noise(shape, d, 2.0, seed=4)
    matrix = np.eye(d + 1) + np.pad(0.1 * np.random.default_rng(1).normal(size=(d, d + 1)), ((0, 1), (0, 0)))
    for extra in ({}, {"matrix": matrix}, {"matrix": matrix, "background": 2.0}):
        ours = warp(image, u, **extra)
        with plain_torch():
            theirs = warp(image, u, **extra)
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
