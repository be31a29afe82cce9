"""What a solver tells while it works, and when it has converged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Step:
    """One evaluation of the objective."""

    stage: str
    level: int
    """Shrink factor of the level; 1 is full size."""
    iteration: int
    value: float
    """Lower is better."""


@dataclass(frozen=True)
class Event(Step):
    """A step, and how far the whole job is."""

    iterations: int
    """At most so many at this level."""
    fraction: float
    """Part of the whole job that is done, 0 to 1, by estimated cost."""


@dataclass
class Recorder:
    """Keeps the history of a registration and passes it on to whoever watches.

    ``budget`` is the estimated cost of the whole job (voxels times iterations); solvers announce what they spend.
    """

    watcher: Callable[[Event], None] | None = None
    budget: float = 1.0
    spent: float = 0.0
    history: list[Step] = field(default_factory=list)
    _finished: float = 0.0
    _told: float = 0.0

    def record(self, stage: str, level: int, iteration: int, iterations: int, value: float, cost: float) -> None:
        """Note one evaluation."""
        self.spent += cost
        self.history.append(Step(stage, level, iteration, value))
        if self.watcher is not None:
            self._told = max(self._told, min(self.spent / self.budget, 0.99))
            fraction = self._told
            self.watcher(Event(stage, level, iteration, value, iterations, fraction))

    def skip(self, cost: float) -> None:
        """Count work that turned out not to be needed as done."""
        self.spent += max(cost, 0.0)

    def reach(self, cost: float) -> None:
        """Count a stage of that planned cost as done, however early it ended."""
        self._finished += cost
        self.spent = self._finished


def has_converged(values: list[float], *, window: int = 10, threshold: float = 1e-4) -> bool:
    """Tell whether the objective has stopped falling.

    A line is fitted to the last ``window`` values (as ANTs does); converged when it falls by less than ``threshold``
    times the drop from the first value, per iteration.

    >>> has_converged([1 - 0.1 * k for k in range(12)])
    False
    >>> has_converged([0.0] + [-1.0] * 11)
    True
    """
    if len(values) <= window:
        return False
    recent = np.array(values[-window:])
    at = np.arange(window) - (window - 1) / 2
    slope = float(at @ (recent - recent.mean()) / (at @ at))
    drop = max(values) - min(values)
    return -slope < threshold * max(drop, 1e-12)
