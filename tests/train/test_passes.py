"""From a batch to named tensors: the right images under the right names, in both directions."""

from __future__ import annotations

import pytest
import torch
from tests.train.phantom import TinySegmenter
from torch import Tensor, nn

from verimorph.errors import InputError
from verimorph.field import warp
from verimorph.methods import method
from verimorph.objective import build_objective
from verimorph.train.passes import (
    checked_batch,
    exchanged,
    objective_tensors,
    one_hot,
    registration_tensors,
    warp_labels,
)


class Asymmetric(nn.Module):
    """A field that depends on the order of its inputs, two stages, and a record of what it was called with."""

    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.calls: list[int] = []

    def forward(self, *, fixed: Tensor, moving: Tensor, condition: Tensor | None = None) -> dict[str, Tensor]:
        self.calls.append(len(fixed))
        field = self.scale * torch.cat([2 * fixed - moving, moving * fixed], 1)
        return {"field": field, "velocity": field / 3, "stage1/field": -field}


OBJECTIVE = "mse+partial_dice:weight=0.7+diffusion:weight=0.1"


def test_symmetric_training_is_the_mean_of_both_directions(phantoms):
    batch = phantoms.pair(1)
    other = {
        "fixed": batch["moving"],
        "moving": batch["fixed"],
        "fixed_labels": batch["moving_labels"],
        "moving_labels": batch["fixed_labels"],
    }
    model, objective = Asymmetric(), build_objective(OBJECTIVE)
    both = objective(registration_tensors(model, batch, objective, symmetric=True)).total
    one = objective(registration_tensors(model, batch, objective)).total
    two = objective(registration_tensors(model, other, objective)).total
    assert abs(float(one.detach() - two.detach())) > 1e-3, "the directions must differ for the test to mean anything"
    torch.testing.assert_close(both, (one + two) / 2)
    assert model.calls == [4, 2, 2], "both directions are one doubled batch"


def test_what_moves_in_from_outside_is_the_background_of_the_image_it_comes_with():
    """A field that reads two voxels beyond the border, in both directions: air in both, each image's own."""

    class Shift(Asymmetric):
        def forward(self, *, fixed: Tensor, moving: Tensor, condition: Tensor | None = None) -> dict[str, Tensor]:
            return {"field": torch.full((len(fixed), 2, *fixed.shape[2:]), 2.0)}

    fixed, moving = torch.full((1, 1, 8, 8), 40.0), torch.full((1, 1, 8, 8), 50.0)
    batch = {"fixed": fixed, "moving": moving}
    backgrounds = {"fixed_background": torch.tensor([[-5.0]]), "moving_background": torch.tensor([[-1000.0]])}
    objective = build_objective("mse+mse:direction=backward")
    seen = registration_tensors(Shift(), {**batch, **backgrounds}, objective, symmetric=True)
    assert seen["moved"][0, 0, -2:].eq(-1000).all()
    assert seen["moved"][0, 0, :6, :6].eq(50).all()
    assert seen["backward/moved"][0, 0, -2:].eq(-5).all()
    assert seen["backward/moved"][0, 0, :6, :6].eq(40).all()
    assert registration_tensors(Shift(), batch, objective)["moved"][0, 0, -2:].eq(0).all()


