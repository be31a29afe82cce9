"""What a registration will cost before it starts: seconds, memory, disk. Nothing is computed on voxels here.

The constants are those of two cores with compiled kernels; an estimate is right within about a factor of two in time
and a third in memory, which is what a decision to start, or to lower something, needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from verimorph.errors import ResourceError
from verimorph.grid import Grid
from verimorph.memory import memory

BASE_BYTES = 550e6
"""The process with its libraries loaded."""
FULL_BYTES_PER_VOXEL = 80
"""At full size, whatever the levels: both fields, the moved image, the Jacobian, and what resampling needs."""
LEVEL_BYTES_PER_VOXEL = 115
"""Of the finest level that is optimised: field, update and gradient, the statistics of the similarity, temporaries."""
CHANNEL_BYTES_PER_VOXEL = 24
"""More, for each further channel that is compared (descriptors): fixed, moving, warped, and their gradients."""
MOVING_BYTES_PER_VOXEL = 16
OUTPUT_BYTES_PER_VOXEL = 32
"""Moved image, Jacobian, and two fields of three channels (float32), as if nothing were compressed."""
NANOSECONDS = {"deformable": 110.0, "channel": 30.0, "linear": 25.0, "full": 900.0}
"""Core time for one voxel: an iteration of a deformable stage, more for each further channel, of a linear stage; and
reading, writing and measuring, once."""
FIXED_SECONDS = 4.0
"""Starting, finding where to begin, drawing the report."""


@dataclass(frozen=True)
class Work:
    """So many iterations of one stage at one level. ``level`` is the shrink factor, ``shape`` the grid it works on."""

    stage: str
    level: int
    iterations: int
    shape: tuple[int, ...]

    @property
    def voxels(self) -> int:
        """Number of voxels of one iteration."""
        return math.prod(self.shape)


LOOKING = 0.56
"""Time of the looks for an error bound, in that of a registration by the defaults."""


@dataclass(frozen=True)
class Plan:
    """What would be done, and what it needs."""

    fixed: Grid
    moving: Grid
    steps: tuple[Work, ...]
    threads: int = 1
    channels: int = 1
    """Channels that are compared: 1 for intensities, more for descriptors."""
    symmetric: bool = False
    """Both directions in the deformable stage: three times the work, twice the memory."""
    looks: int = 0
    """How often the pair is looked at again for an error bound: 1, or 2 where a reference is looked at as well."""
    reference: Plan | None = None
    """Registration by the defaults that the bound of any other is drawn from."""

    @property
    def memory_bytes(self) -> int:
        """Largest resident memory of the process."""
        finest = max((step.voxels for step in self.steps if step.stage == "deformable"), default=0)
        full = FULL_BYTES_PER_VOXEL * self.fixed.size + MOVING_BYTES_PER_VOXEL * self.moving.size
        level = LEVEL_BYTES_PER_VOXEL + CHANNEL_BYTES_PER_VOXEL * (self.channels - 1)
        own = int(BASE_BYTES + full + level * finest * (2 if self.symmetric else 1))
        return own if self.reference is None else max(own, self.reference.memory_bytes)

    @property
    def seconds(self) -> float:
        """Wall time if every iteration is made; stages stop early where nothing improves any more."""
        deformable = (NANOSECONDS["deformable"] + NANOSECONDS["channel"] * (self.channels - 1)) * (
            3 if self.symmetric else 1
        )
        iterating = sum(
            step.voxels * step.iterations * (deformable if step.stage == "deformable" else NANOSECONDS["linear"])
            for step in self.steps
        )
        own = FIXED_SECONDS + 1e-9 * (iterating / max(self.threads, 1) + NANOSECONDS["full"] * self.fixed.size)
        usual = own if self.reference is None else self.reference.seconds
        return own + (0 if self.reference is None else usual) + LOOKING * self.looks * usual

    @property
    def disk_bytes(self) -> int:
        """Size of what is written, uncompressed."""
        return OUTPUT_BYTES_PER_VOXEL * self.fixed.size + int(5e6)


def require_memory(plan: Plan, available: int | None = None) -> None:
    """Refuse, before anything is computed, a registration that does not fit into memory.

    Parameters
    ----------
    plan
        What is to be done.
    available
        Bytes that are free; default: of this machine, or of the container the process runs in.

    Raises
    ------
    ResourceError
        Saying how much is needed, how much there is, and what to lower.
    """
    if available is None:
        available = memory()["available"]
    if available is not None and plan.memory_bytes > available:
        raise ResourceError(
            f"not enough memory: {plan.fixed.size / 1e6:.1f} million voxels need {plan.memory_bytes / 1e9:.1f} GB, "
            f"{available / 1e9:.1f} GB are free; {advice(plan.steps)}, or resample the fixed image to larger voxels"
        )


def advice(steps: Sequence[Work]) -> str:
    """Return which option makes these steps smaller.

    >>> advice([Work("deformable", 4, 100, (16, 16, 16)), Work("deformable", 1, 50, (64, 64, 64))])
    'leave out the finest level with --levels 8x4'
    """
    levels = sorted({step.level for step in steps if step.stage == "deformable"}, reverse=True)
    if not levels:
        return "close other programs"
    coarser = [level for level in levels if level > levels[-1]] or [2 * levels[-1]]
    if len(coarser) < 2:
        coarser = [2 * coarser[0], coarser[0]]
    return f"leave out the finest level with --levels {'x'.join(map(str, coarser))}"
