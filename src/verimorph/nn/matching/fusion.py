"""The plain ways to make one set of features of two, at one level or at every level of a pyramid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verimorph.errors import InputError, OptionError, nearest

#: Name -> function of (fixed, moving). ``subtract`` is moving - fixed: it turns round when the images change places.
FUSIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "concat": lambda fixed, moving: torch.cat((fixed, moving), dim=1),
        "subtract": lambda fixed, moving: moving - fixed,
        "add": lambda fixed, moving: moving + fixed,
    }
)


def fuse(
    how: str, *, fixed: Float[Tensor, "b c *space"], moving: Float[Tensor, "b c *space"]
) -> Float[Tensor, "b k *space"]:
    """Fuse features of one level: ``concat`` (2c channels, fixed first), ``subtract`` (moving - fixed) or ``add``.

    Raises
    ------
    OptionError
        For an unknown way.
    """
    if how not in FUSIONS:
        raise OptionError(f"unknown fusion '{how}'{nearest(how, FUSIONS)}")
    return FUSIONS[how](fixed, moving)


class Fusion(nn.Module):
    """`fuse` at one level, or at every level of two pyramids of the same levels.

    Parameters
    ----------
    how
        ``concat``, ``subtract`` or ``add``.
    """

    def __init__(self, how: str = "concat") -> None:
        super().__init__()
        if how not in FUSIONS:
            raise OptionError(f"unknown fusion '{how}'{nearest(how, FUSIONS)}")
        self.how = how

    def extra_repr(self) -> str:
        """The way, for ``print``."""
        return self.how

    def channels(self, count: int) -> int:
        """Channels that come out where so many go in."""
        return 2 * count if self.how == "concat" else count

    def forward(self, *, fixed: Tensor | Sequence[Tensor], moving: Tensor | Sequence[Tensor]) -> Any:
        """Fuse two tensors, or two pyramids level by level."""
        if isinstance(fixed, Tensor) and isinstance(moving, Tensor):
            return fuse(self.how, fixed=fixed, moving=moving)
        if len(fixed) != len(moving):
            raise InputError(f"pyramids of {len(fixed)} and {len(moving)} levels cannot be fused level by level")
        return [fuse(self.how, fixed=f, moving=m) for f, m in zip(fixed, moving, strict=True)]
