"""How the CPU kernels are compiled and kept between processes; those of the measures use it too.

numba keeps compiled code beside the source and takes it as fresh while that one file is unchanged. Kernels that call,
or take their flags from, another file would then go on as compiled before an edit there, and two checkouts of the same
source would compute different bits. Here the stamp covers the source of every kernel.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

# Contraction, but no reassociation: whether a loop runs vectorised is decided at run time from addresses, and both ways
# must give the same bits. Infinities and NaN keep their meaning.
FAST = {"contract", "nsz"}


@functools.cache
def source_digest(folder: Path) -> str:
    """Return a hash of the kernel sources: this folder's and ``folder``'s."""
    digest = hashlib.sha256()
    for path in sorted({*Path(__file__).parent.glob("*.py"), *folder.glob("*.py")}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def kernel(**options: Any) -> Callable[[Callable], Callable]:
    """Compile a function without the interpreter's lock and keep the result on disk until any kernel changes."""

    def compile(function: Callable) -> Callable:
        dispatcher = njit(cache=True, nogil=True, **options)(function)
        # No public way to extend what numba compares; a test fails if this one goes.
        file = dispatcher._cache._cache_file
        file._source_stamp = (file._source_stamp, source_digest(Path(function.__code__.co_filename).parent))
        return dispatcher

    return compile
