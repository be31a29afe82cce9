"""Penalties on the field in the form a solver needs: their gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from verimorph.errors import OptionError
from verimorph.grid import Grid
from verimorph.objective.grammar import build_objective
from verimorph.solve.deformable import Regularity


def make_regularity(text: str) -> Regularity:
    """Build a penalty from the grammar of terms, such as ``diffusion:weight=0.1+folding``.

    Every term must act on the field alone. Lengths are in millimetres, so that a weight means the same at every level.

    Raises
    ------
    OptionError
        For an unknown term or setting, or a term that needs more than the field.
    """
    objective = build_objective(text)
    if set(objective.needs) != {"field"}:
        needs = ", ".join(name for name in objective.needs if name != "field")
        raise OptionError(
            f"'{text}' cannot regularise a field: it needs {needs or 'no field'}; try diffusion or bending"
        )

    def gradient(displacement: Tensor, grid: Grid) -> Tensor:
        spacing = tuple(float(s) for s in grid.spacing)
        with torch.enable_grad():
            leaf = displacement.detach().requires_grad_()
            (slope,) = torch.autograd.grad(objective({"field": leaf}, spacing=spacing).total, leaf)
        return slope

    return gradient
