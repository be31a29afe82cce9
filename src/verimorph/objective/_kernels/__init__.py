"""CPU kernels compiled by numba, each with a plain torch twin in the file of its measure; tests hold the two together.

Kernels write each output voxel from one thread and add partial sums of fixed slabs in a fixed order, so a result does
not depend on the number of threads. The switch between kernels and torch is that of ``verimorph.field.backend``.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from verimorph.field import backend


@functools.cache
def _importable() -> bool:
    try:
        import numba  # noqa: F401
    except Exception:  # a broken LLVM raises more than ImportError
        return False
    return True


def usable(*tensors: Tensor | None) -> bool:
    """Whether the kernels may run on these: numba present, not switched off, all float32 on the CPU."""
    return (
        all(t is None or (t.device.type == "cpu" and t.dtype == torch.float32) for t in tensors)
        and backend.kernels_in_use() == "numba"
        and _importable()
    )
