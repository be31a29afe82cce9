"""Accumulators against the same numbers computed from all draws at once."""

from __future__ import annotations

import math

import pytest
import torch

from verimorph.errors import InputError, OptionError
from verimorph.uncertainty.accumulate import Appearance, FieldSpread, LabelVotes, RunningMoments, binary_entropy


@pytest.fixture
def fields():
    return torch.randn(7, 3, 5, 4, 6, generator=torch.Generator().manual_seed(1))


def test_moments_are_those_of_all_values_even_far_from_zero():
    values = 1000 + torch.randn(50, 8, dtype=torch.float64)
    moments = RunningMoments()
    for value in values:
        moments.add(value)
    torch.testing.assert_close(moments.mean, values.mean(0))
    torch.testing.assert_close(moments.variance, values.var(0))


def test_spread_is_that_of_all_fields_at_once(fields):
    spread = FieldSpread()
    for one in fields:
        spread.add(one[None])
    assert spread.count == 7
    torch.testing.assert_close(spread.mean, fields.mean(0, keepdim=True))
    torch.testing.assert_close(spread.variance_of_magnitude, fields.norm(dim=1).var(0)[None, None])
    torch.testing.assert_close(spread.trace, fields.var(0).sum(0)[None, None])
    torch.testing.assert_close(spread.std, fields.var(0).sum(0).sqrt()[None, None])


def test_magnitude_does_not_see_a_turning_direction():
    spread = FieldSpread()
    for angle in torch.linspace(0, 6, 9):
        spread.add(torch.stack((angle.cos(), angle.sin())).view(1, 2, 1, 1))
    assert float(spread.variance_of_magnitude) < 1e-12
    assert float(spread.trace) > 0.5


def test_equal_draws_have_no_spread_at_all(fields):
    spread = FieldSpread()
    for _ in range(5):
        spread.add(fields[:1])
    assert spread.trace.abs().max() == 0
    assert spread.variance_of_magnitude.abs().max() == 0


def test_a_spread_needs_two_draws_of_one_shape(fields):
    spread = FieldSpread()
    spread.add(fields[:1])
    with pytest.raises(OptionError, match="two draws"):
        _ = spread.trace
    with pytest.raises(InputError, match="shape"):
        spread.add(fields[:1, :, :2])
    with pytest.raises(InputError, match=r"\(1, d"):
        FieldSpread().add(fields[:1, :2])


def test_appearance_is_error_against_fixed_and_variance_among_draws():
    fixed, moved = torch.rand(1, 2, 4, 5), torch.rand(6, 2, 4, 5)
    appearance = Appearance(fixed)
    for one in moved:
        appearance.add(one[None])
    torch.testing.assert_close(appearance.expected_error[0, 0], (moved - fixed).square().mean((0, 1)))
    torch.testing.assert_close(appearance.predictive_variance[0, 0], moved.var(0).mean(0))


@pytest.mark.parametrize(
    ("draws", "total", "expected"),
    [([(0.9, 0.1), (0.1, 0.9)], 0.69315, 0.32508), ([(0.5, 0.5), (0.5, 0.5)], 0.69315, 0.69315)],
)
def test_entropy_splits_as_published(draws, total, expected):
    votes = LabelVotes()
    for p in draws:
        votes.add(torch.tensor(p).view(1, 2, 1, 1))
    assert float(votes.total_entropy) == pytest.approx(total, abs=1e-5)
    assert float(votes.expected_entropy) == pytest.approx(expected, abs=1e-5)
    assert float(votes.mutual_information) == pytest.approx(total - expected, abs=1e-5)


def test_votes_of_all_draws_at_once():
    p = torch.rand(8, 4, 6, 5).softmax(1)
    votes = LabelVotes()
    for one in p:
        votes.add(one[None])
    mean = p.mean(0, keepdim=True)
    torch.testing.assert_close(votes.mean, mean)
    torch.testing.assert_close(votes.variance, p.var(0)[None])
    floor = 1e-6
    torch.testing.assert_close(
        votes.class_entropy, -(mean * (mean + floor).log() + (1 - mean) * (1 - mean + floor).log())
    )
    winners = torch.nn.functional.one_hot(p.argmax(1), 4).movedim(-1, 1).float().mean(0, keepdim=True)
    torch.testing.assert_close(votes.votes, winners)
    assert votes.mutual_information.min() >= 0
    assert votes.class_mutual_information.min() >= 0


def test_hard_votes_are_blind_to_soft_borders():
    votes = LabelVotes()
    for p in (0.6, 0.9):
        votes.add(torch.tensor([1 - p, p]).view(1, 2, 1, 1))
    assert float(votes.vote_entropy) == 0
    assert float(votes.class_vote_entropy.max()) == 0
    assert float(votes.class_entropy.max()) > 0.5


def test_binary_entropy_is_zero_for_certain_labels_and_largest_at_half():
    values = binary_entropy(torch.tensor([0.0, 0.5, 1.0]))
    assert values[0] == 0
    assert values[2] == 0
    assert float(values[1]) == pytest.approx(math.log(2), abs=1e-5)
