"""Where two images meet: features of the fixed and of the moving image in, one thing out.

Nothing here extracts features or turns them into a transform for good: `features` stand before, `heads` and `refine`
behind. `neighbourhood` alone yields fields, as its values are offsets.
"""

from verimorph.nn.matching.correlation import Correlation, local_correlation
from verimorph.nn.matching.cross_attention import CrossAttentionBlock, WindowCrossAttention, window_cross_attention
from verimorph.nn.matching.fusion import FUSIONS, Fusion, fuse
from verimorph.nn.matching.neighbourhood import NeighbourhoodMatching, neighbourhood_motion
from verimorph.nn.matching.warp import WarpThenFuse, warp_features
from verimorph.nn.matching.weighting import CompetitiveWeighting, MotionStage

__all__ = [
    "FUSIONS",
    "CompetitiveWeighting",
    "Correlation",
    "CrossAttentionBlock",
    "Fusion",
    "MotionStage",
    "NeighbourhoodMatching",
    "WarpThenFuse",
    "WindowCrossAttention",
    "fuse",
    "local_correlation",
    "neighbourhood_motion",
    "warp_features",
    "window_cross_attention",
]
