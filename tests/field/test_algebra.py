"""Compose, exponentiate, invert: against affine fields, matrix exponentials and a sinusoid with a known inverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.linalg import expm
from scipy.optimize import brentq

from verimorph.field import compose, exponentiate, invert, voxel_index
from verimorph.field.backend import plain_torch


def affine_field(matrix: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    """Displacement of ``x -> matrix @ (x - c) + c`` about the middle c of the grid."""
    index = voxel_index(shape, dtype=torch.float64)
    centre = (torch.tensor(shape, dtype=torch.float64) - 1).reshape(1, -1, *[1] * len(shape)) / 2
    turned = torch.einsum("ij,bj...->bi...", torch.from_numpy(matrix), index - centre)
    return (turned + centre - index).float()


def inside_by(displacement: torch.Tensor, margin: float) -> np.ndarray:
    """Voxels whose image stays ``margin`` voxels inside the grid."""
    shape = tuple(displacement.shape[2:])
    index = (voxel_index(shape) + displacement)[0].numpy()
    limit = np.array(shape).reshape(-1, *[1] * len(shape)) - 1 - margin
    return ((index >= margin) & (index <= limit)).all(0)


@pytest.mark.parametrize("shape", [(24, 20), (18, 16, 14)])
def test_affine_fields_compose_as_their_matrices(shape, backend):
    """The order is inner first: the product is ``outer @ inner``, not the other way round."""
    d = len(shape)
    random = np.random.default_rng(0)
    inner, outer = (np.eye(d) + 0.12 * random.normal(size=(d, d)) for _ in range(2))
    u, v = affine_field(outer, shape), affine_field(inner, shape)
    w = compose(u, v)
    kept = inside_by(v, 0)
    assert kept.mean() > 0.3
    expected = affine_field(outer @ inner, shape)[0].numpy()
    np.testing.assert_allclose(w[0].numpy()[:, kept], expected[:, kept], atol=2e-5)
    wrong = affine_field(inner @ outer, shape)[0].numpy()
    assert np.abs(wrong - expected)[:, kept].max() > 0.05


@pytest.mark.parametrize("shape", [(24, 20), (12, 11, 9)])
def test_compose_equals_scipy_and_adds_nothing_outside(shape, backend, smooth_noise):
    d = len(shape)
    u, v = smooth_noise(shape, d, 2.0, seed=1), smooth_noise(shape, d, 3.0, seed=2)
    where = (voxel_index(shape) + v)[0].double().numpy()
    limit = np.array(shape).reshape(-1, *[1] * d) - 1
    inside = ((where >= -0.5) & (where < limit + 0.5)).all(0)
    assert 0.3 < inside.mean() < 1
    for axis in range(d):
        read = ndimage.map_coordinates(u[0, axis].double().numpy(), np.clip(where, 0, limit), order=1)
        expected = v[0, axis].numpy() + np.where(inside, read, 0)
        np.testing.assert_allclose(compose(u, v)[0, axis], expected, atol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_bad_displacements_stay_where_they_are(ndim, backend):
    """NaN stays NaN, an infinite or huge shift leaves the grid and gains nothing; neighbours are untouched."""
    shape = (8, 7, 6)[:ndim]
    u, v = torch.full((1, ndim, *shape), 0.25), torch.zeros(1, ndim, *shape)
    bad = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
    v[0, 0].view(-1)[: len(bad)] = bad
    w = compose(u, v)
    torch.testing.assert_close(w[0, 0].reshape(-1)[: len(bad)], bad, equal_nan=True)
    assert (w[0, 1].reshape(-1)[: len(bad)] == 0).all()
    torch.testing.assert_close(w[0, 0].reshape(-1)[len(bad) :], u[0, 0].reshape(-1)[len(bad) :])


@pytest.mark.parametrize("shape", [(41, 41), (25, 25, 25)])
@pytest.mark.parametrize("steps", [None, 10])
def test_flow_of_a_linear_velocity_is_the_matrix_exponential(shape, steps, backend):
    """``v(x) = L (x - c)`` flows to ``expm(L)``; scaling and squaring with K steps is within ``|L|^2 / 2^(K+1)``."""
    d = len(shape)
    rate = np.array([[0.2, -0.35, 0.1], [0.4, -0.15, 0.05], [-0.1, 0.08, -0.2]])[:d, :d]
    velocity = affine_field(np.eye(d) + rate, shape)
    flow = exponentiate(velocity, steps=steps)[0].numpy()
    expected = affine_field(expm(rate), shape)[0].numpy()
    middle = tuple(slice(n // 4, 3 * n // 4 + 1) for n in shape)
    radius = max(shape) / 4
    k = 10 if steps else max(4, int(np.ceil(np.log2(float(velocity.abs().max()) / 0.5))))
    bound = 1.5 * radius * np.sqrt(d) * np.linalg.norm(rate, 2) ** 2 / 2 ** (k + 1) + 1e-3
    error = np.abs(flow - expected)[(slice(None), *middle)].max()
    assert error < bound
    assert np.abs(expected)[(slice(None), *middle)].max() > 20 * bound or steps is None


def test_flow_backwards_is_the_inverse(backend, smooth_noise):
    """``exp(v) o exp(-v)`` is the identity up to the interpolation error."""
    velocity = smooth_noise((20, 18, 16), 3, 1.5, width=4.0)
    w = compose(exponentiate(velocity), exponentiate(-velocity))[0].numpy()
    kept = inside_by(exponentiate(-velocity), 1)
    assert np.abs(w)[:, kept].max() < 0.06 < float(velocity.abs().max())


def test_sinusoid_is_inverted_to_its_analytic_inverse(backend):
    """``y = x + a sin(x)`` with derivative at most 0.5, solved voxel by voxel by a root finder.

    The field is sampled at 64 points a period, so the linear interpolant is within ``a (2 pi / 64)^2 / 8`` of it.
    """
    n, period = 65, 64
    rate = 2 * np.pi / period
    amplitude = 0.5 / rate
    u = torch.zeros(1, 3, n, 4, 4)
    u[0, 0] = torch.from_numpy(amplitude * np.sin(rate * np.arange(n))).float()[:, None, None]
    inverse = invert(u, tolerance=1e-5)
    root = [brentq(lambda x, y=y: x + amplitude * np.sin(rate * x) - y, -1, n) for y in range(n)]
    found = np.arange(n) + inverse.displacement[0, 0, :, 1, 2].numpy()
    np.testing.assert_allclose(found, root, atol=amplitude * rate**2 / 8 / 0.5 + 1e-3)
    assert (inverse.displacement[0, 1:] == 0).all()
    assert inverse.max_residual < 2e-4


@pytest.mark.parametrize("shape", [(24, 20), (16, 15, 14)])
def test_reported_residual_is_the_true_one(shape, backend, smooth_noise):
    """The residual equals one computed by SciPy from the returned field, converged or stopped early."""
    d = len(shape)
    u = smooth_noise(shape, d, 3.0, width=4.0)
    for iterations in (0, 2, 50):
        inverse = invert(u, iterations=iterations, tolerance=1e-6)
        w = inverse.displacement[0].double().numpy()
        where = voxel_index(shape)[0].double().numpy() + w
        limit = np.array(shape).reshape(-1, *[1] * d) - 1
        inside = ((where >= 0) & (where <= limit)).all(0)
        read = [ndimage.map_coordinates(u[0, k].double().numpy(), np.clip(where, 0, limit), order=1) for k in range(d)]
        length = np.sqrt(((w + np.stack(read)) ** 2).sum(0))[inside]
        np.testing.assert_allclose(
            [inverse.mean_residual, inverse.max_residual], [length.mean(), length.max()], atol=2e-5
        )
    assert inverse.max_residual < 0.01
    forth = compose(u, inverse.displacement)[0].numpy()[:, inside]
    assert np.abs(forth).max() < 0.01


def test_a_shift_is_inverted_up_to_the_border(backend):
    inverse = invert(torch.full((1, 3, 9, 8, 7), 2.5))
    torch.testing.assert_close(inverse.displacement, torch.full((1, 3, 9, 8, 7), -2.5))
    assert inverse.max_residual == 0


def test_swinging_iteration_is_damped(backend):
    """A derivative of 1.3 along one axis: the plain iteration swings ever wider, half steps converge."""
    inverse = invert(affine_field(np.diag([2.3, 1.0, 0.6]), (21, 9, 21)), tolerance=1e-4, iterations=80)
    expected = affine_field(np.diag([1 / 2.3, 1.0, 1 / 0.6]), (21, 9, 21))
    kept = inside_by(expected, 0)
    assert kept.mean() > 0.5
    np.testing.assert_allclose(inverse.displacement[0].numpy()[:, kept], expected[0].numpy()[:, kept], atol=0.02)
    assert inverse.max_residual < 2e-4


def test_a_collapsed_field_reports_a_large_residual(backend):
    """A map that sends a slab to one plane reaches nothing else there: no inverse, and the number says so."""
    u = torch.zeros(1, 3, 32, 6, 6)
    u[0, 0, 8:24] = 16 - torch.arange(8.0, 24.0)[:, None, None]
    u[0, 0, 24:] = -16
    inverse = invert(u)
    assert inverse.max_residual > 1
    assert inverse.mean_residual > 0.1


def test_a_folded_field_is_not_undone(backend):
    """Where a field folds, a voxel may have several origins: one is found, but there and back misses by voxels."""
    u = torch.zeros(1, 3, 32, 6, 6)
    u[0, 0] = (6 * torch.sin(2 * np.pi * torch.arange(32.0) / 12))[:, None, None]
    inverse = invert(u)
    assert float(compose(inverse.displacement, u).abs().max()) > 1


def test_nan_is_not_reported_as_inverted(backend):
    u = torch.zeros(1, 3, 6, 6, 6)
    u[0, 1, 2, 3, 4] = float("nan")
    assert not invert(u).max_residual < 1e6


@pytest.mark.parametrize("shape", [(14, 12, 10), (14, 12, 1), (1, 12, 10), (1, 1, 1)])
def test_back_ends_agree(shape, smooth_noise):
    u, v = smooth_noise(shape, 3, 1.5, seed=1), smooth_noise(shape, 3, 1.5, seed=2)
    ours = compose(u, v), exponentiate(u), invert(u, iterations=5, tolerance=0.0)
    with plain_torch():
        theirs = compose(u, v), exponentiate(u), invert(u, iterations=5, tolerance=0.0)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[1], theirs[1], atol=3e-5, rtol=0)
    torch.testing.assert_close(ours[2].displacement, theirs[2].displacement, atol=3e-5, rtol=0)
    np.testing.assert_allclose(ours[2][1:], theirs[2][1:], atol=3e-5)


def test_a_batch_is_its_items(backend, smooth_noise):
    u = smooth_noise((9, 8, 7), 6, 1.5).reshape(2, 3, 9, 8, 7)
    v = u.flip(0)
    both = compose(u, v)
    for b in range(2):
        torch.testing.assert_close(both[b : b + 1], compose(u[b : b + 1], v[b : b + 1]))
    inverses = invert(u, iterations=4, tolerance=0.0)
    alone = [invert(u[b : b + 1], iterations=4, tolerance=0.0) for b in range(2)]
    assert inverses.max_residual == pytest.approx(max(one.max_residual for one in alone))
