"""Agreement between passes: maps that should undo each other."""

from verimorph.objective.consistency.inverse import gradient_inverse_consistency, inverse_consistency

__all__ = ["gradient_inverse_consistency", "inverse_consistency"]
