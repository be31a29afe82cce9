"""A small textured ball, and a pair of it with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.uncertainty.known import KnownPair, known_pair
from verimorph.uncertainty.scale import fit_scale


def textured_ball(seed: int = 0) -> Image:
    """A ball of 28 mm radius with texture, in air, 40 x 44 x 36 voxels of 2 mm."""
    random = np.random.default_rng(seed)
    shape = (40, 44, 36)
    texture = ndimage.gaussian_filter(random.standard_normal(shape), 2.0)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    ball = np.sqrt(((index - np.array([20.0, 22.0, 18.0]).reshape(3, 1, 1, 1)) ** 2).sum(0)) < 14
    values = np.where(ball, 100 + 200 * texture / np.abs(texture).max(), 0).astype(np.float32)
    return Image.from_array(values, Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0])))


@pytest.fixture(scope="session")
def head() -> Image:
    return textured_ball()


@pytest.fixture(scope="session")
def pair(head: Image) -> KnownPair:
    return known_pair(head, seed=4)


@pytest.fixture
def quick_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits of a moment."""

    def quick(some, **_):
        return fit_scale(some, networks=1, steps=20)

    monkeypatch.setattr("verimorph.uncertainty.scale.fit_scale", quick)
