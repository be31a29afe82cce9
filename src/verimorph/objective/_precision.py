"""Keep statistics in full precision: sums of squares do not survive 8 or 11 bits of mantissa."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_HALF = (torch.float16, torch.bfloat16)


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` outside autocast, with half-precision tensor arguments raised to float32.

    float32 and float64 arguments stay as they are. Gradients flow back to the half-precision inputs in their own type.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        device = tensors[0].device.type if tensors else "cpu"
        raised: list[Any] = [_raised(value) for value in args]
        named: dict[str, Any] = {name: _raised(value) for name, value in kwargs.items()}
        with torch.autocast(device, enabled=False):
            return function(*raised, **named)

    return wrapped


def _raised(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALF else value
