"""Pairwise optimisation, no training: find a start, fit a linear map, fit a diffeomorphic one.

Solvers work on tensors and grids and know nothing of files. Each takes a measure (``measure.py``) that gives its value
and its gradient with respect to the moved image; everything else is geometry.
"""

from verimorph.solve.deformable import DeformableResult, solve_deformable
from verimorph.solve.initialise import find_start
from verimorph.solve.linear import solve_linear
from verimorph.solve.measure import Measure, make_measure
from verimorph.solve.progress import Event, Step
from verimorph.solve.pyramid import Level, Volume, level_shape, make_level
from verimorph.solve.regularity import make_regularity

__all__ = [
    "DeformableResult",
    "Event",
    "Level",
    "Measure",
    "Step",
    "Volume",
    "find_start",
    "level_shape",
    "make_level",
    "make_measure",
    "make_regularity",
    "solve_deformable",
    "solve_linear",
]
