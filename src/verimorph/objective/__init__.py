"""What makes a registration good, as numbers to be lowered: terms over named tensors and the functions beneath them.

Pure functions live in ``similarity``, ``regularity``, ``labels`` and ``consistency``; `Term` binds one to names and
settings, `Objective` weighs and adds terms, `build_objective` reads them from text or YAML, `TERMS` is the table.
"""

from verimorph.objective.grammar import build_objective, build_term, parse, validate
from verimorph.objective.objective import Conditional, Evaluation, Objective, Schedule
from verimorph.objective.registry import TERMS, Row
from verimorph.objective.terms import FeatureSpace, MultiScale, ObjectiveTerm, Term, key

__all__ = [
    "TERMS",
    "Conditional",
    "Evaluation",
    "FeatureSpace",
    "MultiScale",
    "Objective",
    "ObjectiveTerm",
    "Row",
    "Schedule",
    "Term",
    "build_objective",
    "build_term",
    "key",
    "parse",
    "validate",
]
