"""Terms: a measure with its settings, over a dictionary of named tensors.

Names: ``fixed``, ``moving``, ``moved``, ``field``, ``velocity``, ``inverse``, ``fixed_mask``, ``moved_mask``,
``labels/fixed``, ``labels/moved``, ``points/fixed``, ``features/fixed`` and so on. A name may carry a direction (or the
stage of a model) in front and a level, the shrink factor of its grid, behind: ``backward/moved@2``, ``stage1/moved``.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from verimorph.errors import InputError, OptionError, nearest
from verimorph.objective._reduce import Reduction, common_mask, spacing_of
from verimorph.objective.registry import Row, row

Tensors = Mapping[str, Tensor]

#: What may stand before a tensor's name: the direction of a pass, the stage of a model.
DIRECTION = re.compile(r"forward|backward|stage[1-9]\d*")
_FRONT = re.compile(rf"^(({DIRECTION.pattern})/)+")


@runtime_checkable
class ObjectiveTerm(Protocol):
    """What an objective adds up. Modules with parameters (critics, learned metrics) are terms like any other."""

    needs: tuple[str, ...]
    passes: tuple[str, ...]

    def __call__(
        self,
        tensors: Tensors,
        *,
        spacing: tuple[float, ...] | None = None,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
        map: bool = False,
    ) -> Tensor: ...


def key(name: str, direction: str | None = None, level: int = 1) -> str:
    """Name of a tensor with direction and level: ``key("moved", "backward", 2)`` is ``backward/moved@2``."""
    front = name if direction is None else f"{direction}/{name}"
    return front if level == 1 else f"{front}@{level}"


def base_name(name: str) -> str:
    """A tensor's name without direction, stage and level."""
    return _FRONT.sub("", name.partition("@")[0])


def lookup(tensors: Tensors, name: str, asked_by: str) -> Tensor:
    """The tensor of a name, or an error that says which term misses it."""
    if name not in tensors:
        raise InputError(f"term '{asked_by}' needs the tensor '{name}', which is not there{nearest(name, tensors)}")
    return tensors[name]


def _reference(source: Tensor | None) -> tuple[Callable[[], Tensor | None], int]:
    """What tells later whether a tensor is still the same, without keeping it alive."""
    return ((lambda: None), 0) if source is None else (weakref.ref(source), source._version)


class _Kept:
    """Statistics of the last fixed image and mask, valid while both are the same unchanged tensors."""

    def __init__(self) -> None:
        self._sources: tuple[Any, ...] = ()
        self._value: Any = None

    def get(self, make: Callable[[], Any], *sources: Tensor | None) -> Any:
        same = len(self._sources) == len(sources) and all(
            reference() is source and (source is None or version == source._version)
            for (reference, version), source in zip(self._sources, sources, strict=True)
        )
        if not same:
            self._value = make()
            self._sources = tuple(_reference(source) for source in sources)
        return self._value


