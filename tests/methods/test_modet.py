"""ModeT: the published size, composition of five levels, weights all in use, a loss that falls."""

from __future__ import annotations

import pytest
import torch

from verimorph.errors import InputError, OptionError
from verimorph.field import warp
from verimorph.methods import method
from verimorph.objective import build_objective
from verimorph.train.passes import registration_tensors

modet = method("modet")


def test_the_published_layout_has_its_number_of_parameters():
    with torch.device("meta"):
        model = modet.model()
    count = sum(p.numel() for p in model.parameters())
    # By hand: pyramid, projections with their norms, biases of 27 offsets, three weightings of 8, 4 and 2 fields.
    pyramid = sum(27 * a * b + b for a, b in [(1, 4), (4, 8), (8, 8)])
    pyramid += sum(27 * a * b + b + 27 * b * b + b for a, b in [(8, 16), (16, 32), (32, 64), (64, 128)])
    heads = list(zip((128, 64, 32, 16, 8), (8, 4, 2, 1, 1), strict=True))
    projections = sum(c * 6 * h + 6 * h + 2 * 6 * h for c, h in heads)
    weightings = sum(27 * 3 * h * 6 * h + 6 * h + 27 * (6 * h) ** 2 + 6 * h + 27 * 6 * h * h + h for h in (8, 4, 2))
    assert count == pyramid + projections + 27 * sum(h for _, h in heads) + weightings == modet.parameters


@pytest.mark.parametrize("ndim", [2, 3])
def test_fields_of_all_levels_come_on_the_input_grid_and_all_weights_are_used(ndim):
    torch.manual_seed(0)
    model = modet.model(ndim=ndim, widths=(2, 3, 4), heads=(2, 1, 1), stem=2)
    fixed, moving = torch.rand(2, 2, 1, *[16] * ndim)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(fixed=fixed, moving=moving)
    assert set(out) == {"field", "stage1/field", "stage2/field", "stage3/field"}
    for value in out.values():
        assert value.shape == (2, ndim, *[16] * ndim)
        assert value.dtype == torch.float32
        assert value.isfinite().all()
    assert torch.equal(out["field"], out["stage3/field"])
    out["field"].square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_new_model_hardly_moves():
    torch.manual_seed(0)
    out = modet.model(ndim=2)(fixed=torch.rand(1, 1, 32, 32), moving=torch.rand(1, 1, 32, 32))
    assert out["field"][..., 2:-2, 2:-2].abs().max() < 0.5


def test_the_loss_falls_and_a_shift_is_found():
    torch.manual_seed(0)
    model = modet.model(ndim=2, widths=(4, 8, 8), heads=(2, 2, 1), stem=4)
    image = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 40, 40), 5, 1)[..., 2:-2, 2:-2]
    image = (image - image.min()) / (image.max() - image.min())
    batch = {"fixed": image, "moving": torch.roll(image, 2, 2)}
    objective = build_objective("lncc:radius=4", "diffusion:weight=0.1")
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=1e-2, amsgrad=True), []
    for _ in range(40):
        tensors = registration_tensors(model, batch, objective)
        loss = objective(tensors).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    inside = (0, slice(None), slice(6, -6), slice(6, -6))
    torch.testing.assert_close(tensors["field"][inside].mean((1, 2)), torch.tensor([2.0, 0.0]), atol=0.5, rtol=0)
    torch.testing.assert_close(tensors["moved"], warp(batch["moving"], tensors["field"]))


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(OptionError, match="as many counts of heads"):
        modet.model(heads=(8, 4))
    with pytest.raises(OptionError, match="finest level takes one head"):
        modet.model(heads=(8, 4, 2, 1, 2))
    with pytest.raises(InputError, match="multiples of 16"):
        modet.model(ndim=2)(fixed=torch.rand(1, 1, 24, 32), moving=torch.rand(1, 1, 24, 32))
