"""Automatic differentiation: gradcheck in float64, and the compiled backward passes against the torch expressions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from verimorph.field import (
    box_mean,
    compose,
    exponentiate,
    gaussian_smooth,
    jacobian_determinant,
    resize_displacement,
    sample,
    voxel_index,
    warp,
)
from verimorph.field.backend import kernels_in_use, plain_torch

MATRIX = np.array([[0.95, 0.1, 0.02, 0.3], [-0.08, 1.05, 0.03, -0.2], [0.01, -0.05, 0.9, 0.4], [0, 0, 0, 1]])


def matrix_for(ndim: int) -> np.ndarray:
    keep = [*range(ndim), 3]
    return MATRIX[np.ix_(keep, keep)]


def off_faces(displacement: Tensor, matrix: np.ndarray | None = None, margin: float = 0.02) -> Tensor:
    """Move every component that would land within ``margin`` of a cell face, where the derivative jumps.

    Through a matrix the landing place mixes the components, so a few rounds are needed; the last is checked.
    """
    d = displacement.shape[1]
    a = np.eye(d + 1) if matrix is None else matrix
    turn, shift = torch.from_numpy(a[:d, :d]).to(displacement), torch.from_numpy(a[:d, d]).to(displacement)
    index = voxel_index(tuple(displacement.shape[2:])).to(displacement)
    moved = displacement.clone()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        where = torch.einsum("ij,bj...->bi...", turn, index + moved) + shift.reshape(1, d, *[1] * d)
        # Half voxels count too: there lies the rule of inside.
        near = ((2 * where - (2 * where).round()).abs() < 2 * margin).any(1, keepdim=True)
        if not near.any():
            return moved
        moved = moved + near * 0.1 * (torch.rand(moved.shape, generator=generator, dtype=moved.dtype) - 0.5)
    raise AssertionError("no field clear of the faces was found")


@pytest.fixture
def inputs(smooth_noise) -> Callable[..., tuple[Tensor, Tensor]]:
    def make(ndim: int, dtype: torch.dtype = torch.float64, matrix: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        shape = (4, 4, 3)[:ndim]
        image = smooth_noise(shape, 2, 1.0, width=0.6).to(dtype)
        u = off_faces(smooth_noise(shape, ndim, 1.2, seed=3, width=1.0).to(dtype), matrix)
        return image.requires_grad_(), u.requires_grad_()

    return make


@pytest.mark.parametrize("ndim", [2, 3])
def test_sample_and_warp_have_right_gradients(ndim, inputs):
    """In image, index and displacement; some samples lie outside or in the clamped half voxel."""
    matrix = matrix_for(ndim)
    image, u = inputs(ndim)
    index = (voxel_index(tuple(u.shape[2:]), dtype=torch.float64) + u).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda i, x: sample(i, x, background=0.3), (image, index), eps=1e-5)
    assert torch.autograd.gradcheck(lambda i, x: warp(i, x, background=0.3), (image, u), eps=1e-5)
    image, u = inputs(ndim, matrix=matrix)
    assert torch.autograd.gradcheck(lambda i, x: warp(i, x, matrix=matrix), (image, u), eps=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_compose_and_exponentiate_have_right_gradients(ndim, inputs, smooth_noise):
    _, inner = inputs(ndim)
    outer = smooth_noise(tuple(inner.shape[2:]), ndim, 1.0, seed=8).double().requires_grad_()
    assert torch.autograd.gradcheck(compose, (outer, inner), eps=1e-5)
    velocity = off_faces(smooth_noise(tuple(inner.shape[2:]), ndim, 0.4, seed=9).double()).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: exponentiate(v, steps=2), (velocity,), eps=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_linear_operators_have_right_gradients(ndim, inputs):
    image, u = inputs(ndim)
    for border in ("renormalise", "zero"):
        assert torch.autograd.gradcheck(lambda x, b=border: gaussian_smooth(x, 0.8, border=b), (image,))
    assert torch.autograd.gradcheck(lambda x: box_mean(x, 1), (image,))
    assert torch.autograd.gradcheck(jacobian_determinant, (u,))
    assert torch.autograd.gradcheck(lambda x: resize_displacement(x, (5, 3, 5)[:ndim]), (u,))


def both(function: Callable[..., Tensor], *arguments: Tensor, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Value and gradients under a random cotangent, by the compiled kernels and by torch."""
    if kernels_in_use() != "numba":
        pytest.skip("compiled kernels are not available")

    def run() -> list[Tensor]:
        leaves = [x.detach().clone().requires_grad_() for x in arguments]
        value = function(*leaves)
        weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
        return [value.detach(), *torch.autograd.grad((value * weight).sum(), leaves)]

    compiled = run()
    with plain_torch():
        return compiled, run()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_compiled_warp_backward_equals_torch(turned, batch, smooth_noise):
    """Image and displacement gradients, samples outside and in the clamped half voxel among them."""
    shape, out = (19, 14, 12), (13, 12, 15)
    matrix = MATRIX if turned else None
    image = smooth_noise(shape, 3 * batch, 1.0, width=0.7).reshape(batch, 3, *shape)
    u = off_faces(smooth_noise(out, 3 * batch, 4.0, seed=3).reshape(batch, 3, *out), matrix, margin=1e-3)
    ours, theirs = both(lambda i, x: warp(i, x, matrix=matrix, background=0.5), image, u)
    assert 0.05 < float((ours[0] == 0.5).float().mean()) < 0.9
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(18, 13, 11), (1, 13, 11), (18, 1, 11), (18, 13, 1), (1, 1, 1)])
def test_compiled_compose_backward_equals_torch(shape, smooth_noise):
    outer = smooth_noise(shape, 3, 2.0, seed=1)
    inner = off_faces(smooth_noise(shape, 3, 3.0, seed=2), margin=1e-3)
    ours, theirs = both(compose, outer, inner)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_compiled_self_composition_backward_equals_torch(smooth_noise):
    """One field in both places: its two gradients add up, through several squarings."""
    velocity = smooth_noise((15, 14, 13), 3, 1.0, seed=4) + 0.003
    ours, theirs = both(lambda v: exponentiate(v, steps=3), velocity)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=0)
    wrong = (ours[1] - theirs[1]).abs() > 1e-3
    assert float(wrong.float().mean()) < 2e-3  # positions on a cell face, where either side is a derivative