class Term(nn.Module):
    """One row of the table with its settings.

    Parameters
    ----------
    name
        Of the row, for instance ``lncc``.
    direction, level
        Which of several passes, stages of a model, and levels it reads (``backward``, ``stage1``; shrink factor 2).
    on
        For a regulariser: ``field`` (the forward displacement), ``velocity`` (raw parameters) or ``inverse``.
    settings
        Keyword settings of the measure.

    Attributes
    ----------
    needs
        Names of the tensors it reads; those it can do without are in ``optional``.
    passes
        Further forward passes it asks for.
    """

    def __init__(
        self, name: str, *, direction: str | None = None, level: int = 1, on: str | None = None, **settings: Any
    ) -> None:
        super().__init__()
        self.row: Row = row(name)
        known = self.row.options()
        for setting in settings:
            if setting not in known:
                raise OptionError(f"term '{name}' has no setting '{setting}'{nearest(setting, known)}")
        if on is not None and on not in self.row.on:
            allowed = f"; it acts on {' or '.join(self.row.on)}" if self.row.on else ""
            raise OptionError(f"term '{name}' cannot act on '{on}'{allowed}")
        self.settings = {**self.row.settings, **settings}
        self.direction, self.level, self.on = direction, level, on
        self._inputs = {argument: self._key(tensor) for argument, tensor in self.row.inputs.items()}
        if on is not None:
            self._inputs[next(iter(self.row.inputs))] = self._key(on)
        self._optional = {argument: self._key(tensor) for argument, tensor in self.row.optional.items()}
        self._masks = tuple(self._key(tensor) for tensor in self.row.masks)
        self.needs: tuple[str, ...] = tuple(self._inputs.values())
        self.optional: tuple[str, ...] = (*self._optional.values(), *self._masks)
        self.passes: tuple[str, ...] = self.row.passes
        self._kept = _Kept()

    def _key(self, name: str) -> str:
        return key(name, self.direction, self.level)

    def extra_repr(self) -> str:
        """Name and settings, for ``print``."""
        place = {"direction": self.direction, "level": self.level if self.level != 1 else None, "on": self.on}
        shown = {**{k: v for k, v in place.items() if v is not None}, **self.settings}
        return ", ".join([self.row.name, *(f"{name}={value}" for name, value in shown.items())])

    def forward(
        self,
        tensors: Tensors,
        *,
        spacing: tuple[float, ...] | None = None,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
        map: bool = False,
    ) -> Tensor:
        """Value of the term (lower is better), or its local values where ``map``.

        Parameters
        ----------
        tensors
            Named tensors.
        spacing
            Of the finest grid, in millimetres; a term at level n takes n times that. None: voxel units.
        weight
            Map of multipliers on the term's grid.
        """
        arguments: dict[str, Any] = {
            argument: lookup(tensors, name, self.row.name) for argument, name in self._inputs.items()
        }
        arguments |= {argument: tensors[name] for argument, name in self._optional.items() if name in tensors}
        mask = common_mask(*(tensors.get(name) for name in self._masks))
        if self.row.accepts("mask"):
            arguments["mask"] = mask
        if weight is not None:
            if not self.row.accepts("weight") or "weight" in self._optional:
                raise OptionError(f"term '{self.row.name}' takes no weight map; give a number")
            arguments["weight"] = weight
        if spacing is not None and self.row.accepts("spacing"):
            arguments["spacing"] = tuple(step * self.level for step in spacing)
        if map:
            if not self.row.accepts("map"):
                raise OptionError(f"term '{self.row.name}' is a measure of the whole image: it has no local values")
            arguments["map"] = True
        if self.row.prepare is not None and not map:
            arguments["statistics"] = self._statistics(arguments["fixed"], tensors, mask)
        return self.row.measure(**arguments, **self.settings, reduction=reduction)

    def _statistics(self, fixed: Tensor, tensors: Tensors, mask: Tensor | None) -> Any:
        worth = not fixed.requires_grad and fixed.dtype in (torch.float32, torch.float64)
        if not worth or self.row.prepare is None or self.settings.get("radius_mm") is not None:
            return None
        prepare = self.row.prepare
        sources = (fixed, *(tensors.get(name) for name in self._masks))
        return self._kept.get(lambda: prepare(fixed, mask=mask, **self.settings), *sources)


#: Names of tensors that hold vectors in voxels: they shrink with the grid.
_VECTORS = frozenset({"field", "velocity", "velocity_mean", "inverse", "known_field", "parameters", "teacher/field"})


