"""Both back ends, and fields with known answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from verimorph.field.backend import kernels_in_use, plain_torch


@pytest.fixture(params=["numba", "torch"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once with the compiled kernels and once with plain torch."""
    if request.param == "torch":
        with plain_torch():
            yield "torch"
    else:
        if kernels_in_use() != "numba":
            pytest.skip("compiled kernels are not available")
        yield "numba"


@pytest.fixture(scope="session")
def smooth_noise() -> Callable[..., Tensor]:
    """Factory of smooth random fields: ``smooth_noise(shape, channels, amplitude, seed=0, width=3.0)``.

    ``(1, channels, *shape)`` float32: noise smoothed by SciPy, scaled to a largest value of ``amplitude``.
    """

    def make(shape: tuple[int, ...], channels: int, amplitude: float, seed: int = 0, width: float = 3.0) -> Tensor:
        random = np.random.default_rng(seed)
        noise = random.normal(size=(channels, *shape))
        noise = ndimage.gaussian_filter(noise, (0, *[width] * len(shape)), mode="nearest")
        return torch.from_numpy((noise * amplitude / np.abs(noise).max()).astype(np.float32))[None]

    return make


@pytest.fixture(scope="session")
def positions() -> Callable[..., np.ndarray]:
    """Factory of random indices from ``-reach`` to ``N - 1 + reach``, none within 1e-3 of the rule of inside."""

    def make(shape: tuple[int, ...], count: int, seed: int = 0, reach: float = 2.0) -> np.ndarray:
        random = np.random.default_rng(seed)
        where = random.uniform(-reach, np.array(shape) - 1 + reach, size=(4 * count, len(shape)))
        near_rim = (np.abs(where + 0.5) < 1e-3) | (np.abs(where - (np.array(shape) - 0.5)) < 1e-3)
        return where[~near_rim.any(1)][:count].T.copy()

    return make
