"""Tiny networks and phantoms, 2-D, for tests of the training loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class TinyNet(nn.Module):
    """Two convolutions to a displacement, with dropout so that random numbers matter."""

    stride = 1

    def __init__(self, width: int = 6, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(2, width, 3, padding=1), nn.GELU(), nn.Dropout(dropout))
        self.head = nn.Conv2d(width, 2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, *, fixed: Tensor, moving: Tensor, condition: Tensor | None = None) -> dict[str, Tensor]:
        field = self.head(self.encoder(torch.cat([fixed, moving], 1)))
        return {"field": field, "stage1/field": field / 2}


class TinySegmenter(nn.Module):
    stride = 1

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, classes, 1))

    def forward(self, *, image: Tensor, condition: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.net(image)}


def disc(centre: tuple[float, float], radius: float = 4.0, side: int = 16) -> Tensor:
    """A soft disc."""
    axes = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    distance = ((axes[0] - centre[0]) ** 2 + (axes[1] - centre[1]) ** 2).sqrt()
    return torch.sigmoid(2 * (radius - distance))


class Phantoms:
    """Pairs of discs; batch n is the same whenever it is asked for."""

    def __init__(self, batch: int = 2) -> None:
        self.batch = batch

    def pair(self, number: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(number)
        shifts = 2 * torch.rand(self.batch, 2, 2, generator=generator) - 1
        images = torch.stack([torch.stack([disc((7.5 + s[0], 7.5 + s[1])) for s in pair.tolist()]) for pair in shifts])
        labels = (images > 0.5).long()
        known = torch.ones(self.batch, 1, dtype=torch.bool)
        return {
            "fixed": images[:, :1].clone(),
            "moving": images[:, 1:].clone(),
            "fixed_labels": labels[:, 0],
            "moving_labels": labels[:, 1],
            "fixed_known": known,
            "moving_known": known.clone(),
            "names": [f"pair{number}-{item}" for item in range(self.batch)],
        }

    def train_batches(self, start: int) -> Iterator[dict[str, Any]]:
        number = start
        while True:
            yield self.pair(number)
            number += 1

    @property
    def validation(self) -> list[dict[str, Any]]:
        return [self.pair(10_000 + number) for number in range(2)]