def pooled(name: str, tensor: Tensor, factor: int) -> Tensor:
    """A named tensor on a grid ``factor`` times coarser.

    Images, labels and features are block means; masks keep blocks that are inside by more than half; vectors are block
    means divided by the factor; points are carried along. Voxels that fill no whole block are left out.
    """
    base = base_name(name)
    if base.startswith("points/"):
        return tensor if base.endswith("weight") else (tensor + 0.5) / factor - 0.5
    if tensor.ndim not in (4, 5):
        return tensor
    pool = torch.nn.functional.avg_pool2d if tensor.ndim == 4 else torch.nn.functional.avg_pool3d
    kernel = [min(factor, length) if length > 1 else 1 for length in tensor.shape[2:]]
    result = pool(tensor if tensor.is_floating_point() else tensor.float(), kernel)
    if base in _VECTORS:
        return result / result.new_tensor(kernel).view(1, -1, *(1,) * (tensor.ndim - 2))
    if base == "velocity_log_variance":
        return result - 2 * result.new_tensor(kernel).log().view(1, -1, *(1,) * (tensor.ndim - 2))
    if base.endswith("mask"):
        return (result > 0.5).to(result.dtype)
    return result


class MultiScale(nn.Module):
    """A term taken on several block-averaged grids and averaged.

    Parameters
    ----------
    term
        Any term.
    scales
        Shrink factors, 1 the grid itself.
    weights
        One a scale, summing to anything; equal where None. The value is their weighted mean.
    """

    def __init__(self, term: ObjectiveTerm, scales: Sequence[int], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not scales or min(scales) < 1:
            raise OptionError(f"scales {tuple(scales)} must be whole shrink factors from 1")
        if weights is not None and len(weights) != len(scales):
            raise OptionError(f"{len(weights)} weights for {len(scales)} scales")
        self.term = term
        self.scales = tuple(scales)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self.scales)
        self.needs, self.passes = term.needs, term.passes

    def forward(
        self,
        tensors: Tensors,
        *,
        spacing: tuple[float, ...] | None = None,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
        map: bool = False,
    ) -> Tensor:
        """Weighted mean of the term over the scales; there is no map, as the grids differ."""
        if map:
            raise OptionError("a multi-scale term has no single map; ask the term itself")
        wanted = {*self.needs, *getattr(self.term, "optional", ())}
        total: Tensor | float = 0.0
        for scale, share in zip(self.scales, self.weights, strict=True):
            coarse = {name: pooled(name, tensors[name], scale) for name in wanted if name in tensors}
            steps = None if spacing is None else tuple(step * scale for step in spacing_of(spacing, len(spacing)))
            part = None if weight is None else pooled("weight", weight, scale)
            chosen = tensors if scale == 1 else coarse
            total = total + share * self.term(chosen, spacing=steps, weight=part, reduction=reduction)
        assert isinstance(total, Tensor)
        return total / sum(self.weights)


class FeatureSpace(nn.Module):
    """A similarity of features: both images go through an extractor, then through a term.

    Parameters
    ----------
    extractor
        Module from images (b, c, *space) to features (b, k, *space'); its parameters belong to the term, frozen or not.
    term
        A term over ``fixed`` and ``moved`` (``mse``, ``lncc``, ...); masks are averaged to the features' grid.
    """

    def __init__(self, extractor: nn.Module, term: Term) -> None:
        super().__init__()
        self.extractor, self.term = extractor, term
        self.needs, self.passes, self.optional = term.needs, term.passes, term.optional

    def forward(
        self,
        tensors: Tensors,
        *,
        spacing: tuple[float, ...] | None = None,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
        map: bool = False,
    ) -> Tensor:
        """The term's value on the features of both images."""
        features = {name: self.extractor(lookup(tensors, name, "feature space")) for name in self.needs}
        first = next(iter(features.values()))
        shape, full = first.shape[2:], tensors[self.needs[0]].shape[2:]
        for name in self.optional:
            if name in tensors:
                features[name] = (_resized(tensors[name], shape) > 0.5).to(first.dtype)
        part = None if weight is None else _resized(weight, shape)
        steps = spacing
        if spacing is not None:
            steps = tuple(step * length / short for step, length, short in zip(spacing, full, shape, strict=True))
        return self.term(features, spacing=steps, weight=part, reduction=reduction, map=map)


def _resized(map_: Tensor, shape: torch.Size) -> Tensor:
    return map_ if map_.shape[2:] == shape else torch.nn.functional.interpolate(map_.float(), shape, mode="area")
