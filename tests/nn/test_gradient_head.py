"""Spatial gradients: identity, the golden field, the sum in two and three dimensions, precision."""

from __future__ import annotations

import pytest
import torch

from verimorph.errors import InputError
from verimorph.field import jacobian_determinant, warp
from verimorph.nn.heads.gradients import GradientHead, integrate_gradients

both = pytest.mark.parametrize("shape", [(16, 8), (8, 16, 4)], ids=["2d", "3d"])


@both
def test_zero_head_is_the_identity_exactly(shape):
    out = GradientHead(ndim=len(shape), channels=3)(torch.randn(2, 3, *shape))
    assert (out["gradients"] == 0.5).all()
    assert (out["field"] == 0).all()
    image = torch.rand(2, 1, *shape)
    torch.testing.assert_close(warp(image, out["field"]), image, atol=1e-6, rtol=0)


@both
def test_golden_displacement_of_the_reference(shape):
    # Section 4 of the reference document: N = 16, g = 0.5 but 0.75 in 4..7 and 0.25 in 8..11.
    axis = shape.index(16)
    line = torch.full((16,), 0.5)
    line[4:8], line[8:12] = 0.75, 0.25
    gradients = torch.full((1, len(shape), *shape), 0.5)
    gradients[:, axis] = line.view(1, *(16 if a == axis else 1 for a in range(len(shape))))
    field = integrate_gradients(gradients)
    golden = torch.tensor([0, 0, 0, 0, 0.5, 1, 1.5, 2, 1.5, 1, 0.5, 0, 0, 0, 0, 0])
    assert torch.equal(field[0, axis].movedim(axis, -1), golden.expand_as(field[0, axis].movedim(axis, -1)))
    others = [a for a in range(len(shape)) if a != axis]
    assert (field[:, others] == 0).all()


@both
def test_the_map_is_twice_the_sum_minus_one(shape):
    gradients = torch.rand(2, len(shape), *shape, dtype=torch.float64)
    field = integrate_gradients(gradients)
    for axis, n in enumerate(shape):
        sampled = 2 * gradients[:, axis].cumsum(1 + axis) - 1
        index = torch.arange(n, dtype=torch.float64).view(*(n if a == axis else 1 for a in range(len(shape))))
        torch.testing.assert_close(field[:, axis], sampled - index)
        assert (sampled.diff(dim=1 + axis) > 0).all()  # monotone along its own axis


def test_the_stretch_is_twice_the_gradient():
    gradients = torch.full((1, 2, 12, 12), 0.5, dtype=torch.float64)
    gradients[:, 0], gradients[:, 1] = 0.6, 0.45
    determinant = jacobian_determinant(integrate_gradients(gradients))
    torch.testing.assert_close(determinant, torch.full_like(determinant, 1.2 * 0.9))


@both
def test_gradients_of_the_sum_are_finite_differences(shape):
    small = tuple(min(n, 4) for n in shape)
    gradients = torch.rand(1, len(small), *small, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(integrate_gradients, (gradients,), fast_mode=True)


def test_half_precision_is_summed_in_full():
    torch.manual_seed(0)
    gradients = (0.75 + 0.2 * torch.rand(1, 2, 512, 2)).half()
    field, exact = integrate_gradients(gradients), integrate_gradients(gradients.double())
    assert field.dtype == torch.float32
    torch.testing.assert_close(field.double(), exact, atol=1e-3, rtol=0)
    in_half = (2 * gradients - 1)[:, 0].cumsum(1).double()
    assert (in_half - exact[:, 0]).abs().max() > 0.05  # what half precision would lose


def test_deep_heads_grow_to_the_full_grid_by_repetition():
    head = GradientHead(ndim=2, channels=3, factor=4, zero=False)
    out = head(torch.randn(1, 3, 4, 2))
    assert out["field"].shape == (1, 2, 16, 8)
    blocks = out["gradients"].unfold(2, 4, 4).unfold(3, 4, 4).flatten(4)
    assert (blocks == blocks[..., :1]).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = head(torch.randn(1, 3, 4, 2))
    assert half["gradients"].dtype == half["field"].dtype == torch.float32


def test_what_is_no_set_of_gradients_is_refused():
    with pytest.raises(InputError, match="gradients must be"):
        integrate_gradients(torch.rand(1, 2, 4, 4, 4))
