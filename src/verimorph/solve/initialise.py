"""Where to start: candidates, a short rigid descent of each on a coarse copy, the best one wins.

The tools that "just work" do this; those that trust one guess lose the pairs where it is wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from verimorph.errors import OptionError, nearest
from verimorph.solve.linear import LinearObjective, centre_of_mass, principal_axes, solve_linear
from verimorph.solve.measure import Measure
from verimorph.solve.progress import Recorder
from verimorph.solve.pyramid import Level, Volume

STARTS = ("auto", "header", "identity", "centre", "centre-of-mass", "moments", "search")

# With ``auto``, a start by principal axes or a right-angled turn must gain this part more over no likeness at all than
# the best upright start does: bodies have symmetries (left and right, front and back of a limb) that a coarse copy
# cannot tell apart.
_TURN_MARGIN = 0.08

# Starts whose values differ by less than this part of that gain are level, and the one named first wins. Two descents
# into one valley end within a thousandth of each other, and which is lower hangs on the last bit of a sum: it would
# change with the processor, and with it everything that follows.
_LEVEL = 0.01


def find_start(
    method: str,
    *,
    level: Level,
    measure: Measure,
    free_axes: Sequence[bool] | None = None,
    recorder: Recorder | None = None,
) -> tuple[Float[ndarray, "h h"], str]:
    """Return a world matrix (fixed to moving) to start from, and the name of the candidate that won.

    Parameters
    ----------
    method
        ``header`` or ``identity``: world coordinates as they are. ``centre``: middles of the fields of view.
        ``centre-of-mass``: intensity centres. ``moments``: intensity centres and principal axes, the best of the proper
        sign choices. ``search``: all of these and the 24 right-angled turns, each descended. ``auto``: the same, but a
        large turn must win clearly.
    level
        A coarse copy of the pair (some 10 000 voxels are enough).
    measure
        What scores the candidates.

    Raises
    ------
    OptionError
        For an unknown method, or one that turns the image although an axis is frozen.
    """
    if method not in STARTS:
        raise OptionError(f"unknown start '{method}'{nearest(method, STARTS)}, or give a transform file")
    d = level.fixed.grid.ndim
    if method in ("header", "identity"):
        return np.eye(d + 1), method
    frozen = free_axes is not None and not all(free_axes)
    if frozen and method in ("moments", "search"):
        raise OptionError(
            f"a start by {method} turns and shifts along every axis; with a frozen axis use header or centre"
        )

    def shift(vector: np.ndarray) -> np.ndarray:
        """Translation, without its part along frozen axes of the fixed image."""
        if free_axes is not None:
            direction = level.fixed.grid.direction
            vector = direction @ (np.linalg.solve(direction, vector) * np.array(free_axes, dtype=float))
        return _shift(vector)

    centre = shift(level.moving.grid.centre - level.fixed.grid.centre)
    if method == "centre":
        return centre, method
    masses = [_masked_mass(volume) for volume in (level.fixed, level.moving)]
    mass = shift(masses[1] - masses[0])
    if method == "centre-of-mass":
        return mass, method

    objective = LinearObjective(level, measure)
    upright = {"header": np.eye(d + 1), "centre": centre, "centre-of-mass": mass}
    turned = {f"moments {k + 1}": m for k, m in enumerate(_moment_starts(level, masses))}
    unlike = _unlikeness(objective, centre)
    race = _Race(level, measure, free_axes, recorder, objective, unlike)
    if method == "moments":
        return race.run(turned)[:2]
    if frozen:
        turned = {}
    else:
        turned |= {f"turn {k + 1}": m for k, m in enumerate(_right_angled_starts(d, masses))}
    matrix, name, value = race.run(upright)
    if turned:
        other, other_name, other_value = race.run(turned)
        # The margin is a part of what the best upright start gains over no likeness at all.
        margin = (_TURN_MARGIN if method == "auto" else _LEVEL) * max(unlike - value, 0.0)
        if other_value < value - margin:
            return other, other_name
    return matrix, name


@dataclass
class _Race:
    """Descends many starts a little, the promising ones further."""

    level: Level
    measure: Measure
    free_axes: Sequence[bool] | None
    recorder: Recorder | None
    objective: LinearObjective
    unlike: float
    """Value of the measure when nothing corresponds."""

    def run(self, starts: dict[str, np.ndarray]) -> tuple[np.ndarray, str, float]:
        """Return matrix, name and value of the winner.

        Values before any descent choose six, a short rigid descent of those chooses two, a longer one the winner.
        """
        field = [(self.objective.value_and_slope(matrix)[0], name, matrix) for name, matrix in starts.items()]
        for survivors, iterations in ((6, 5), (2, 15)):
            chosen = _leaders(field, survivors, self.unlike)
            field = [self._descend(*entry, iterations) for entry in chosen]
        ((value, name, matrix),) = _leaders(field, 1, self.unlike)
        return matrix, name, value

    def _descend(self, value: float, name: str, matrix: np.ndarray, iterations: int) -> tuple[float, str, np.ndarray]:
        matrix, value = solve_linear(
            level=self.level,
            measure=self.measure,
            start=matrix,
            kind="rigid",
            iterations=iterations,
            free_axes=self.free_axes,
            objective=self.objective,
        )
        if self.recorder is not None:
            self.recorder.record("start", self.level.shrink, 0, 1, value, iterations * self.objective.voxels / 4)
        return value, name, matrix


def _leaders(
    field: Sequence[tuple[float, str, np.ndarray]], count: int, unlike: float
) -> list[tuple[float, str, np.ndarray]]:
    """Return the ``count`` best of ``(value, name, matrix)``, still in their order; of those level, the first ones."""
    left = list(range(len(field)))
    chosen: list[int] = []
    while left and len(chosen) < count:
        best = min(field[k][0] for k in left)
        reach = best + _LEVEL * max(unlike - best, 0.0)
        first = next(k for k in left if field[k][0] <= reach)
        left.remove(first)
        chosen.append(first)
    return [field[k] for k in sorted(chosen)]


def _unlikeness(objective: LinearObjective, matrix: np.ndarray) -> float:
    """Value of the measure when nothing corresponds: the same pair far apart along a diagonal."""
    away = matrix.copy()
    away[:-1, -1] += objective.level.moving.grid.extent
    return objective.value_and_slope(away)[0]


def _shift(vector: np.ndarray) -> np.ndarray:
    matrix = np.eye(len(vector) + 1)
    matrix[:-1, -1] = vector
    return matrix


def _masked_mass(volume: Volume) -> np.ndarray:
    tensor = volume.tensor if volume.mask is None else volume.tensor * volume.mask
    return centre_of_mass(tensor, volume.grid)


def _about(turn: np.ndarray, fixed_centre: np.ndarray, moving_centre: np.ndarray) -> np.ndarray:
    """``x -> turn (x - fixed_centre) + moving_centre``."""
    matrix = np.eye(len(turn) + 1)
    matrix[:-1, :-1], matrix[:-1, -1] = turn, moving_centre - turn @ fixed_centre
    return matrix


def _moment_starts(level: Level, masses: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Match principal axes; signs are ambiguous, so all proper choices (4 in 3-D, 2 in 2-D)."""
    fixed = principal_axes(level.fixed.tensor, level.fixed.grid)
    moving = principal_axes(level.moving.tensor, level.moving.grid)
    d = level.fixed.grid.ndim
    signs = [np.diag(s) for s in itertools.product((1.0, -1.0), repeat=d) if np.prod(s) > 0]
    return [_about(moving @ sign @ fixed.T, masses[0], masses[1]) for sign in signs]


def _right_angled_starts(d: int, masses: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Every proper turn by right angles about the world axes but the identity: 23 in 3-D, 3 in 2-D."""
    out = []
    for order in itertools.permutations(range(d)):
        for signs in itertools.product((1.0, -1.0), repeat=d):
            turn = np.zeros((d, d))
            turn[np.arange(d), order] = signs
            if np.linalg.det(turn) > 0 and not np.array_equal(turn, np.eye(d)):
                out.append(_about(turn, masses[0], masses[1]))
    return out
