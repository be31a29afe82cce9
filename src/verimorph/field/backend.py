"""Choice between the compiled CPU kernels and plain torch. One switch, read by every function of this room."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

_forced_torch = os.environ.get("VERIMORPH_KERNELS", "numba") == "torch"


@cache
def _numba_kernels() -> ModuleType | None:
    try:
        from verimorph.field import kernels
    except ImportError:
        return None
    return kernels


def compiled(*tensors: Tensor) -> ModuleType | None:
    """Return the compiled kernels if they can serve these tensors (float32, CPU, one batch size), else None."""
    if _forced_torch:
        return None
    first = tensors[0]
    for tensor in tensors:
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            return None
        if tensor.ndim != first.ndim or tensor.shape[0] != first.shape[0]:
            return None
    kernels = _numba_kernels()
    if kernels is None or first.ndim not in (4, 5):
        return None
    return kernels if first.ndim == 5 else kernels.planar


def kernels_in_use() -> str:
    """Name the back end in use on the CPU: ``"numba"`` or ``"torch"``."""
    return "torch" if _forced_torch or _numba_kernels() is None else "numba"


@contextmanager
def plain_torch() -> Iterator[None]:
    """Run the enclosed code without compiled kernels (tests, doubt)."""
    global _forced_torch
    before, _forced_torch = _forced_torch, True
    try:
        yield
    finally:
        _forced_torch = before


def set_threads(threads: int) -> None:
    """Set the number of CPU threads of torch and of the compiled kernels."""
    torch.set_num_threads(threads)
    if _numba_kernels() is not None:
        import numba

        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Run the enclosed code with so many threads; many small calls run fastest, and without idle spinning, on one."""
    before = torch.get_num_threads()
    before_numba = None
    if _numba_kernels() is not None:
        import numba

        before_numba = numba.get_num_threads()
    set_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if before_numba is not None:
            numba.set_num_threads(before_numba)
