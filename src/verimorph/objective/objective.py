"""The objective: a weighted list of terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from verimorph.errors import OptionError
from verimorph.objective.terms import ObjectiveTerm, Tensors, lookup


@dataclass(frozen=True)
class Schedule:
    """A weight that moves from ``start`` to ``stop`` as progress goes from ``begin`` to ``end`` (both in [0, 1]).

    ``shape`` is ``linear``, ``cosine`` (soft at both ends) or ``log`` (even steps of the logarithm).
    """

    start: float
    stop: float
    begin: float = 0.0
    end: float = 1.0
    shape: str = "linear"

    def __post_init__(self) -> None:
        if self.shape not in ("linear", "cosine", "log"):
            raise OptionError(f"unknown shape '{self.shape}' of a schedule; known: linear, cosine, log")
        if self.shape == "log" and min(self.start, self.stop) <= 0:
            raise OptionError("a schedule in steps of the logarithm needs a positive start and stop")
        if not 0 <= self.begin < self.end <= 1:
            raise OptionError(f"a schedule needs 0 <= begin < end <= 1, got {self.begin} and {self.end}")

    def __call__(self, progress: float) -> float:
        """The weight at a progress from 0 to 1."""
        part = min(max((progress - self.begin) / (self.end - self.begin), 0.0), 1.0)
        if self.shape == "log":
            return math.exp(math.log(self.start) + part * (math.log(self.stop) - math.log(self.start)))
        if self.shape == "cosine":
            part = (1 - math.cos(math.pi * part)) / 2
        return self.start + part * (self.stop - self.start)


@dataclass(frozen=True)
class Conditional:
    """A weight that is a function of the condition a model was given: a number, or one an item."""

    function: Callable[[Tensor], Tensor | float]


#: A number, a schedule, a function of the condition, a map (b|1, 1, *space), or the name of a tensor holding a map or
#: one number an item.
Weight: TypeAlias = float | Schedule | Conditional | Tensor | str


class Evaluation(NamedTuple):
    """Total of an objective, and every term's value before weighting."""

    total: Tensor
    values: dict[str, Tensor]


class Objective(nn.Module):
    """Weighted sum of terms over named tensors; lower is better.

    Parameters
    ----------
    terms
        Pairs of a term and its weight, or triples with a name for the report first.

    Attributes
    ----------
    needs, passes
        All tensors and further forward passes that the terms ask for.
    weight_names
        Tensors that hold weights.
    """

    def __init__(self, terms: Iterable[tuple[ObjectiveTerm, Weight] | tuple[str, ObjectiveTerm, Weight]]) -> None:
        super().__init__()
        self.terms = nn.ModuleList()
        self.names: list[str] = []
        self._weights: list[Weight] = []
        for entry in terms:
            name, term, weight = entry if len(entry) == 3 else (_title(entry[0]), *entry)
            same = sum(known == name or known.startswith(f"{name}#") for known in self.names)
            self.names.append(name if same == 0 else f"{name}#{same + 1}")
            self.terms.append(term if isinstance(term, nn.Module) else _Wrapped(term))
            if isinstance(weight, Tensor):
                self.register_buffer(f"weight_map_{len(self._weights)}", weight, persistent=False)
                weight = f"!{len(self._weights)}"
            self._weights.append(weight)
        self.weight_names = tuple(w for w in self._weights if isinstance(w, str) and not w.startswith("!"))
        if not self.names:
            raise OptionError("an objective needs at least one term")
        self.needs = tuple(sorted({name for term in self.terms for name in term.needs}))
        self.passes = tuple(sorted({name for term in self.terms for name in term.passes}))

    @property
    def is_zero(self) -> bool:
        """Whether the weight of every term is 0, from beginning to end."""
        ends = [(w.start, w.stop) if isinstance(w, Schedule) else (w,) for w in self._weights]
        return all(isinstance(value, int | float) and value == 0 for value in sum(ends, ()))

    def _weight(self, index: int, tensors: Tensors, progress: float, condition: Tensor | None) -> float | Tensor:
        weight = self._weights[index]
        if isinstance(weight, Schedule):
            return weight(progress)
        if isinstance(weight, Conditional):
            if condition is None:
                raise OptionError(f"the weight of '{self.names[index]}' depends on a condition, and none was given")
            return weight.function(condition)
        if isinstance(weight, str):
            if weight.startswith("!"):
                return getattr(self, f"weight_map_{weight[1:]}")
            return lookup(tensors, weight, self.names[index])
        return float(weight)

    def forward(
        self,
        tensors: Tensors,
        *,
        spacing: tuple[float, ...] | None = None,
        progress: float = 0.0,
        condition: Tensor | None = None,
    ) -> Evaluation:
        """Evaluate all terms.

        Parameters
        ----------
        tensors
            Named tensors, as the terms need them.
        spacing
            Millimetres of the finest grid; None for voxel units.
        progress
            Share of the work done, from 0 to 1, for schedules.
        condition
            What the model was conditioned on, for weights that depend on it.
        """
        total: Tensor | None = None
        values: dict[str, Tensor] = {}
        for index, (name, term) in enumerate(zip(self.names, self.terms, strict=True)):
            weight = self._weight(index, tensors, progress, condition)
            if isinstance(weight, Tensor) and weight.ndim > 2:
                value = weighted = term(tensors, spacing=spacing, weight=weight)
            elif isinstance(weight, Tensor) and weight.numel() > 1:
                each = term(tensors, spacing=spacing, reduction="none")
                value, weighted = each.mean(), (each * weight.reshape(-1).to(each)).mean()
            elif isinstance(weight, float) and weight == 0.0:
                continue
            else:
                value = term(tensors, spacing=spacing)
                weighted = value * weight
            values[name] = value.detach()
            total = weighted if total is None else total + weighted
        if total is None:
            some = next(iter(tensors.values()))
            total = torch.zeros((), dtype=some.dtype, device=some.device)
        return Evaluation(total, values)


class _Wrapped(nn.Module):
    """A term that is no module, so that it can stand in the list of modules."""

    def __init__(self, term: ObjectiveTerm) -> None:
        super().__init__()
        self.call, self.needs, self.passes = term, term.needs, term.passes

    def forward(self, tensors: Tensors, **options: object) -> Tensor:
        return self.call(tensors, **options)  # type: ignore[arg-type]


def _title(term: ObjectiveTerm) -> str:
    inner = getattr(term, "term", term)
    row = getattr(inner, "row", None)
    return row.name if row is not None else type(term).__name__
