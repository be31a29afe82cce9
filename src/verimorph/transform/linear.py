"""Linear maps: rigid, similarity, affine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from verimorph.errors import InputError, NoInverseError
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.transform import dense, resampling
from verimorph.transform.composite import chain
from verimorph.transform.protocol import Transform

Vector = Sequence[float | int] | ndarray


class Decomposition(NamedTuple):
    """A linear map taken apart: ``matrix = rotation @ stretch`` (polar form), then ``translation``."""

    rotation: Float[ndarray, "d d"]
    rotation_degrees: float
    axis: Float[ndarray, " d"] | None
    """Unit axis of the rotation; None in 2-D and where the rotation is zero."""
    scales: Float[ndarray, " d"]
    """Principal stretches, largest first."""
    determinant: float
    reflects: bool


@dataclass(frozen=True, eq=False)
class Affine:
    """A linear map of world points, ``x -> A x + t``.

    Parameters
    ----------
    matrix
        Homogeneous matrix ``[[A, t], [0, 1]]``, ``(D+1, D+1)``, fixed to moving, RAS+ mm.

    Raises
    ------
    InputError
        If the matrix is not square of size 3 or 4, not finite, or its last row is not ``0 ... 0 1``.

    Examples
    --------
    >>> shift = Affine(np.array([[1.0, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    >>> shift.map_points(np.zeros((1, 3)))
    array([[5., 0., 0.]])
    >>> shift.kind
    'translation'
    """

    matrix: Float[ndarray, "h h"]

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape not in ((3, 3), (4, 4)):
            raise InputError(f"a linear transform needs a 3x3 (2-D) or 4x4 (3-D) matrix, got shape {matrix.shape}")
        if not np.isfinite(matrix).all():
            raise InputError("the matrix of a linear transform has NaN or infinite entries")
        last = np.eye(len(matrix))[-1]
        if not np.allclose(matrix[-1], last, rtol=0, atol=1e-9):
            raise InputError(f"the last row of a homogeneous matrix is 0 ... 0 1, this one has {matrix[-1].tolist()}")
        matrix[-1] = last
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.matrix) - 1

    @property
    def linear(self) -> Float[ndarray, "d d"]:
        """The part without translation, A."""
        return self.matrix[:-1, :-1]

    @property
    def translation(self) -> Float[ndarray, " d"]:
        """Where the world origin goes, mm."""
        return self.matrix[:-1, -1]

    @property
    def kind(self) -> str:
        """The narrowest name that fits: ``identity``, ``translation``, ``rigid``, ``similarity`` or ``affine``."""
        eye = np.eye(self.ndim)
        if np.allclose(self.linear, eye, rtol=0, atol=1e-9):
            return "identity" if np.abs(self.translation).max() < 1e-9 else "translation"
        gram = self.linear.T @ self.linear
        scale = np.trace(gram) / self.ndim
        if np.linalg.det(self.linear) <= 0 or not np.allclose(gram, scale * eye, rtol=0, atol=1e-6 * scale):
            return "affine"
        return "rigid" if abs(scale - 1) < 1e-6 else "similarity"

    def map_points(self, points: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]:
        """Return ``A x + t`` for every point."""
        return np.asarray(points, dtype=np.float64) @ self.linear.T + self.translation

    def displacement_on(self, grid: Grid) -> Float[Tensor, "1 d *space"]:
        """Dense form on a grid, in voxels of that grid."""
        return dense.displacement_on(self, grid)

    def resample(
        self, image: Image, reference: Grid, *, interpolation: str = "linear", background: float = 0.0
    ) -> Image:
        """Carry a moving image onto ``reference``; see :func:`verimorph.transform.resampling.resample`."""
        return resampling.resample(self, image, reference, interpolation=interpolation, background=background)

    def inverse(self) -> Affine:
        """Return the exact inverse.

        Raises
        ------
        NoInverseError
            If the matrix is singular.
        """
        scale = np.abs(self.linear).max()
        if scale == 0 or abs(np.linalg.det(self.linear / scale)) < 1e-9:
            determinant = np.linalg.det(self.linear)
            raise NoInverseError(f"the linear transform is singular (determinant {determinant:.2g}) and has no inverse")
        return Affine(np.linalg.inv(self.matrix))

    def then(self, after: Transform) -> Transform:
        """Return this map followed by ``after``."""
        return chain([self, after])

    def jacobian_determinant(self, grid: Grid) -> Float[Tensor, "1 *space"]:
        """The determinant of A at every voxel."""
        return dense.jacobian_determinant(self, grid)

    def decompose(self) -> Decomposition:
        """Take the map apart into a rotation and principal stretches (polar decomposition by singular values)."""
        left, scales, right = np.linalg.svd(self.linear)
        determinant = float(np.linalg.det(self.linear))
        sign = np.sign(np.linalg.det(left @ right)) or 1.0
        rotation = left @ np.diag([*np.ones(self.ndim - 1), sign]) @ right
        skew = rotation - rotation.T
        if self.ndim == 2:
            angle, axis = abs(np.arctan2(rotation[1, 0], rotation[0, 0])), None
        else:
            vector = np.array([skew[2, 1], skew[0, 2], skew[1, 0]]) / 2
            angle = np.arctan2(np.linalg.norm(vector), (np.trace(rotation) - 1) / 2)
            axis = None
            if angle > 1e-9:  # near 180 degrees the skew part vanishes: the axis is the eigenvector of eigenvalue 1
                values, vectors = np.linalg.eigh(rotation + rotation.T)
                axis = vectors[:, np.argmax(values)]
                axis = -axis if axis @ vector < 0 else axis
        return Decomposition(rotation, float(np.degrees(angle)), axis, scales, determinant, determinant < 0)


def identity(ndim: int) -> Affine:
    """Return the map that leaves every point where it is."""
    return Affine(np.eye(ndim + 1))


def rigid(
    *, rotation: float | Vector | None = None, translation: Vector | None = None, centre: Vector | None = None
) -> Affine:
    """Make a rigid map ``x -> R (x - c) + c + t``.

    Parameters
    ----------
    rotation
        Rotation vector in radians (3-D: axis times angle), one angle (2-D), or a rotation matrix. Default: none.
    translation
        t, mm.
    centre
        c, the point the rotation leaves in place, mm; default the world origin.

    Raises
    ------
    InputError
        If the arguments disagree on the number of axes, or the matrix is not a rotation.

    Examples
    --------
    >>> rigid(rotation=[0, 0, np.pi / 2]).map_points(np.array([[1.0, 0, 0]])).round(6)
    array([[0., 1., 0.]])
    """
    return similarity(rotation=rotation, translation=translation, centre=centre)


def similarity(
    *,
    rotation: float | Vector | None = None,
    scale: float = 1.0,
    translation: Vector | None = None,
    centre: Vector | None = None,
) -> Affine:
    """Make a similarity ``x -> s R (x - c) + c + t``; arguments as in :func:`rigid`, ``scale`` > 0."""
    turn = None if rotation is None else _rotation_matrix(np.asarray(rotation, dtype=np.float64))
    sizes = {len(np.atleast_1d(v)) for v in (turn, translation, centre) if v is not None}
    if len(sizes) != 1:
        raise InputError("rotation, translation and centre need the same number of axes, and one must be given")
    if not scale > 0:
        raise InputError(f"a similarity needs a scale above zero, got {scale}")
    d = sizes.pop()
    matrix = np.eye(d + 1)
    matrix[:d, :d] = scale * (np.eye(d) if turn is None else turn)
    middle = np.zeros(d) if centre is None else np.asarray(centre, dtype=np.float64)
    shift = np.zeros(d) if translation is None else np.asarray(translation, dtype=np.float64)
    matrix[:d, d] = middle + shift - matrix[:d, :d] @ middle
    return Affine(matrix)


def _rotation_matrix(rotation: np.ndarray) -> np.ndarray:
    if rotation.ndim == 2:
        square = rotation.shape in ((2, 2), (3, 3))
        if not square or not np.allclose(rotation @ rotation.T, np.eye(len(rotation)), atol=1e-5):
            raise InputError("the rotation matrix is not orthogonal; use Affine for other linear maps")
        if np.linalg.det(rotation) < 0:
            raise InputError("the rotation matrix is a reflection (determinant -1); use Affine for it")
        return rotation
    if rotation.size == 1:
        cosine, sine = np.cos(rotation.item()), np.sin(rotation.item())
        return np.array([[cosine, -sine], [sine, cosine]])
    if rotation.shape != (3,):
        raise InputError(f"a rotation is one angle, a vector of 3 or a matrix, got shape {rotation.shape}")
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(rotation).as_matrix()
