"""Take folds out of a field by smoothing it where it folds, and nowhere else."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from verimorph.errors import OptionError
from verimorph.field.jacobian import jacobian_determinant
from verimorph.field.smooth import gaussian_smooth

_REACH = 1.0  # voxels
_PATIENCE = 40  # passes; the fields of solvers needed 5 to 27


def unfold(
    displacement: Float[Tensor, "b d *space"], *, floor: float = 0.05, rounds: int = 100
) -> Float[Tensor, "b d *space"]:
    """Return the field with ``det(I + du/dx) > floor`` at every voxel (central differences).

    Where the determinant is at or below the floor the field is blended with a smoothed copy of itself, with weights
    that fade over a few voxels; repeated until nothing is left. The reach is short: blending over a wide neighbourhood
    makes new folds at its rim, and smears a field that has a few stubborn ones altogether. It grows only after 40
    passes, for fields with more folds than a solver makes. A field without folds comes back as it is, the same object.
    Composing small smooth steps cannot fold in the continuum; on a lattice single voxels still do.

    Parameters
    ----------
    displacement
        Field, voxels.
    floor
        Determinant to stay above, in [0, 1).
    rounds
        At most so many passes; smoothing tends to the identity, so a few are enough for a field of small steps.
    """
    if not 0 <= floor < 1:
        raise OptionError(f"the floor of the Jacobian determinant is {floor}; it must be at least 0 and below 1")
    for n in range(rounds):
        folded = (jacobian_determinant(displacement) <= floor)[:, None]
        if not bool(folded.any()):
            break
        reach = _REACH + 0.25 * max(0, n - _PATIENCE)
        # A single voxel's weight after smoothing is its share of the kernel; scaled so that it is 1 at the fold.
        weight = gaussian_smooth(folded.to(displacement.dtype), reach)
        weight = (weight * (2.5066 * reach) ** (displacement.shape[1])).clamp(max=1)
        smooth = gaussian_smooth(displacement, reach)
        displacement = displacement + weight * (smooth - displacement)
    return displacement
