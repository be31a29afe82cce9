"""Tiny models with a field that is not zero, and pairs of images on oblique, anisotropic grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from verimorph import field
from verimorph.data.preparation import Preparation
from verimorph.image import Image


class TinyNetwork(nn.Module):
    """Two convolutions and a displacement or a velocity at half size; ``noisy`` adds drawn velocities."""

    def __init__(self, ndim=3, channels=1, *, flow=False, noisy=False, size=1.5, seed=0):
        super().__init__()
        self.stride = 4
        self.flow, self.noisy = flow, noisy
        torch.manual_seed(seed)
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
        self.features = convolution(2 * channels, 6, 3, padding=1)
        self.head = convolution(6, ndim, 3, padding=1)
        nn.init.normal_(self.head.weight, std=0.3)
        self.size = size
        if noisy:
            self.sampling, self.generator = False, None

    def forward(self, *, fixed, moving, condition=None):
        shape = tuple(fixed.shape[2:])
        half = tuple(n // 2 for n in shape)
        x = field.resize(torch.cat([fixed, moving], dim=1), half)
        u = torch.tanh(self.head(torch.relu(self.features(x)))).contiguous()
        u = self.size * field.gaussian_smooth(u, [1.5] * (len(shape)))
        if self.noisy and self.sampling:
            noise = torch.randn(u.shape, generator=self.generator)
            u = u + field.gaussian_smooth(noise, [2.0] * len(shape))
        if not self.flow:
            return {"field": field.resize_displacement(u, shape)}
        return {"field": field.resize_displacement(field.exponentiate(u), shape), "velocity": u}


@pytest.fixture
def tiny():
    """Factory of tiny models."""
    return TinyNetwork


def blobs(grid, centres, widths):
    """Smooth bright spots at world points, with texture."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    world = grid.index_to_world(index)
    value = np.zeros(grid.shape)
    for centre, width in zip(centres, widths, strict=True):
        value += np.exp(-(((world - centre) / width) ** 2).sum(-1))
    return (100 * value).astype(np.float32)


@pytest.fixture
def oblique_pair(oblique_grid):
    """Factory of pairs on different oblique grids, one anatomy a few millimetres apart."""

    def make(ndim=3):
        shapes = {3: ((22, 18, 12), (20, 17, 13)), 2: ((34, 27), (30, 29))}[ndim]
        fixed_grid = oblique_grid(ndim, shapes[0], seed=1)
        moving_grid = oblique_grid(ndim, shapes[1], seed=2, flip=True)
        random = np.random.default_rng(3)
        spread = random.uniform(-5, 5, (4, ndim))
        widths = random.uniform(3, 6, 4)
        fixed = Image.from_array(blobs(fixed_grid, fixed_grid.centre + spread, widths), fixed_grid, name="fixed")
        shifted = moving_grid.centre + spread * 1.1 + 0.8
        moving = Image.from_array(blobs(moving_grid, shifted, widths), moving_grid, name="moving")
        return fixed, moving

    return make


@pytest.fixture
def preparation():
    """Factory of preparations: a small grid of 1.2 mm voxels in the middle of each image."""

    def make(ndim=3, **settings):
        shape = {3: (24, 24, 24), 2: (36, 36)}[ndim]
        return Preparation(**{"shape": shape, "spacing_mm": 1.2, "intensity": "minmax", **settings})

    return make
