"""ModeT (Wang et al. 2023): attention to a neighbourhood whose values are offsets, coarse to fine.

The idea: what attention to the 3^d neighbours of a voxel finds out is where it went, so the values need not be learned;
every head yields a field, and at the three coarse levels the fields of the heads compete for each voxel. Fields are
composed from level to level and the moving features read through them. Deviations: fields are resized over the same
field of view (the released code keeps the centres of the corner voxels in place), and the scores are taken one offset
at a time, forth and back, instead of unfolding 27 neighbours (same values, a fraction of the memory).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from verimorph.errors import OptionError
from verimorph.methods.method import Citation, Method
from verimorph.nn.features.pyramid import ConvPyramid, Towers
from verimorph.nn.matching import CompetitiveWeighting, MotionStage, NeighbourhoodMatching
from verimorph.nn.refine import Refinement


def build(
    *,
    ndim: int = 3,
    channels: int = 1,
    widths: Sequence[int] = (8, 16, 32, 64, 128),
    stem: int = 4,
    heads: Sequence[int] = (8, 4, 2, 1, 1),
    head_channels: int = 6,
    radius: int = 1,
    scale: float = 1.0,
) -> nn.Module:
    """Shared pyramid (``widths`` finest first), one matching stage a level (``heads`` coarsest first), composed."""
    if len(heads) != len(widths):
        raise OptionError(f"{len(widths)} levels need as many counts of heads, got {tuple(heads)}")
    levels = tuple(reversed(range(len(widths))))
    stages = []
    for level, count in zip(levels, heads, strict=True):
        matching = NeighbourhoodMatching(
            ndim=ndim, channels=widths[level], heads=count, head_channels=head_channels, radius=radius, scale=scale
        )
        if count > 1 and level == 0:
            raise OptionError(f"the finest level takes one head, as competing fields double the grid, got {count}")
        stages.append(MotionStage(matching, CompetitiveWeighting(ndim=ndim, heads=count) if count > 1 else None))
    tower = ConvPyramid(ndim=ndim, channels=channels, widths=widths, stem=stem)
    return Refinement(stages, levels=levels, features=Towers(tower))


METHOD = Method(
    name="modet",
    summary="neighbourhood attention whose values are offsets, composed coarse to fine; about a million weights",
    citation=Citation(
        authors="Wang, Ni, Wang",
        title="ModeT: Learning Deformable Image Registration via Motion Decomposition Transformer",
        venue="MICCAI, LNCS 14229",
        year=2023,
        doi="10.1007/978-3-031-43999-5_70",
    ),
    build=build,
    objective=("lncc:radius=4", "diffusion:weight=1"),
    scheme={
        "optimiser": {
            "name": "adam",
            "lr": 1e-4,
            "schedule": "poly",
            "power": 0.9,
            "amsgrad": True,
        },
        "batch": 1,
    },
    parameters=1_029_670,
    deviations=(
        "fields resized over the same field of view; keys outside the image score the learned bias alone, as "
        "published; the paper says about a million parameters, the number here is counted from the released layout"
    ),
)
