"""Supervision: Dice against MONAI and counted voxels, landmarks and known fields against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from verimorph.errors import InputError
from verimorph.objective import labels

pytest.importorskip("monai")

SHAPES = [(9, 8), (6, 7, 5)]


@pytest.fixture
def maps():
    """One-hot fixed labels and soft moved ones, (2, 4, *shape)."""

    def make(shape):
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, 4, (2, *shape), generator=generator)
        fixed = torch.nn.functional.one_hot(ids, 4).movedim(-1, 1).double()
        moved = (torch.randn(2, 4, *shape, generator=generator, dtype=torch.float64) + 2 * fixed).softmax(1)
        return fixed, moved

    return make


ALL = [labels.soft_dice, labels.generalised_dice, labels.partial_dice, labels.cross_entropy]


@pytest.mark.parametrize("measure", ALL)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_laws(measure, shape, weighted, maps):
    fixed, moved = maps(shape)
    weight = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options = {"weight": weight} if weighted else {}
    assert measure(fixed, fixed, **options) < measure(fixed, moved, **options)
    leaf = moved.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: measure(fixed, p, **options), (leaf,), fast_mode=True)
    alone = torch.stack(
        [measure(fixed[b : b + 1], moved[b : b + 1], **{k: v[b : b + 1] for k, v in options.items()}) for b in range(2)]
    )
    torch.testing.assert_close(measure(fixed, moved, reduction="none", **options), alone)
    ones = torch.ones_like(weight)
    torch.testing.assert_close(measure(fixed, moved, weight=ones), measure(fixed, moved))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = measure(fixed.half(), moved.half(), **{k: v.half() for k, v in options.items()})
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), measure(fixed, moved, **options), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("measure", ALL)
def test_masked_equals_cropped(measure, maps):
    fixed, moved = maps((9, 8))
    mask = torch.zeros(1, 1, 9, 8)
    mask[..., 2:7, 1:6] = 1
    torch.testing.assert_close(
        measure(fixed, moved, mask=mask), measure(fixed[..., 2:7, 1:6], moved[..., 2:7, 1:6]), rtol=1e-4, atol=1e-6
    )


def test_dice_of_counted_voxels(maps):
    fixed, moved = maps((6, 7, 5))
    hard = torch.nn.functional.one_hot(moved.argmax(1), 4).movedim(-1, 1).double()
    expected = [
        2 * (fixed[b, k] * hard[b, k]).sum() / (fixed[b, k].sum() + hard[b, k].sum())
        for b in range(2)
        for k in (1, 2, 3)
    ]
    for measure in (labels.soft_dice, labels.partial_dice):
        assert measure(fixed, hard, smooth=0.0).item() == pytest.approx(1 - torch.stack(expected).mean().item())


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("include_background", [False, True])
def test_soft_dice_is_that_of_monai(squared, include_background, maps):
    from monai.losses import DiceLoss

    fixed, moved = maps((6, 7, 5))
    expected = DiceLoss(include_background=include_background, squared_pred=squared)(moved, fixed)
    settings = {"squared": squared, "include_background": include_background}
    torch.testing.assert_close(labels.soft_dice(fixed, moved, **settings), expected)
    torch.testing.assert_close(labels.partial_dice(fixed, moved, **settings), expected)


@pytest.mark.parametrize("volume_weight", ["square", "simple", "uniform"])
def test_generalised_dice_by_its_formula(volume_weight, maps):
    fixed, moved = maps((6, 7, 5))
    t, p = fixed[:, 1:].flatten(2), moved[:, 1:].flatten(2)
    w = t.sum(2) ** -{"square": 2.0, "simple": 1.0, "uniform": 0.0}[volume_weight]
    expected = 1 - 2 * (w * (t * p).sum(2)).sum(1) / (w * (t.sum(2) + p.sum(2))).sum(1)
    ours = labels.generalised_dice(fixed, moved, volume_weight=volume_weight, smooth=1e-12, reduction="none")
    torch.testing.assert_close(ours, expected)


def test_partial_dice_leaves_out_what_was_not_drawn_or_is_in_neither(maps):
    fixed, moved = maps((9, 8))
    known = torch.tensor([[True, True, False, True], [True, False, True, True]])
    each = torch.stack(
        [labels.partial_dice(fixed[:, [0, k]], moved[:, [0, k]], reduction="none") for k in (1, 2, 3)], 1
    )
    expected = torch.stack([each[0, [0, 2]].mean(), each[1, [1, 2]].mean()])
    torch.testing.assert_close(labels.partial_dice(fixed, moved, known=known, reduction="none"), expected)
    empty = torch.zeros(2, 1, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(
        labels.partial_dice(torch.cat([fixed, empty], 1), torch.cat([moved, empty], 1)),
        labels.partial_dice(fixed, moved),
    )
    nothing = labels.partial_dice(fixed, moved, known=torch.zeros(2, 4, dtype=torch.bool))
    assert nothing.item() == 0


def test_cross_entropy_is_that_of_torch(maps):
    fixed, moved = maps((6, 7, 5))
    expected = torch.nn.functional.cross_entropy(moved.log(), fixed.argmax(1))
    torch.testing.assert_close(labels.cross_entropy(fixed, moved, epsilon=0.0), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_landmarks_through_an_affine_field(shape):
    ndim = len(shape)
    axes = [torch.arange(float(n), dtype=torch.float64) for n in shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    generator = torch.Generator().manual_seed(3)
    matrix = 0.1 * torch.randn(ndim, ndim, generator=generator, dtype=torch.float64)
    field = torch.einsum("ij,j...->i...", matrix, points)[None]
    fixed = 1 + 2.5 * torch.rand(1, 7, ndim, generator=generator, dtype=torch.float64)
    offset = torch.randn(1, 7, ndim, generator=generator, dtype=torch.float64)
    moving = fixed + fixed @ matrix.T + offset
    spacing = (0.5, 2.0, 3.0)[:ndim]
    expected = (offset * torch.tensor(spacing, dtype=torch.float64)).norm(dim=-1)
    torch.testing.assert_close(labels.landmark_distance(field, fixed, moving, spacing=spacing), expected.mean())
    torch.testing.assert_close(labels.landmark_distance(field, fixed, moving, spacing=spacing, map=True), expected)
    squared = labels.landmark_distance(field, fixed, moving, spacing=spacing, squared=True)
    torch.testing.assert_close(squared, (expected**2).mean())
    assert labels.landmark_distance(field, fixed, moving - offset).item() == pytest.approx(0, abs=1e-12)
    leaf = (field + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: labels.landmark_distance(u, fixed, moving), (leaf,), fast_mode=True)


def test_padding_and_confidence_of_landmarks():
    field = torch.zeros(1, 2, 6, 6)
    fixed = torch.tensor([[[1.0, 1.0], [2.0, 3.0], [math.nan, math.nan]]])
    moving = torch.tensor([[[4.0, 5.0], [2.0, 4.0], [math.nan, math.nan]]])
    assert labels.landmark_distance(field, fixed, moving).item() == pytest.approx(3.0)
    weight = torch.tensor([[1.0, 0.0, 1.0]])
    assert labels.landmark_distance(field, fixed, moving, weight=weight).item() == pytest.approx(2.5)
    leaf = field.requires_grad_()
    (slope,) = torch.autograd.grad(labels.landmark_distance(leaf, fixed, fixed), leaf)
    assert slope.isfinite().all()
    with pytest.raises(InputError, match="one length"):
        labels.landmark_distance(field, fixed, moving[:, :2])


def test_known_field_in_millimetres():
    field, known = torch.zeros(1, 3, 4, 5, 6), torch.zeros(1, 3, 4, 5, 6)
    known[:, 0], known[:, 2] = 3.0, 2.0
    assert labels.known_field_distance(field, known, spacing=(1.0, 1.0, 2.0)).item() == pytest.approx(5.0)
    assert labels.known_field_distance(field, known, squared=True).item() == pytest.approx(13.0)
    local = labels.known_field_distance(field, known, spacing=(1.0, 1.0, 2.0), map=True)
    assert local.shape == (1, 1, 4, 5, 6)
    leaf = (0.1 + torch.rand(1, 3, 4, 5, 6, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: labels.known_field_distance(u, known.double()), (leaf,), fast_mode=True)
