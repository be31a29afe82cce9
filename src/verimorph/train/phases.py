"""What a phase of training is, as plain data: how long, which weights move, by which optimiser, to lower what."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from verimorph.errors import OptionError, nearest
from verimorph.objective import Objective
from verimorph.train.passes import base_of, wanted

OPTIMISERS: Mapping[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
SCHEDULES = ("constant", "cosine", "poly")


def _expression(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise OptionError(f"'{text}' is no regular expression ({error})") from None


@dataclass(frozen=True)
class Optimiser:
    """An optimiser and how its step length changes.

    Attributes
    ----------
    name
        ``adam``, ``adamw``, ``sgd``.
    lr
        Step length at its largest.
    schedule
        ``constant``; ``cosine``, ``lr (f + (1 - f) (1 + cos(pi t)) / 2)``; ``poly``, ``lr (f + (1 - f) (1 - t)^power)``
        with t from 0 to 1 over the phase and f = ``final``.
    warmup
        Steps over which the step length first rises from 0, linearly.
    settings
        Further keyword arguments of the torch optimiser: ``weight_decay``, ``betas``, ``momentum``, ``amsgrad``, ...
    """

    name: str = "adam"
    lr: float = 1e-4
    schedule: str = "constant"
    power: float = 0.9
    final: float = 0.0
    warmup: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in OPTIMISERS:
            raise OptionError(f"unknown optimiser '{self.name}'{nearest(self.name, OPTIMISERS)}")
        if self.schedule not in SCHEDULES:
            raise OptionError(f"unknown schedule '{self.schedule}'{nearest(self.schedule, SCHEDULES)}")
        if not self.lr > 0:
            raise OptionError(f"lr is {self.lr}; give a positive step length")
        self.settled()  # a setting it cannot take is better refused before data are read

    def settled(self) -> dict[str, Any]:
        """Its name and settings, those of torch's default included; step lengths are left out."""
        settings = self.build([nn.Parameter(torch.zeros(1))]).defaults
        return {"name": self.name, **{name: value for name, value in settings.items() if name != "lr"}}

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser over some weights."""
        known = [name for name in inspect.signature(OPTIMISERS[self.name]).parameters if name not in ("params", "lr")]
        for name in self.settings:
            if name not in known:
                raise OptionError(f"optimiser '{self.name}' has no setting '{name}'{nearest(name, known)}")
        try:
            return OPTIMISERS[self.name](parameters, lr=self.lr, **self.settings)
        except (TypeError, ValueError) as error:
            raise OptionError(f"optimiser '{self.name}': {error}") from None
        except (IndexError, RuntimeError) as error:
            raise OptionError(f"optimiser '{self.name}' cannot take {dict(self.settings)} ({error})") from None

    def at(self, step: int, steps: int, share: float | None = None) -> float:
        """Step length at a step (from 0) of a phase of ``steps``; ``share`` of the way done, where time decides it."""
        t = min(step / max(steps, 1) if share is None else share, 1.0)
        shape = 1.0
        if self.schedule == "cosine":
            shape = (1 + math.cos(math.pi * t)) / 2
        elif self.schedule == "poly":
            shape = (1 - t) ** self.power
        rise = min((step + 1) / self.warmup, 1.0) if self.warmup > 0 else 1.0
        return self.lr * rise * (self.final + (1 - self.final) * shape)


@dataclass(frozen=True)
class Part:
    """Some weights and the optimiser that moves them.

    Attributes
    ----------
    match
        Regular expression, found anywhere in a weight's name; weights of an objective's terms have ``objective.`` in
        front.
    turns
        Where parts alternate: how many steps in a row are this part's before the next one's turn. None: every step.
    objective
        What this part lowers, where it is not the phase's.
    """

    match: str = ""
    optimiser: Optimiser = field(default_factory=Optimiser)
    turns: int | None = None
    objective: Objective | None = None

    def __post_init__(self) -> None:
        _expression(self.match)
        if self.turns is not None and self.turns < 1:
            raise OptionError(f"turns of a part is {self.turns}; give 1 or more")


@dataclass(frozen=True)
class Phase:
    """One stretch of training. Its optimisers start anew.

    Attributes
    ----------
    steps
        Steps of the optimiser.
    objective
        What is lowered.
    parts
        Weights that no part matches stay as they are; one that several match belongs to the first.
    freeze
        Regular expressions of weights that do not move, whatever part matches them.
    start_from
        A trained model (folder) whose weights the phase starts with.
    strict
        Whether those have to fit in every name and shape; else what fits is taken.
    symmetric
        Train every pair in both directions.
    """

    steps: int
    objective: Objective
    name: str = "train"
    parts: tuple[Part, ...] = (Part(),)
    freeze: tuple[str, ...] = ()
    start_from: str | None = None
    strict: bool = True
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise OptionError(f"phase '{self.name}' has {self.steps} steps; give 1 or more")
        for text in self.freeze:
            _expression(text)
        for objective in self.objectives:
            if objective.is_zero:
                raise OptionError(
                    f"phase '{self.name}': nothing is left to lower, the weight of {' and of '.join(objective.names)} "
                    "is 0; give one above 0"
                )
            if self.symmetric and any(base_of(name) == "known_field" for name in wanted(objective)):
                raise OptionError(
                    f"phase '{self.name}': symmetric trains every pair in both directions, and 'known_field' is known "
                    "in one; leave one of them out"
                )

    @property
    def objectives(self) -> list[Objective]:
        """What is lowered, each once: the phase's objective and those of its parts."""
        found = (self.objective, *(part.objective for part in self.parts))
        return list({id(one): one for one in found if one is not None}.values())

    def turn(self, step: int) -> tuple[int, ...]:
        """Numbers of the parts that move at a step of this phase (from 0)."""
        always = [number for number, part in enumerate(self.parts) if part.turns is None]
        cycle = [number for number, part in enumerate(self.parts) for _ in range(part.turns or 0)]
        return tuple(sorted([*always, *([cycle[step % len(cycle)]] if cycle else [])]))


