"""Similarity measures in the form a solver needs: a value, and its gradient with respect to what was warped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.errors import OptionError, nearest
from verimorph.grid import Grid
from verimorph.objective import similarity as terms
from verimorph.solve.pyramid import Volume

NAMES = ("lncc", "mi", "mse", "mind")


@runtime_checkable
class Prepared(Protocol):
    """A measure bound to one fixed image at one level."""

    def value_and_gradient(self, moved: Float[Tensor, "1 c *space"]) -> tuple[float, Float[Tensor, "1 c *space"]]:
        """Return the value (lower is better) and its gradient with respect to the moved channels."""
        ...


@runtime_checkable
class Measure(Protocol):
    """How two images are compared."""

    name: str

    def channels(self, moving: Volume) -> Float[Tensor, "1 c *space"]:
        """Return what is warped: the moving image, or features of it."""
        ...

    def prepare(self, fixed: Volume) -> Prepared:
        """Bind to a fixed image: what does not change between iterations is computed here."""
        ...


def window_radius(grid: Grid, radius: float) -> tuple[int, ...]:
    """Radius in voxels of a window that is about cubic in the world: full along the finest axis, never past the image.

    >>> window_radius(Grid((64, 64, 20), np.diag([1.0, 1.0, 4.0, 1.0])), 2)
    (2, 2, 1)
    """
    finest = grid.spacing.min()
    radii = [max(1, round(radius * finest / s)) for s in grid.spacing]
    return tuple(min(r, (n - 1) // 2) for r, n in zip(radii, grid.shape, strict=True))


class LocalCorrelation:
    """Squared local normalised correlation in a window (``lncc``): the default for all images.

    It fits a straight line from moving to fixed intensities in every window, so it follows bias fields and inverted
    contrast.
    """

    name = "lncc"

    def __init__(self, radius: float = 2, epsilon: float = 1e-5) -> None:
        self.radius, self.epsilon = radius, epsilon

    def channels(self, moving: Volume) -> Tensor:
        return moving.tensor

    def prepare(self, fixed: Volume) -> Prepared:
        return _PreparedCorrelation(fixed, window_radius(fixed.grid, self.radius), self.epsilon)


class _PreparedCorrelation:
    def __init__(self, fixed: Volume, radius: Sequence[int], epsilon: float) -> None:
        self.fixed, self.radius = fixed.tensor, tuple(radius)
        self.statistics = terms.lncc_statistics(fixed.tensor, self.radius, mask=fixed.mask)
        window = float(np.prod([2 * r + 1 for r in self.radius]))
        # The term compares sums over the window; epsilon is meant for variances.
        self.epsilon = (epsilon * window) ** 2

    def value_and_gradient(self, moved: Tensor) -> tuple[float, Tensor]:
        value, gradient = terms.lncc_value_and_gradient(
            self.fixed, moved, self.radius, statistics=self.statistics, epsilon=self.epsilon
        )
        return float(value), gradient  # type: ignore[return-value]


class MutualInformation:
    """Mutual information of the joint histogram (``mi``), cubic B-spline Parzen window."""

    name = "mi"

    def __init__(self, bins: int = 32) -> None:
        self.bins = bins

    def channels(self, moving: Volume) -> Tensor:
        return moving.tensor

    def prepare(self, fixed: Volume) -> Prepared:
        return _PreparedInformation(fixed, self.bins)


class _PreparedInformation:
    def __init__(self, fixed: Volume, bins: int) -> None:
        self.fixed, self.mask, self.bins = fixed.tensor, fixed.mask, bins

    def value_and_gradient(self, moved: Tensor) -> tuple[float, Tensor]:
        value, gradient = terms.mutual_information_value_and_gradient(
            self.fixed, moved.clamp(0, 1), self.bins, mask=self.mask
        )
        return float(value), gradient  # type: ignore[return-value]


class SquaredDifference:
    """Mean squared difference (``mse``), for images of one scanner and one contrast."""

    name = "mse"

    def channels(self, moving: Volume) -> Tensor:
        return moving.tensor

    def prepare(self, fixed: Volume) -> Prepared:
        return _PreparedDifference(fixed.tensor, fixed.mask)


class _PreparedDifference:
    def __init__(self, fixed: Tensor, mask: Tensor | None) -> None:
        self.fixed, self.mask = fixed, mask

    def value_and_gradient(self, moved: Tensor) -> tuple[float, Tensor]:
        value, gradient = terms.mse_value_and_gradient(self.fixed, moved, mask=self.mask)
        return float(value), gradient  # type: ignore[return-value]


class SelfSimilarity:
    """Squared difference of MIND-SSC descriptors (``mind``), for images of unlike contrast.

    The descriptors of the moving image are made once a level and warped like 12 images.
    """

    name = "mind"

    def __init__(self, radius: int = 2, dilation: int = 2) -> None:
        self.radius, self.dilation = radius, dilation

    def _describe(self, volume: Volume) -> Tensor:
        limit = [max(0, (n - 1) // 2) for n in volume.grid.shape]
        radius = tuple(min(self.radius, n) for n in limit)
        dilation = tuple(min(self.dilation, n) for n in limit)
        return terms.mind_ssc(volume.tensor, radius, dilation)

    def channels(self, moving: Volume) -> Tensor:
        return self._describe(moving)

    def prepare(self, fixed: Volume) -> Prepared:
        return _PreparedDifference(self._describe(fixed), fixed.mask)


class WeightedSum:
    """Several measures at once, each with a weight."""

    def __init__(self, parts: Sequence[tuple[float, Measure]]) -> None:
        self.parts = list(parts)
        self.name = "+".join(measure.name for _, measure in parts)

    def channels(self, moving: Volume) -> Tensor:
        return torch.cat([measure.channels(moving) for _, measure in self.parts], dim=1)

    def prepare(self, fixed: Volume) -> Prepared:
        counts = [measure.channels(fixed).shape[1] for _, measure in self.parts]
        return _PreparedSum([(w, measure.prepare(fixed)) for w, measure in self.parts], counts)


class _PreparedSum:
    def __init__(self, parts: Sequence[tuple[float, Prepared]], counts: Sequence[int]) -> None:
        self.parts, self.counts = parts, list(counts)

    def value_and_gradient(self, moved: Tensor) -> tuple[float, Tensor]:
        total, gradients = 0.0, []
        for (weight, part), channels in zip(self.parts, moved.split(self.counts, dim=1), strict=True):
            value, gradient = part.value_and_gradient(channels.contiguous())
            total += weight * value
            gradients.append(weight * gradient)
        return total, torch.cat(gradients, dim=1)


_MAKERS = {
    "lncc": (LocalCorrelation, {"radius": float}),
    "mi": (MutualInformation, {"bins": int}),
    "mse": (SquaredDifference, {}),
    "mind": (SelfSimilarity, {"radius": int, "dilation": int}),
}


def make_measure(text: str, *, radius: float = 2) -> Measure:
    """Build a measure from the grammar of terms.

    Parameters
    ----------
    text
        ``lncc``, ``mi``, ``mse``, ``mind``, with settings and sums: ``lncc:radius=4+mind:weight=0.5``. ``auto`` is
        ``lncc``.
    radius
        Window radius of ``lncc`` where the text names none.

    Raises
    ------
    OptionError
        For an unknown measure or setting; the nearest valid one is named.

    Examples
    --------
    >>> make_measure("lncc:radius=4+mind:weight=0.5").name
    'lncc+mind'
    """
    parts: list[tuple[float, Measure]] = []
    for item in text.split("+"):
        name, _, tail = item.strip().partition(":")
        name = "lncc" if name == "auto" else name
        if name not in _MAKERS:
            raise OptionError(f"unknown similarity '{name}' in '{text}'{nearest(name, [*NAMES, 'auto'])}")
        maker, known = _MAKERS[name]
        settings: dict[str, float] = {"radius": radius} if name == "lncc" else {}
        weight = 1.0
        for pair in filter(None, tail.split(",")):
            key, _, value = pair.partition("=")
            key = key.strip()
            if key != "weight" and key not in known:
                raise OptionError(f"unknown setting '{key}' of {name} in '{text}'{nearest(key, [*known, 'weight'])}")
            try:
                number = float(value)
            except ValueError:
                raise OptionError(f"'{key}' of {name} in '{text}' needs a number, got '{value}'") from None
            if key == "weight":
                weight = number
            else:
                settings[key] = known[key](number)
        parts.append((weight, maker(**settings)))
    return parts[0][1] if len(parts) == 1 and parts[0][0] == 1 else WeightedSum(parts)
