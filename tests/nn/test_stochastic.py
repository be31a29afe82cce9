"""Dropout after training: the law of its values, and draws that can be drawn again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from verimorph.errors import OptionError
from verimorph.nn.stochastic import AlwaysOnDropout, sampling


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), AlwaysOnDropout(0.3), nn.Linear(8, 8), AlwaysOnDropout(0.5))


def test_training_drops_a_share_and_keeps_the_expectation():
    torch.manual_seed(0)
    values = AlwaysOnDropout(0.25).train()(torch.ones(200_000))
    assert sorted(values.unique().tolist()) == pytest.approx([0.0, 1 / 0.75])
    assert float((values == 0).float().mean()) == pytest.approx(0.25, abs=0.005)
    assert float(values.mean()) == pytest.approx(1.0, abs=0.01)


def test_outside_training_nothing_is_dropped_unless_sampling():
    x = torch.rand(3, 8)
    model = _network().eval()
    once = model(x)
    assert torch.equal(once, model(x))
    with sampling(model, torch.Generator().manual_seed(1)):
        assert not torch.equal(once, model(x))
    assert torch.equal(once, model(x))


def test_one_seed_one_sample_and_the_next_draw_differs():
    x, model = torch.rand(3, 8), _network().eval()
    generator = torch.Generator().manual_seed(7)
    with sampling(model, generator):
        first, second = model(x), model(x)
    with sampling(model, torch.Generator().manual_seed(7)):
        again = model(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_torchs_own_generator_is_not_touched_by_a_generator_of_ours():
    state = torch.get_rng_state()
    with sampling(AlwaysOnDropout(0.5).eval(), torch.Generator().manual_seed(0)) as dropout:
        dropout(torch.ones(10))
    assert torch.equal(state, torch.get_rng_state())


def test_what_was_set_before_comes_back_even_after_an_error():
    model = _network().eval()
    mine = torch.Generator()
    model[1].sampling, model[1].generator = True, mine
    with pytest.raises(RuntimeError), sampling(model, torch.Generator()):
        model(torch.ones(3, 7))  # eight features are wanted
    assert (model[1].sampling, model[1].generator) == (True, mine)
    assert (model[3].sampling, model[3].generator) == (False, None)


def test_a_probability_outside_its_range_is_refused():
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(OptionError, match="dropout probability"):
            AlwaysOnDropout(wrong)
