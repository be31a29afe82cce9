"""Distance of spatial gradients from neutral: closed form, masks, weights, finite differences, the grammar."""

from __future__ import annotations

import pytest
import torch

from verimorph.errors import OptionError
from verimorph.objective import build_objective
from verimorph.objective.regularity import neutral_gradients
from verimorph.objective.terms import base_name

both = pytest.mark.parametrize("shape", [(5, 4), (4, 3, 5)], ids=["2d", "3d"])


@both
def test_value_is_the_mean_distance_from_a_half(shape):
    ndim = len(shape)
    assert neutral_gradients(torch.full((2, ndim, *shape), 0.5)) == 0
    gradients = torch.full((2, ndim, *shape), 0.5, dtype=torch.float64)
    gradients[0, 0] = 0.75
    gradients[1, 1] = 0.1
    expected = torch.tensor([0.25, 0.4], dtype=torch.float64) / ndim
    torch.testing.assert_close(neutral_gradients(gradients, reduction="none"), expected)
    torch.testing.assert_close(neutral_gradients(gradients), expected.mean())


@both
def test_masked_equals_cropped_and_weights_multiply(shape):
    gradients = torch.rand(1, len(shape), *shape, dtype=torch.float64)
    mask = torch.zeros(1, 1, *shape, dtype=torch.float64)
    mask[:, :, 1:3] = 1
    torch.testing.assert_close(neutral_gradients(gradients, mask=mask), neutral_gradients(gradients[:, :, 1:3]))
    weight = torch.full_like(mask, 3.0)
    torch.testing.assert_close(neutral_gradients(gradients, weight=weight), 3 * neutral_gradients(gradients))
    torch.testing.assert_close(neutral_gradients(gradients, map=True).mean(), neutral_gradients(gradients))


@both
def test_gradient_is_the_finite_difference(shape):
    torch.manual_seed(0)
    gradients = torch.rand(1, len(shape), *shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(neutral_gradients, (gradients,), fast_mode=True)


def test_the_term_reads_gradients_of_a_stage_where_asked():
    tensors = {"gradients": torch.full((1, 2, 4, 4), 0.6), "stage2/gradients": torch.full((1, 2, 4, 4), 0.8)}
    value = build_objective("neutral_gradients:weight=2+neutral_gradients:direction=stage2")(tensors)
    torch.testing.assert_close(value.total, torch.tensor(2 * 0.1 + 0.3))
    assert base_name("stage2/gradients") == "gradients"
    with pytest.raises(OptionError, match="direction"):
        build_objective("neutral_gradients:direction=stage0")
