"""Dropout that can go on after training: draws from a generator, so that a sample can be drawn again.

Never decides when to sample: whoever predicts does, through `sampling`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verimorph.errors import OptionError


class AlwaysOnDropout(nn.Module):
    """Dropout in training, and outside training while sampling is on.

    Each value is zero with probability p and multiplied by 1 / (1 - p) otherwise, so that its expectation stays.

    Parameters
    ----------
    p
        Probability of a zero, in [0, 1).

    Attributes
    ----------
    sampling
        Whether values are dropped outside training.
    generator
        Where the random numbers come from; None is torch's own, on the device of the values. The numbers are drawn on
        the generator's device and moved, so one generator gives one mask on every device.

    Raises
    ------
    OptionError
        For a probability outside [0, 1).

    References
    ----------
    Gal & Ghahramani, Dropout as a Bayesian approximation, ICML 2016.
    """

    sampling: bool
    generator: torch.Generator | None

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise OptionError(f"a dropout probability must be in [0, 1), got {p}")
        self.p = float(p)
        self.sampling = False
        self.generator = None

    def extra_repr(self) -> str:
        """The probability, for ``print``."""
        return f"p={self.p}"

    def forward(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Drop values, or return them as they are."""
        if self.p == 0 or not (self.training or self.sampling):
            return x
        where = x.device if self.generator is None else self.generator.device
        # float32 whatever the values' type: half precision has too few steps below p.
        uniform = torch.rand(x.shape, generator=self.generator, device=where, dtype=torch.float32)
        return x * (uniform >= self.p).to(device=x.device, dtype=x.dtype) * (1 / (1 - self.p))


@contextmanager
def sampling(module: nn.Module, generator: torch.Generator | None = None) -> Iterator[nn.Module]:
    """Let every random part of a module draw, from one generator, and set all back afterwards.

    Parts are the submodules that have the attributes ``sampling`` and ``generator``; they draw in the order in which
    they run.

    Examples
    --------
    >>> dropout = AlwaysOnDropout(0.5).eval()
    >>> with sampling(dropout, torch.Generator().manual_seed(0)):
    ...     dropout(torch.ones(4))
    tensor([0., 2., 0., 0.])
    >>> dropout(torch.ones(4))
    tensor([1., 1., 1., 1.])
    """
    parts = [part for part in module.modules() if hasattr(part, "sampling") and hasattr(part, "generator")]
    before = [(part.sampling, part.generator) for part in parts]
    for part in parts:
        part.sampling, part.generator = True, generator  # type: ignore[assignment]
    try:
        yield module
    finally:
        for part, (was_sampling, had) in zip(parts, before, strict=True):
            part.sampling, part.generator = was_sampling, had
