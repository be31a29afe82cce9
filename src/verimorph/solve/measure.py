"""Similarity measures in the form a solver needs: a value, and its gradient with respect to what was warped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.errors import OptionError, nearest
from verimorph.grid import Grid
from verimorph.objective import similarity as terms
from verimorph.objective.grammar import build_term, parse, validate
from verimorph.objective.registry import TERMS, row
from verimorph.objective.terms import ObjectiveTerm
from verimorph.solve.pyramid import Volume


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


def window_radius(grid: Grid, radius: float | Sequence[int]) -> tuple[int, ...]:
    """Radius in voxels of a window that is about cubic in the world: full along the finest axis, never past the image.

    A radius for every axis is taken as it is.

    >>> window_radius(Grid((64, 64, 20), np.diag([1.0, 1.0, 4.0, 1.0])), 2)
    (2, 2, 1)
    """
    finest = grid.spacing.min()
    if not isinstance(radius, int | float):
        return tuple(min(r, (n - 1) // 2) for r, n in zip(radius, grid.shape, strict=True))
    radii = [max(1, round(radius * finest / s)) for s in grid.spacing]
    return tuple(min(r, (n - 1) // 2) for r, n in zip(radii, grid.shape, strict=True))


class LocalCorrelation:
    """Squared local normalised correlation in a window (``lncc``): the default for all images.

    It fits a straight line from moving to fixed intensities in every window, so it follows bias fields and inverted
    contrast.
    """

    name = "lncc"

    def __init__(self, radius: float | Sequence[int] = 2, epsilon: float = 1e-5) -> None:
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

    def __init__(self, radius: int | Sequence[int] = 2, dilation: int | Sequence[int] = 2) -> None:
        self.radius, self.dilation = radius, dilation

    def _describe(self, volume: Volume) -> Tensor:
        limit = [(n - 1) // 2 for n in volume.grid.shape]
        radius, dilation = (
            tuple(max(least, min(r, n)) for r, n in zip(steps, limit, strict=True))
            # Neighbours are at least a voxel away; where there are one or two slices the border is repeated.
            for least, own in ((0, self.radius), (1, self.dilation))
            for steps in ([own] * len(limit) if isinstance(own, int) else own,)
        )
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


class AnyTerm:
    """Any similarity term of the objective, differentiated by autograd."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        self.term, _ = build_term(name, **settings)

    def channels(self, moving: Volume) -> Tensor:
        return moving.tensor

    def prepare(self, fixed: Volume) -> Prepared:
        return _PreparedTerm(self.term, fixed)


class _PreparedTerm:
    def __init__(self, term: ObjectiveTerm, fixed: Volume) -> None:
        self.term, self.spacing = term, tuple(float(s) for s in fixed.grid.spacing)
        self.tensors = {"fixed": fixed.tensor}
        if fixed.mask is not None:
            self.tensors["fixed_mask"] = fixed.mask

    def value_and_gradient(self, moved: Tensor) -> tuple[float, Tensor]:
        with torch.enable_grad():
            leaf = moved.detach().requires_grad_()
            value = self.term(self.tensors | {"moved": leaf}, spacing=self.spacing)
            (gradient,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), gradient


def make_measure(text: str, *, radius: float = 2) -> Measure:
    """Build a measure from the grammar of terms.

    Parameters
    ----------
    text
        Any similarity term of :mod:`verimorph.objective`, with settings and sums: ``lncc``, ``mi``, ``mse``, ``mind``,
        ``lncc:radius=4+mind:weight=0.5``. ``auto`` is ``lncc``. The four named ones have compiled gradients.
    radius
        Window radius of ``lncc`` where the text names none: voxels of the finest axis.

    Raises
    ------
    OptionError
        For an unknown term or setting; the nearest valid one is named.

    Examples
    --------
    >>> make_measure("lncc:radius=4+mind:weight=0.5").name
    'lncc+mind'
    """
    parts: list[tuple[float, Measure]] = []
    for entry in parse("lncc" if text == "auto" else text):
        settings = dict(entry)
        name = settings.pop("name")
        if row(name).group != "similarity":
            similar = [known for known, entry in TERMS.items() if entry.group == "similarity"]
            raise OptionError(f"'{name}' does not compare two images{nearest(name, similar)}")
        weight = validate(name, settings).pop("weight")
        settings.pop("weight", None)
        if not isinstance(weight, int | float):
            raise OptionError(f"the weight of '{name}' in '{text}' must be a number here")
        parts.append((float(weight), _fast_form(name, settings, radius) or AnyTerm(name, settings)))
    return parts[0][1] if len(parts) == 1 and parts[0][0] == 1 else WeightedSum(parts)


def _fast_form(name: str, settings: dict[str, Any], radius: float) -> Measure | None:
    """Return the measure with a compiled gradient, if these settings have one."""
    if name == "lncc" and set(settings) <= {"radius"}:
        return LocalCorrelation(settings.get("radius", radius))
    if name == "mi" and set(settings) <= {"bins"}:
        return MutualInformation(**settings)
    if name == "mse" and not settings:
        return SquaredDifference()
    if name == "mind" and set(settings) <= {"radius", "dilation"}:
        return SelfSimilarity(**settings)
    return None
