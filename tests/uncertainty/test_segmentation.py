"""Maps of label uncertainty: what they must be where the truth is known, and the loss and head behind one of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verimorph.errors import InputError
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.methods import method
from verimorph.nn.heads.label_variance import LabelUncertaintyNetwork, LabelVarianceHead
from verimorph.objective import build_objective
from verimorph.objective.labels import beta_nll
from verimorph.train.passes import registration_tensors
from verimorph.transform import DisplacementField
from verimorph.uncertainty.sampler import Draw, ModuleSampler
from verimorph.uncertainty.segmentation import (
    carried_labels,
    label_error,
    label_uncertainty,
    moved_dice,
    one_hot,
    score_maps,
)

SHAPE = (16, 16, 16)
TINY = {"embedding": 8, "heads": (2, 2, 2), "depths": (2, 1, 1), "window": (2, 2, 1), "hidden": (4, 6, 4), "steps": 2}


def block(low=5, high=11, shape=SHAPE):
    labels = np.zeros(shape, np.int16)
    labels[low:high, low:high, low:high] = 1
    return Image.from_array(labels)


def translation(*steps, grid=None):
    grid = grid or Grid(SHAPE)
    shift = torch.tensor(steps, dtype=torch.float32).view(1, -1, *[1] * grid.ndim).expand(1, grid.ndim, *grid.shape)
    return DisplacementField(grid, shift.contiguous())


def maps_of(draws, labels=None, image=None):
    image = image or Image.from_array(torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)))
    return label_uncertainty(draws, fixed=image, moving=image, moving_labels=labels or block(), values=[1])


def network(p=0.15, **settings):
    pytest.importorskip("monai")
    torch.manual_seed(3)
    model = method("transmorph-uncertainty").model(always_on_dropout=p, classes=2, **{**TINY, **settings}).eval()
    with torch.no_grad():  # fields of a voxel or so, as after training
        for step in model.head.steps:
            step.velocity.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return model


def test_whole_voxels_leave_labels_certain():
    maps = maps_of([Draw(translation(2, -1, 0))] * 4)
    for name, tensor in maps.named():
        if name != "appearance":
            assert tensor.abs().max() == 0, name
    assert torch.equal(maps.moved_labels, one_hot(block(), [1]).roll((-2, 1), (2, 3)))


@pytest.mark.parametrize("values", [[], [0, 1]])
def test_the_background_is_no_structure(values):
    image = Image.from_array(np.zeros(SHAPE, np.float32))
    draws = [Draw(translation(0, 0, 0))] * 2
    with pytest.raises(InputError, match="without 0"):
        label_uncertainty(draws, fixed=image, moving=image, moving_labels=block(), values=values)


def test_half_a_voxel_makes_borders_soft_without_any_spread():
    maps = maps_of([Draw(translation(0.5, 0, 0))] * 4)
    assert maps.transformation_trace.max() == 0
    assert maps.mutual_information.max() < 1e-6
    assert maps.vote_entropy.max() == 0
    torch.testing.assert_close(maps.epistemic, maps.mean_warp_entropy)
    assert float(maps.epistemic.max()) == pytest.approx(np.log(2), abs=1e-4)


def test_a_spread_inside_a_structure_is_no_label_uncertainty():
    maps = maps_of([Draw(translation(x, 0, 0)) for x in (-2.0, 2.0)])
    inside = (0, 1, 8, 8, 8)
    assert float(maps.transformation_trace[0, 0, 8, 8, 8]) == pytest.approx(8.0)
    assert float(maps.epistemic[inside]) == 0
    assert float(maps.mutual_information[inside]) == 0
    border = (0, 1, 4, 8, 8)
    assert float(maps.mutual_information[border]) == pytest.approx(np.log(2), abs=1e-4)
    # The magnitude never changed: the published map does not see that the direction did.
    assert maps.transformation.max() == 0


def test_millimetres_are_those_of_the_grid():
    grid = Grid(SHAPE, np.diag([2.0, 1.0, 3.0, 1.0]))
    image = Image.from_array(np.zeros(SHAPE, np.float32), grid)
    labels = Image.from_array(block().array, grid)
    draws = [Draw(translation(x, 0, 0, grid=grid)) for x in (0.0, 2.0)]
    maps = label_uncertainty(draws, fixed=image, moving=image, moving_labels=labels, values=[1])
    assert float(maps.transformation[0, 0, 8, 8, 8]) == pytest.approx(8.0)  # 0 and 4 mm


def test_one_seed_gives_one_set_of_maps_and_no_dropout_no_spread():
    volumes = torch.rand(2, 1, 1, 32, 32, 16, generator=torch.Generator().manual_seed(0))
    labels = block(5, 11, (32, 32, 16))

    def maps(model):
        sampler = ModuleSampler(model, fixed=volumes[0], moving=volumes[1])
        fixed, moving = (Image.from_array(volume[0, 0]) for volume in volumes)
        draws = sampler.draws(3, torch.Generator().manual_seed(7))
        return label_uncertainty(draws, fixed=fixed, moving=moving, moving_labels=labels, values=[1])

    random = network()
    first, again = maps(random), maps(random)
    for (name, a), (_, b) in zip(first.named(), again.named(), strict=True):
        assert torch.equal(a, b), name
    assert first.transformation_trace.max() > 0
    assert first.mutual_information.max() > 0
    certain = maps(network(p=0.0))
    assert certain.transformation.max() == 0
    assert certain.transformation_trace.max() == 0
    assert certain.mutual_information.max() < 1e-6
    assert certain.aleatoric is not None
    assert certain.aleatoric.min() > 0


def test_variances_of_a_coarser_grid_come_onto_the_fixed_one():
    coarse = Grid((8, 8, 8), np.diag([2.0, 2.0, 2.0, 1.0]))
    ramp = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(1, 2, 8, 8, 8)
    draw = Draw(translation(0, 0, 0), {"label_log_variance": ramp.log1p()}, coarse)
    aleatoric = maps_of([draw, draw]).aleatoric
    torch.testing.assert_close(aleatoric[0, 1, :14:2, 4, 4], 1 + torch.arange(7.0))


def test_scores_are_correlations_with_the_error_and_missing_where_a_map_is_constant():
    maps = maps_of([Draw(translation(0.3, 0, 0)), Draw(translation(1.4, 0, 0))])
    scores = {one.name: one for one in score_maps(maps, block(), [1])}
    error = label_error(one_hot(block(), [1]), maps.moved_labels)
    assert scores["epistemic"].pearson == pytest.approx(
        np.corrcoef(maps.epistemic[0, 1].flatten(), error[0, 1].flatten())[0, 1], abs=1e-5
    )
    assert scores["epistemic"].pearson > 0.5
    # The spread is the same everywhere: a constant map, and an absent structure, are missing, not 0.
    assert np.isnan(scores["transformation"].pearson)
    empty = Image.from_array(np.zeros(SHAPE, np.int16))
    absent = maps_of([Draw(translation(0, 0, 0))] * 2, labels=empty)
    assert all(np.isnan(one.pearson) for one in score_maps(absent, empty, [1]))


def test_dice_of_the_likeliest_class():
    moved = carried_labels(translation(1, 0, 0), block(), [1], Grid(SHAPE))
    assert moved_dice(block(), moved, [1])[1] == pytest.approx(5 / 6)


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def labels():
    source = torch.Generator().manual_seed(0)
    y = (torch.rand(1, 3, 4, 5, 6, generator=source, dtype=torch.float64) > 0.5).double()
    p = torch.rand(1, 3, 4, 5, 6, generator=source, dtype=torch.float64).requires_grad_()
    log_variance = torch.randn(1, 3, 4, 5, 6, generator=source, dtype=torch.float64).requires_grad_()
    return y, p, log_variance


def test_with_beta_one_labels_see_the_squared_error_and_variances_the_gap_to_it(labels):
    y, p, log_variance = labels
    count = y.numel()
    by_p, by_v = torch.autograd.grad(beta_nll(y, p, log_variance), (p, log_variance))
    torch.testing.assert_close(by_p, -2 * (y - p) / count)
    torch.testing.assert_close(by_v, (log_variance.exp() - (y - p).square()) / count)


def test_with_beta_zero_it_is_the_gaussian_likelihood(labels):
    y, p, log_variance = labels
    expected = 2 * torch.nn.functional.gaussian_nll_loss(p, y, log_variance.exp(), eps=0)
    torch.testing.assert_close(beta_nll(y, p, log_variance, beta=0.0), expected)


def test_it_is_lowest_at_the_squared_error(labels):
    y, p, _ = labels
    best = (y - p).detach().square().clamp_min(1e-6).log().requires_grad_()
    (slope,) = torch.autograd.grad(beta_nll(y, p.detach(), best), best)
    assert slope.abs().max() < 1e-8


# --- the head ---------------------------------------------------------------------------------------------------------


def test_every_variance_starts_at_one_and_stays_in_bounds():
    head = LabelVarianceHead(ndim=2, channels=3, classes=4, hidden=(5,))
    residual, features = torch.rand(1, 1, 8, 8), torch.rand(1, 3, 4, 4)
    assert head(residual, features).abs().max() < 1e-2
    torch.nn.init.normal_(head.last.weight, std=100)
    assert head(residual, features).abs().max() <= 5


def test_the_head_recovers_the_variance_of_noise():
    """Labels with noise whose deviation follows the residual: the variance must come out, from images alone."""
    torch.manual_seed(0)
    head = LabelVarianceHead(ndim=2, channels=1, classes=2, hidden=(8, 8))
    optimiser = torch.optim.Adam(head.parameters(), 1e-2)
    residual = (torch.arange(24) // 8 / 2.0).view(1, 1, 24, 1).expand(1, 1, 24, 24).contiguous()
    truth = (0.1 + 0.4 * residual).square().expand(1, 2, 24, 24)
    features = torch.zeros(1, 1, 12, 12)
    for _ in range(150):
        p = torch.randn(1, 2, 24, 24) * truth.sqrt()
        loss = beta_nll(torch.zeros_like(p), p, head(residual, features))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = head(residual, features).exp()
    for row in (3, 12, 20):  # the middle of each band
        torch.testing.assert_close(found[0, :, row].mean(1), truth[0, :, row].mean(1), rtol=0.25, atol=0.005)


def test_batch_statistics_are_their_own_switch():
    head = LabelVarianceHead(ndim=2, channels=1, classes=2, hidden=(4,))
    torch.nn.init.normal_(head.last.weight)
    residual, features = torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8)
    in_training = head(residual, features)
    head.eval()
    assert not torch.allclose(head(residual, features), in_training, atol=1e-3)
    head.batch_statistics = True
    torch.testing.assert_close(head(residual, features), in_training)


@pytest.mark.parametrize(("detached", "reaches"), [(False, True), (True, False)])
def test_variances_reach_the_registration_unless_detached(detached, reaches):
    model = network(detached=detached).train()
    assert isinstance(model, LabelUncertaintyNetwork)
    for parameter in model.variance.last.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    outputs = model(fixed=torch.rand(1, 1, 32, 32, 16), moving=torch.rand(1, 1, 32, 32, 16))
    outputs["label_log_variance"].square().mean().backward()
    moved = any(p.grad is not None and p.grad.abs().max() > 0 for p in model.head.parameters())
    assert moved is reaches


def test_the_published_objective_runs_on_a_pair_of_label_maps():
    told = method("transmorph-uncertainty")
    pair = {
        **{side: torch.rand(1, 1, 32, 32, 16) for side in ("fixed", "moving")},
        **{f"{side}_labels": torch.randint(0, 2, (1, 32, 32, 16)) for side in ("fixed", "moving")},
        **{f"{side}_known": torch.ones(1, 1, dtype=torch.bool) for side in ("fixed", "moving")},
    }
    objective = build_objective(*told.objective)
    evaluation = objective(registration_tensors(network().train(), pair, objective))
    assert sorted(evaluation.values) == ["beta_nll", "dice", "diffusion", "lncc"]
    assert evaluation.total.isfinite()
