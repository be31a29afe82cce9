"""Inverse consistency: translations, affine pairs, flows, and finite differences."""

from __future__ import annotations

import pytest
import torch

from verimorph.errors import InputError
from verimorph.field import exponentiate, gaussian_smooth
from verimorph.objective.consistency import gradient_inverse_consistency, inverse_consistency

BOTH = [inverse_consistency, gradient_inverse_consistency]


def affine_field(matrix: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Displacement of x -> c + matrix (x - c), c the centre."""
    axes = [torch.arange(float(n), dtype=torch.float64) - (n - 1) / 2 for n in shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return torch.einsum("ij,j...->i...", matrix - torch.eye(len(shape), dtype=torch.float64), points)[None]


@pytest.mark.parametrize("measure", BOTH)
@pytest.mark.parametrize("shape", [(12, 11), (9, 10, 8)])
def test_opposite_translations_agree(measure, shape):
    field = torch.zeros(1, len(shape), *shape, dtype=torch.float64)
    field[:, 0], field[:, 1] = 1.3, -0.6
    assert measure(field, -field).item() == pytest.approx(0, abs=1e-20)
    assert inverse_consistency(field, torch.zeros_like(field)).item() == pytest.approx(1.3**2 + 0.6**2)
    # A translation left over is nothing to the gradient form.
    assert gradient_inverse_consistency(field, torch.zeros_like(field)).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("measure", BOTH)
def test_inverse_matrices_agree(measure):
    matrix = torch.tensor([[1.1, 0.1], [-0.05, 0.9]], dtype=torch.float64)
    there, back = affine_field(matrix, (14, 13)), affine_field(torch.linalg.inv(matrix), (14, 13))
    # Linear interpolation is exact on linear fields; points that leave the grid do not count.
    assert measure(there, back).item() == pytest.approx(0, abs=1e-20)


def test_gradient_form_of_linear_maps_by_the_matrix_product():
    first = torch.tensor([[1.05, 0.1], [0.0, 0.95]], dtype=torch.float64)
    second = torch.tensor([[0.9, 0.0], [0.1, 1.0]], dtype=torch.float64)
    fields = [affine_field(m, (14, 13)) for m in (first, second)]
    identity = torch.eye(2, dtype=torch.float64)
    expected = ((second @ first - identity) ** 2).sum()
    torch.testing.assert_close(gradient_inverse_consistency(*fields, both=False), expected)
    spaced = gradient_inverse_consistency(*fields, both=False, spacing=(2.0, 0.5))
    scale = torch.tensor([2.0, 0.5], dtype=torch.float64)
    product = (second @ first - identity) * scale[:, None] / scale[None]
    torch.testing.assert_close(spaced, (product**2).sum())


def test_flows_of_opposite_velocities_agree_better_with_more_steps():
    velocity = torch.randn(1, 2, 24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    velocity = 20 * gaussian_smooth(velocity, 3.0)
    residuals = [
        inverse_consistency(exponentiate(velocity, steps=k), exponentiate(-velocity, steps=k)).item() for k in (1, 3, 7)
    ]
    assert residuals[0] > residuals[1] > residuals[2]
    assert residuals[2] < 1e-2 * velocity.square().sum(1).mean()


@pytest.mark.parametrize("measure", BOTH)
@pytest.mark.parametrize("shape", [(7, 6), (5, 6, 5)])
def test_gradient_is_the_finite_difference(measure, shape):
    generator = torch.Generator().manual_seed(1)
    fields = [
        (0.3 * torch.randn(2, len(shape), *shape, generator=generator, dtype=torch.float64)).requires_grad_()
        for _ in range(2)
    ]
    weight = torch.rand(1, 1, *shape, generator=generator, dtype=torch.float64)
    mask = (torch.rand(1, 1, *shape, generator=generator) > 0.1).double()
    assert torch.autograd.gradcheck(lambda u, v: measure(u, v, mask=mask, weight=weight), fields, fast_mode=True)
    together = measure(*fields, reduction="none")
    alone = torch.stack([measure(fields[0][b : b + 1], fields[1][b : b + 1]) for b in range(2)])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(measure(*fields), measure(*reversed(fields)))  # both directions count alike


def test_millimetres_and_the_map():
    field = torch.zeros(1, 2, 8, 8)
    field[:, 1] = 0.5
    assert inverse_consistency(field, 0 * field, spacing=(1.0, 3.0)).item() == pytest.approx(2.25)
    local = inverse_consistency(field, 0 * field, map=True)
    assert local.shape == (1, 1, 8, 8)
    assert local[..., :-1].unique().item() == 0.25
    assert local[..., -1].abs().max() == 0  # these left the grid


def test_jittered_points_are_those_of_the_generator():
    field = 0.4 * torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(2))
    values = [
        inverse_consistency(field, -field, jitter=0.5, generator=torch.Generator().manual_seed(seed)).item()
        for seed in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]


def test_fields_on_two_grids_are_refused():
    with pytest.raises(InputError, match="different grids"):
        inverse_consistency(torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 5, 6))