def assign(named: Iterable[tuple[str, nn.Parameter]], phase: Phase) -> list[list[nn.Parameter]]:
    """The weights of every part of a phase; all others are frozen (``requires_grad`` off).

    Raises
    ------
    OptionError
        If a pattern matches no weight: it is misspelt.
    """
    frozen, parts = [_expression(text) for text in phase.freeze], [_expression(part.match) for part in phase.parts]
    chosen: list[list[nn.Parameter]] = [[] for _ in parts]
    matched: set[str] = set()
    names = []
    for name, parameter in named:
        names.append(name)
        still = [pattern.pattern for pattern in frozen if pattern.search(name)]
        owner = next((number for number, pattern in enumerate(parts) if pattern.search(name)), None)
        matched.update(still)
        parameter.requires_grad_(not still and owner is not None)
        if owner is not None:
            matched.add(parts[owner].pattern)
            if not still:
                chosen[owner].append(parameter)
    fronts = {name.partition(".")[0] for name in names}
    for pattern in (*frozen, *parts):
        if pattern.pattern not in matched:
            raise OptionError(
                f"phase '{phase.name}': no weight's name has '{pattern.pattern}'{nearest(pattern.pattern, fronts)}"
            )
    for number, weights in enumerate(chosen):
        if not weights:
            raise OptionError(f"phase '{phase.name}': all weights of '{phase.parts[number].match}' are frozen")
    return chosen


def rest_frozen(module: nn.Module) -> None:
    """Put layers whose weights are all frozen in evaluation mode, so that their running statistics stay as they are."""
    for child in module.modules():
        weights = list(child.parameters(recurse=True))
        if weights and not any(weight.requires_grad for weight in weights):
            child.eval()


__all__ = ["OPTIMISERS", "SCHEDULES", "Optimiser", "Part", "Phase", "assign", "rest_frozen"]
