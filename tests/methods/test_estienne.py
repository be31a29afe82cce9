"""Estienne et al.: published sizes, the identity at the start, exchange, partial labels, a loss that falls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from verimorph.errors import InputError, OptionError
from verimorph.field import warp
from verimorph.methods import method
from verimorph.objective import build_objective
from verimorph.objective.labels import partial_dice
from verimorph.train.passes import registration_tensors, segmentation_tensors

estienne, segmentation = method("estienne"), method("estienne-segmentation")
both = pytest.mark.parametrize("ndim", [2, 3])


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def small(ndim: int = 3, **settings) -> torch.nn.Module:
    torch.manual_seed(0)
    return estienne.model(ndim=ndim, channel_multiplication=1, **settings)


def balls(side: int = 32, ndim: int = 3, shift: float = 3.0) -> dict[str, Tensor]:
    """A pair of blobs of two labels, one pushed against the other, as a batch."""
    generator = torch.Generator().manual_seed(0)
    index = torch.stack(torch.meshgrid(*[torch.arange(float(side))] * ndim, indexing="ij"))
    batch = {}
    for name, push in (("fixed", 0.0), ("moving", shift)):
        distance = (index - side / 2 - push).square().sum(0).sqrt()
        labels = (distance < side * 0.3).long() + (distance < side * 0.15).long()
        noise = 0.05 * torch.rand(labels.shape, generator=generator)
        batch[name] = (0.5 * labels + noise)[None, None]
        batch[f"{name}_labels"] = labels[None]
    return batch


def test_parameter_counts_are_the_published_ones():
    with torch.device("meta"):
        full, network = estienne.model(channels=3), segmentation.model()
    assert count(full) == pytest.approx(30.83e6, abs=5e3)
    assert count(full.encoder) == pytest.approx(21.89e6, abs=5e3)
    assert count(full.decoder) == pytest.approx(8.86e6, abs=5e3)
    assert count(full.deep) == pytest.approx(0.08e6, abs=5e3)
    assert count(network) == pytest.approx(7.69e6, abs=5e3)
    with torch.device("meta"):
        assert count(estienne.model()) == pytest.approx(estienne.parameters, rel=1e-2)
        assert count(segmentation.model()) == pytest.approx(segmentation.parameters, rel=1e-2)


@both
def test_a_new_model_moves_nothing(ndim):
    fixed, moving = torch.rand(2, 1, 1, *[32] * ndim)
    out = small(ndim)(fixed=fixed, moving=moving)
    assert out["field"].abs().max() < 1e-6
    torch.testing.assert_close(warp(moving, out["field"]), moving, atol=1e-6, rtol=0)
    assert (out["gradients"] == 0.5).all()


@both
def test_exchanged_images_exchange_the_outputs_exactly(ndim):
    model = small(ndim, zero=False)
    fixed, moving = torch.rand(2, 1, 1, *[32] * ndim)
    there, back = model(fixed=fixed, moving=moving), model(fixed=moving, moving=fixed)
    pair = model(fixed=torch.cat((fixed, moving)), moving=torch.cat((moving, fixed)))
    turned = model(fixed=torch.cat((moving, fixed)), moving=torch.cat((fixed, moving)))
    for name, value in pair.items():
        # To the last bit in a batch of both; a batch of one may be added up in another order.
        assert torch.equal(value[:1], turned[name][1:])
        assert torch.equal(value[1:], turned[name][:1])
        torch.testing.assert_close(value[:1], there[name], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(value[1:], back[name], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(there["field"], back["field"])


@pytest.mark.parametrize("fusion", ["subtract", "add", "concat"])
def test_every_fusion_makes_a_network_that_uses_every_weight(fusion):
    model = small(2, fusion=fusion, zero=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(fixed=torch.rand(1, 1, 32, 32), moving=torch.rand(1, 1, 32, 32))
    assert {f"stage{k}/field" for k in range(1, 5)} < set(out)
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in out.values())
    sum(value.square().sum() for value in out.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_adding_is_blind_to_the_order_and_subtracting_is_not():
    fixed, moving = torch.rand(2, 1, 1, 32, 32)
    for fusion, blind in (("add", True), ("subtract", False)):
        model = small(2, fusion=fusion, zero=False)
        there, back = model(fixed=fixed, moving=moving)["field"], model(fixed=moving, moving=fixed)["field"]
        assert torch.allclose(there, back, atol=1e-5) == blind


def test_without_deep_supervision_there_are_no_stages():
    model = small(2, deep_supervision=False)
    assert set(model(fixed=torch.rand(1, 1, 32, 32), moving=torch.rand(1, 1, 32, 32))) == {"field", "gradients"}


@pytest.mark.parametrize("variant", [None, *estienne.variants])
def test_every_objective_is_the_published_sum(variant):
    # From the parts: a fifth of the similarity at each of the five fields, Dice, distance from neutral.
    pytest.importorskip("monai")
    chosen = estienne.variant(variant)
    terms = chosen.objective or estienne.objective
    objective = build_objective(*terms)
    model = small(2, zero=False)
    batch = balls(32, 2)
    tensors = registration_tensors(model, batch, objective)
    out = model(fixed=batch["fixed"], moving=batch["moving"])
    moved = [warp(batch["moving"], out[name]) for name in ("field", *(f"stage{k}/field" for k in range(1, 5)))]
    similarity = build_objective("lncc:radius=4,epsilon=1e-5" if "hippocampus" in (variant or "") else "mse")
    alike = sum(similarity({"fixed": batch["fixed"], "moved": m}).total for m in moved) / 5
    neutral = (out["gradients"] - 0.5).abs().mean() * (0.1 if "hippocampus" in (variant or "") else 0.01)
    expected = alike + neutral
    if variant not in ("pretrain-unsupervised", "hippocampus-pretrain"):
        p, t = tensors["labels/moved"][0, 1:].flatten(1), tensors["labels/fixed"][0, 1:].flatten(1)
        expected = expected + (1 - (2 * (p * t).sum(1) + 1) / ((p * p).sum(1) + (t * t).sum(1) + 1)).mean()
    torch.testing.assert_close(objective(tensors).total, expected, atol=1e-5, rtol=1e-5)


def test_the_published_variants_are_there_and_differ_as_published():
    published = {"baseline", "symmetric", "pretrained-unsupervised", "pretrained-noisy-labels", "all-data"}
    assert published < set(estienne.variants)
    assert {name for name in published if not estienne.variants[name].scheme["symmetric"]} == {"baseline"}


@pytest.mark.parametrize(("ndim", "symmetric", "steps"), [(3, False, 8), (2, True, 20)])
def test_the_loss_falls_within_twenty_steps(ndim, symmetric, steps):
    pytest.importorskip("monai")
    torch.manual_seed(0)
    model, objective = small(ndim), build_objective(*estienne.objective)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    batch, losses = balls(32, ndim), []
    for _ in range(steps):
        loss = objective(registration_tensors(model, batch, objective, symmetric=symmetric)).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_size_that_does_not_fit_and_images_of_two_shapes_are_refused():
    model = small(2)
    with pytest.raises(InputError, match="multiples of 16"):
        model(fixed=torch.rand(1, 1, 24, 32), moving=torch.rand(1, 1, 24, 32))
    with pytest.raises(InputError, match="differ in shape"):
        model(fixed=torch.rand(1, 1, 32, 32), moving=torch.rand(1, 1, 16, 32))
    with pytest.raises(OptionError, match="did you mean 'fusion'"):
        estienne.model(fuson="add")


# -- the segmentation network --------------------------------------------------------------------------------------


def test_a_class_that_was_not_drawn_gets_no_gradient_at_all():
    generator = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.one_hot(torch.randint(0, 4, (2, 8, 8, 8), generator=generator), 4).movedim(-1, 1)
    probabilities = torch.rand(2, 4, 8, 8, 8, generator=generator, requires_grad=True)
    known = torch.tensor([[True, True, False, True], [True, False, True, True]])
    partial_dice(truth.float(), probabilities, known=known, squared=True, smooth=1.0).backward()
    slopes = probabilities.grad.abs().flatten(2).amax(2)
    assert torch.equal(slopes > 0, known & torch.tensor([False, True, True, True]))  # nor does the background
    assert (slopes[0, 2], slopes[1, 1]) == (0.0, 0.0)


@pytest.mark.parametrize("variant", [None, "dice-cross-entropy"])
def test_segmentation_learns_a_pair_of_images(variant):
    pytest.importorskip("monai")
    torch.manual_seed(0)
    model = segmentation.model(ndim=2, classes=3, channel_multiplication=1)
    objective = build_objective(*(segmentation.variant(variant).objective or segmentation.objective))
    pair = balls(32, 2)
    batch = {
        "image": torch.cat((pair["fixed"], pair["moving"])),
        "labels": torch.cat((pair["fixed_labels"], pair["moving_labels"])),
        "known": torch.ones(2, 2, dtype=torch.bool),  # of the classes beside the background
    }
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(15):
        loss = objective(segmentation_tensors(model, batch, objective)).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
