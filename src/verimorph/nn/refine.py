"""The refinement loop: a field is made in stages, each of which sees the moving image as the stages before moved it.

Cascades, coarse-to-fine pyramids and recurrent refinement are settings of this loop; one stage is the plain network.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verimorph.errors import InputError, OptionError, nearest
from verimorph.field import compose, resize_displacement
from verimorph.nn.blocks import check_size
from verimorph.nn.matching.warp import warp_features

_POOL = {4: nn.functional.avg_pool2d, 5: nn.functional.avg_pool3d}


def update(
    field: Float[Tensor, "b d *coarse"] | None, step: Float[Tensor, "b d *space"], how: str = "compose"
) -> Float[Tensor, "b d *space"]:
    """The field after one more stage, on the grid of the step.

    The stage saw the moving image through ``field`` u, so its step v acts first: w(i) = v(i) + u(i + v(i))
    (``compose``); ``add`` is u + v, the same to first order. The old field is resized to the grid of the step; None is
    the identity.
    """
    step = step.to(torch.promote_types(step.dtype, torch.float32))
    if field is None:
        return step
    with torch.autocast(step.device.type, enabled=False):
        before = resize_displacement(field.to(step.dtype), tuple(step.shape[2:]))
        return compose(before, step) if how == "compose" else before + step


class Refinement(nn.Module):
    """Stages of one registration.

    At stage K, with the level's shrink factor f, the running field u and the stage's part::

        images    fixed_K = mean of fixed over blocks of f voxels,  moving_K = the same of moving, read through u
        features  fixed_K = level of the fixed pyramid,             moving_K = level of the moving one, read through u
        v = part(fixed=fixed_K, moving=moving_K),   then u(i) <- v(i) + u(i + v(i))   (or u + v)

    The moving image or features are always read once, through the whole field.

    Parameters
    ----------
    parts
        Modules called with ``fixed`` and ``moving`` (and ``condition`` where there is one) that return a field in
        voxels of its own grid, or named tensors with one as ``field``; a finer grid than they were given is welcome.
        One for all stages (shared weights), one a level, or one a stage.
    levels
        Shrink factors of the images, coarse first; with ``features``, indices of the pyramid's levels, which come
        finest first: ``(2, 1, 0)``.
    iterations
        Stages of every level, one number or one a level.
    features
        Module called with ``fixed`` and ``moving`` that returns both pyramids (`Towers`). None: images.
    how
        ``compose`` or ``add``.
    detach
        Stop gradients at the running field: each stage learns from its own step alone.
    stages
        Emit ``stageK/field``. Switch off to save memory where only the result counts.

    Attributes
    ----------
    stride
        Every side of the input must be a multiple of this.
    """

    def __init__(
        self,
        parts: Sequence[nn.Module],
        *,
        levels: Sequence[int] = (1,),
        iterations: int | Sequence[int] = 1,
        features: nn.Module | None = None,
        how: str = "compose",
        detach: bool = False,
        stages: bool = True,
    ) -> None:
        super().__init__()
        if how not in ("compose", "add"):
            raise OptionError(f"unknown update '{how}'{nearest(how, ('compose', 'add'))}")
        counts = (iterations,) * len(levels) if isinstance(iterations, int) else tuple(iterations)
        if not levels or len(counts) != len(levels) or min(counts) < 1:
            raise OptionError(f"{len(levels)} levels need as many counts of iterations from 1, got {counts}")
        if min(levels) < (1 if features is None else 0):
            kind = "shrink factors from 1" if features is None else "indices of pyramid levels from 0"
            raise OptionError(f"levels {tuple(levels)} must be {kind}")
        self.schedule: list[tuple[int, int]] = []  # level and part of every stage
        total = sum(counts)
        if len(parts) not in (1, len(levels), total):
            raise OptionError(
                f"{len(parts)} parts for {len(levels)} levels and {total} stages: give one, one a level or one a stage"
            )
        for number, (level, count) in enumerate(zip(levels, counts, strict=True)):
            for _ in range(count):
                part = len(self.schedule) if len(parts) == total else number if len(parts) == len(levels) else 0
                self.schedule.append((level, part))
        self.parts, self.features = nn.ModuleList(parts), features
        self.how, self.detach, self.stages = how, detach, stages
        self._conditioned = all("condition" in inspect.signature(part.forward).parameters for part in parts)
        if features is None:
            self.stride = math.lcm(*(level * int(getattr(parts[part], "stride", 1)) for level, part in self.schedule))
        else:
            self.stride = int(getattr(features, "stride", 1))

    def extra_repr(self) -> str:
        """The schedule, for ``print``."""
        return f"schedule={self.schedule}, how={self.how}, detach={self.detach}"

    def forward(
        self,
        *,
        fixed: Float[Tensor, "b c *space"],
        moving: Float[Tensor, "b c *moving_space"],
        condition: Float[Tensor, "b k"] | None = None,
    ) -> dict[str, Tensor]:
        """``field`` on the input grid, and ``stageK/field`` there too, K from 1.

        What else a part returns is there under ``stageK/``, and by its own name where there is one stage only.
        """
        if fixed.shape[2:] != moving.shape[2:]:
            raise InputError(
                f"fixed {tuple(fixed.shape)} and moving {tuple(moving.shape)} differ in shape; put them on one grid"
            )
        check_size(tuple(fixed.shape[2:]), self.stride)
        if condition is not None and not self._conditioned:
            raise OptionError("the parts of this model take no condition")
        shape = tuple(fixed.shape[2:])
        pyramids = None if self.features is None else self.features(fixed=fixed, moving=moving)
        given = {} if condition is None else {"condition": condition}
        result: dict[str, Tensor] = {}
        field: Tensor | None = None
        for number, (level, part) in enumerate(self.schedule, start=1):
            if pyramids is not None:
                first, second = pyramids[0][level], pyramids[1][level]
            elif level == 1:
                first, second = fixed, moving
            else:
                first, second = _POOL[fixed.ndim](fixed, level), _POOL[moving.ndim](moving, level)
            if self.detach and field is not None:
                field = field.detach()
            made = self.parts[part](fixed=first, moving=warp_features(second, field), **given)
            made = {"field": made} if isinstance(made, Tensor) else made
            field = update(field, made["field"], self.how)
            front = "" if len(self.schedule) == 1 else f"stage{number}/"
            result |= {f"{front}{name}": value for name, value in made.items() if name != "field"}
            if self.stages or number == len(self.schedule):
                result["field"] = resize_displacement(field, shape)
            if self.stages:
                result.setdefault(f"stage{number}/field", result["field"])
        return result