@pytest.mark.parametrize(
    ("objective", "symmetric"),
    [("mse+mse:direction=stage1", True), ("mse+mse:direction=backward", True), ("mse+mse:direction=backward", False)],
)
def test_both_ways_at_once_is_the_doubled_batch(phantoms, objective, symmetric):
    """A network that encodes each image once for both directions gives losses and gradients of one that does not."""
    torch.manual_seed(0)
    batch = phantoms.pair(1)
    batch |= {side: batch[side].double() for side in ("fixed", "moving")}
    model = method("estienne").build(ndim=2, channel_multiplication=1, zero=False).double()
    found = {}
    for two_way in (True, False):
        model.two_way = two_way
        model.zero_grad()
        built = build_objective(objective)
        total = built(registration_tensors(model, batch, built, symmetric=symmetric)).total
        total.backward()
        found[two_way] = [total.detach(), *(w.grad.clone() for w in model.parameters() if w.grad is not None)]
    for once, twice in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(once, twice, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("symmetric", [False, True])
def test_backward_names_are_the_exchanged_pair(phantoms, symmetric):
    batch = phantoms.pair(2)
    model, objective = Asymmetric(), build_objective("icon+mse:direction=backward")
    tensors = registration_tensors(model, batch, objective, symmetric=symmetric)
    expected = model(fixed=batch["moving"], moving=batch["fixed"])["field"]
    torch.testing.assert_close(tensors["backward/field"][:2], expected)
    torch.testing.assert_close(tensors["backward/moved"][:2], warp(batch["fixed"], expected))
    torch.testing.assert_close(tensors["backward/fixed"][:2], batch["moving"])
    if symmetric:
        torch.testing.assert_close(tensors["backward/field"][2:], tensors["field"][:2])


def test_names_of_a_stage_are_warped_by_its_field(phantoms):
    batch = phantoms.pair(3)
    model, objective = Asymmetric(), build_objective("mse:direction=stage1+dice:direction=stage1+mse:level=2")
    tensors = registration_tensors(model, batch, objective)
    stage = model(fixed=batch["fixed"], moving=batch["moving"])["stage1/field"]
    torch.testing.assert_close(tensors["stage1/moved"], warp(batch["moving"], stage))
    torch.testing.assert_close(tensors["stage1/labels/moved"], warp_labels(batch["moving_labels"], stage, 2))
    torch.testing.assert_close(tensors["fixed@2"], nn.functional.avg_pool2d(batch["fixed"], 2))
    assert "labels/moved" not in tensors, "what no term reads is not warped"
    objective(tensors).total.backward()
    assert model.scale.grad is not None


def test_warped_labels_are_probabilities_and_move_as_the_image_does():
    labels = torch.zeros(1, 6, 6, dtype=torch.long)
    labels[0, 2:4, 2:5] = 1
    labels[0, 4, 4] = 2
    field = torch.zeros(1, 2, 6, 6)
    field[:, 0] = 1  # fixed index i reads moving index i + 1 along axis 0
    moved = warp_labels(labels, field, 3)
    torch.testing.assert_close(moved.sum(1), torch.ones(1, 6, 6))
    expected = torch.zeros(1, 6, 6, dtype=torch.long)
    expected[:, :5] = labels[:, 1:]
    torch.testing.assert_close(moved, one_hot(expected, 3))


def test_masks_go_with_their_image_and_pull_on_nothing(phantoms):
    batch = phantoms.pair(4)
    batch["fixed_mask"], batch["moving_mask"] = torch.ones(2, 1, 16, 16), torch.zeros(2, 1, 16, 16)
    batch["moving_mask"][..., :8] = 1
    model, objective = Asymmetric(), build_objective("mse")
    tensors = registration_tensors(model, batch, objective)
    assert not tensors["moved_mask"].requires_grad
    assert set(tensors["moved_mask"].unique().tolist()) == {0.0, 1.0}
    inside = warp(batch["moving_mask"], tensors["field"].detach()) > 0.5
    value = ((tensors["moved"] - batch["fixed"]).square() * inside).flatten(1).sum(1) / inside.flatten(1).sum(1)
    torch.testing.assert_close(objective(tensors).total, value.mean())


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_a_mask_of_one_image_counts_in_both_directions(phantoms, side):
    batch = phantoms.pair(4)
    half, whole = torch.zeros(2, 1, 16, 16, dtype=torch.bool), torch.ones(2, 1, 16, 16, dtype=torch.bool)
    half[..., :8] = True
    masks = {"fixed_mask": whole, "moving_mask": whole, f"{side}_mask": half}
    model, objective = Asymmetric(), build_objective("mse")
    both = objective(registration_tensors(model, {**batch, f"{side}_mask": half}, objective, symmetric=True)).total
    one, two = (
        objective(registration_tensors(model, pair, objective)).total
        for pair in ({**batch, **masks}, exchanged({**batch, **masks}))
    )
    torch.testing.assert_close(both, (one + two) / 2)


def test_known_is_what_both_images_have(phantoms):
    batch = phantoms.pair(5)
    batch["fixed_known"] = torch.tensor([[True, True, False], [True, False, True]])
    batch["moving_known"] = torch.tensor([[True, False, False], [False, True, True]])
    model, objective = Asymmetric(), build_objective("partial_dice")
    tensors = registration_tensors(model, batch, objective)
    assert tensors["labels/known"].tolist() == [[False, True, False, False], [False, False, False, True]]
    assert tensors["labels/fixed"].shape[1] == 4
    # The disc is class 1: only the first pair's counts, and a label in neither map is passed over.
    truth, moved = tensors["labels/fixed"][0, 1], tensors["labels/moved"][0, 1]
    expected = 1 - 2 * (truth * moved).sum() / (truth.sum() + moved.sum())
    torch.testing.assert_close(objective(tensors).total, expected / 2, rtol=1e-4, atol=1e-5)


def test_outputs_in_half_precision_are_warped_in_full(phantoms):
    class Half(Asymmetric):
        def forward(self, **images):
            return {name: tensor.bfloat16() for name, tensor in super().forward(**images).items()}

    tensors = registration_tensors(Half(), phantoms.pair(6), build_objective("mse"))
    assert tensors["field"].dtype == tensors["moved"].dtype == torch.float32


def test_a_segmenter_gives_probabilities_against_the_truth(phantoms):
    pair = phantoms.pair(7)
    batch = {"image": pair["fixed"], "labels": pair["fixed_labels"], "known": pair["fixed_known"], "names": ["a", "b"]}
    model, objective = TinySegmenter(), build_objective("cross_entropy")
    tensors = objective_tensors(model, batch, objective)
    expected = nn.functional.cross_entropy(model(image=batch["image"])["logits"], batch["labels"])
    torch.testing.assert_close(objective(tensors).total, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("terms", "change", "message"),
    [
        ("dice", {"fixed_labels": None}, "term 'dice' needs labels, and pair pair8-0 has none in the fixed image"),
        ("mse+landmarks", {}, "term 'landmarks' needs landmarks, and pair pair8-0 has none in the fixed image"),
        ("known_field", {}, "term 'known_field' needs a known field, and pair pair8-0 has none"),
        (
            "dice",
            {"moving_known": torch.tensor([[True], [False]])},
            "term 'dice' needs all labels, and pair pair8-1 has none in the moving image.*partial_dice",
        ),
    ],
)
def test_missing_labels_are_one_line_with_term_and_pair(phantoms, terms, change, message):
    with pytest.raises(InputError, match=message):
        checked_batch({**phantoms.pair(8), **change}, build_objective(terms))


@pytest.mark.parametrize("gone", [("fixed",), ("moving",), ("fixed", "moving")])
def test_a_partial_term_passes_over_pairs_without_labels(phantoms, gone):
    batch = phantoms.pair(9)
    for side in gone:
        del batch[f"{side}_labels"], batch[f"{side}_known"]
    model, objective = Asymmetric(), build_objective("partial_dice")
    total = objective(registration_tensors(model, checked_batch(batch, objective), objective, symmetric=True)).total
    assert float(total.detach()) == 0
    total.backward()
    assert float(model.scale.grad) == 0
