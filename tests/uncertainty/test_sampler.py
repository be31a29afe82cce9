"""Samplers: seeded, one interface, and posteriors that concentrate where the images say it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from verimorph.data.preparation import Preparation
from verimorph.errors import OptionError
from verimorph.image import Image
from verimorph.nn.stochastic import AlwaysOnDropout
from verimorph.predict.registrar import Registrar
from verimorph.uncertainty.sampler import (
    CostVolumeSampler,
    EnsembleSampler,
    ModuleSampler,
    RegistrarSampler,
    Sampler,
    cost_volume,
)


class Shifts(nn.Module):
    """A field of one voxel along the first axis, dropped at random."""

    stride = 4

    def __init__(self, p: float = 0.5, shift: float = 1.0) -> None:
        super().__init__()
        self.dropout, self.shift = AlwaysOnDropout(p) if p else nn.Identity(), shift

    def forward(self, *, fixed, moving, condition=None):
        field = torch.zeros(1, fixed.ndim - 2, *fixed.shape[2:])
        field[:, 0] = self.dropout(torch.full_like(fixed[:, 0], self.shift))
        return {"field": field, "label_log_variance": torch.zeros(1, 2, *fixed.shape[2:])}


def textured(shape=(16, 16, 16), seed=0):
    noise = np.random.default_rng(seed).normal(size=shape)
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(noise, 1.5).astype(np.float32)


def fields_of(sampler, n=3, seed=4):
    draws = sampler.draws(n, torch.Generator().manual_seed(seed))
    return torch.cat([draw.transform.displacement_on(grid_of(sampler)) for draw in draws])


def grid_of(sampler):
    return sampler.grid if hasattr(sampler, "grid") else Image.from_array(np.zeros((16, 16, 16))).grid


def registrar(**settings):
    return Registrar(Shifts(**settings), Preparation(shape=(16, 16, 16), spacing_mm=1.0, intensity="minmax"))


def samplers():
    image = Image.from_array(textured())
    other = Image.from_array(textured() + 0.3 * textured(seed=1))
    volume = torch.rand(1, 1, 16, 16, 16)
    return {
        "module": ModuleSampler(Shifts().eval(), fixed=volume, moving=volume),
        "registrar": RegistrarSampler(registrar(), fixed=image, moving=image),
        "ensemble": EnsembleSampler([registrar(), registrar(shift=2.0)], fixed=image, moving=image),
        "cost volume": CostVolumeSampler(fixed=image, moving=other, reach=2, step=1, descriptor="grey"),
    }


@pytest.mark.parametrize("name", ["module", "registrar", "ensemble", "cost volume"])
def test_one_seed_gives_one_stream_of_draws(name):
    sampler = samplers()[name]
    assert isinstance(sampler, Sampler)
    first, again, other = (fields_of(sampler, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_a_pass_without_randomness_repeats_itself():
    volume = torch.rand(1, 1, 8, 8, 8)
    fields = fields_of(ModuleSampler(Shifts().eval(), fixed=volume, moving=volume, random=False))
    assert torch.equal(fields[0], fields[1])
    assert fields[0, 0].min() == 1


def test_an_ensemble_of_certain_models_has_as_many_draws_as_members():
    image = Image.from_array(textured())
    sampler = EnsembleSampler([registrar(p=0, shift=float(k)) for k in (1, 2, 3)], fixed=image, moving=image)
    fields = fields_of(sampler)
    assert [float(one[0, 8, 8, 8]) for one in fields] == pytest.approx([1, 2, 3])
    with pytest.raises(OptionError, match="3 at most"):
        list(sampler.draws(4))


def test_a_certain_model_alone_is_refused():
    image = Image.from_array(textured())
    with pytest.raises(OptionError, match="nothing random"):
        list(RegistrarSampler(registrar(p=0), fixed=image, moving=image).draws(1))


@pytest.mark.parametrize("descriptor", ["grey", "mind"])
def test_the_cost_volume_finds_a_known_shift(descriptor):
    array = textured((24, 24, 24))
    sampler = CostVolumeSampler(
        fixed=Image.from_array(array),
        moving=Image.from_array(np.roll(array, 2, axis=0)),
        reach=3,
        step=1,
        descriptor=descriptor,
        temperature=0.2,
    )
    # fixed(i) is moving(i + 2) along the first axis
    middle = sampler.mean[0, :, 1:-1, 1:-1, 1:-1].flatten(1).median(1).values
    torch.testing.assert_close(middle, torch.tensor([2.0, 0.0, 0.0]), atol=0.3, rtol=0)
    torch.testing.assert_close(sampler.posterior.sum(0), torch.ones(sampler.posterior.shape[1:]))


def test_costs_are_zero_at_the_true_displacement_and_cells_at_the_edge_count_their_voxels():
    fixed = torch.rand(1, 2, 10, 9)
    labels = torch.tensor([[0, 0], [1, 0]])
    costs = cost_volume(fixed, fixed, labels, 4)
    assert costs.shape == (2, 3, 3)
    assert costs[0].abs().max() == 0
    shifted = torch.cat((fixed[:, :, 1:], fixed[:, :, -1:]), 2)
    expected = (fixed - shifted).square().mean(1)[0]
    torch.testing.assert_close(costs[1, 2, 2], expected[8:, 8:].mean())
    torch.testing.assert_close(costs[1, 0, 0], expected[:4, :4].mean())


def test_a_flat_image_leaves_everything_open():
    flat = Image.from_array(np.zeros((12, 12), np.float32))
    sampler = CostVolumeSampler(fixed=flat, moving=flat, reach=1, step=1, descriptor="grey", coupling=0.0)
    torch.testing.assert_close(sampler.posterior, torch.full_like(sampler.posterior, 1 / 9))
    assert float(sampler.entropy.mean()) == pytest.approx(np.log(9), abs=1e-5)


def test_control_points_lie_in_the_middle_of_their_cells_also_before_a_cut_one():
    """A motion that grows along an axis is read where it is, on a size that the spacing does not divide."""
    image = Image.from_array(textured((65, 16, 16)))
    sampler = CostVolumeSampler(fixed=image, moving=image, reach=1, step=1, spacing=8, descriptor="grey")
    cells = torch.arange(9.0).view(1, 1, 9, 1, 1) * 8 + 3.5
    field = torch.cat([cells.expand(1, 1, 9, 2, 2), torch.zeros(1, 2, 9, 2, 2)], 1)
    points = np.array([[x, 8.0, 8.0] for x in (4.0, 20.0, 43.5, 59.5, 64.0)])
    moved = sampler._transform(field).map_points(points) - points
    assert moved[:, 0] == pytest.approx(points[:, 0], abs=1e-3)