def test_only_wanted_gradients_are_computed(smooth_noise):
    image, u = smooth_noise((7, 6, 5), 1, 1.0), smooth_noise((7, 6, 5), 3, 1.0)
    warp(image, u.requires_grad_()).sum().backward()
    assert image.grad is None
    assert u.grad is not None
    u = u.detach()
    warp(image.requires_grad_(), u).sum().backward()
    assert u.grad is None
    assert image.grad is not None
    assert not warp(image.detach(), u).requires_grad
    with torch.no_grad():
        assert not compose(u.requires_grad_(), u).requires_grad


def test_interpolation_and_its_adjoint_are_adjoint(smooth_noise):
    """``<warp(a), b> = <a, warp'(b)>`` for any a and b."""
    shape = (20, 11, 9)
    a, b, u = smooth_noise(shape, 1, 1.0, width=0.5), smooth_noise(shape, 1, 1.0, 1, 0.5), smooth_noise(shape, 3, 5.0)
    leaf = a.clone().requires_grad_()
    moved = warp(leaf, u, matrix=MATRIX)
    (back,) = torch.autograd.grad(moved, leaf, b)
    assert float((moved.detach() * b).sum()) == pytest.approx(float((a * back).sum()), rel=1e-4)


@pytest.mark.parametrize("border", ["renormalise", "zero"])
def test_compiled_filter_backward_equals_torch(border):
    x = torch.rand(2, 2, 11, 1, 14, generator=torch.Generator().manual_seed(0))
    ours, theirs = both(lambda y: gaussian_smooth(y, (1.3, 2.0, 0.7), border=border), x)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    ours, theirs = both(lambda y: box_mean(y, 3), x)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_bad_positions_have_no_gradient(backend):
    image = torch.rand(1, 1, 6, 5, 4).requires_grad_()
    u = torch.zeros(1, 3, 6, 5, 4)
    u[0, 0].view(-1)[:4] = torch.tensor([float("nan"), float("inf"), -1e30, 1e30])
    u.requires_grad_()
    by_image, by_field = torch.autograd.grad(warp(image, u + 0.25).sum(), (image, u))
    assert torch.isfinite(by_image).all()
    assert (by_field.reshape(3, -1)[:, :4] == 0).all()
