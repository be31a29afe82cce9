"""The golden pair of the reference document, textured images, and the compiled kernels against plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def golden() -> tuple[Tensor, Tensor, Tensor]:
    """Fixed, moved and field of 16^3 voxels in closed form (float64)."""
    i, j, k = np.meshgrid(*[np.arange(16.0)] * 3, indexing="ij")
    fixed = 0.5 + 0.5 * np.sin(0.7 * i + 0.3 * j) * np.cos(0.4 * k)
    moved = 0.5 + 0.5 * np.sin(0.7 * i + 0.3 * j + 0.5) * np.cos(0.4 * k + 0.2)
    field = np.stack(
        [
            0.3 * np.sin(0.4 * i) * np.cos(0.3 * j),
            0.2 * np.cos(0.5 * j + 0.2 * k),
            0.25 * np.sin(0.3 * k + 0.1 * i),
        ]
    )
    return torch.tensor(fixed)[None, None], torch.tensor(moved)[None, None], torch.tensor(field)[None]


@pytest.fixture
def textured():
    """Factory of smooth random images in [0, 1]: ``textured(shape, seed, batch)`` (float64)."""

    def make(shape: tuple[int, ...], seed: int = 0, batch: int = 1, channels: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(batch, channels, *(max(3, n // 2) for n in shape), generator=generator, dtype=torch.float64)
        mode = "bilinear" if len(shape) == 2 else "trilinear"
        image = torch.nn.functional.interpolate(coarse, size=shape, mode=mode)
        noise = torch.rand(image.shape, generator=generator, dtype=torch.float64)
        return 0.05 + 0.85 * image + 0.1 * noise

    return make
