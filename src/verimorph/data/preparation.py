"""How an image comes onto the grid of a model: where the grid lies in it, how fine it is, what happens to grey values.

Training and prediction both go through here, and the settings stand on the model card. Nothing here knows a network.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray
from torch import Tensor

from verimorph import field
from verimorph.errors import InputError, OptionError, nearest
from verimorph.field.smooth import per_axis
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io import read_image, replacing, validate
from verimorph.io.paths import expand
from verimorph.io.points import Points
from verimorph.prepare import default_background, quantile_range, rescale
from verimorph.solve.linear import centre_of_mass
from verimorph.transform import Affine, resample

INTENSITIES = ("minmax", "percentile", "zscore", "windows", "none")
CENTRES = ("image", "mass", "world", "atlas")

QUANTILES = (0.005, 0.995)
LARGEST_DEVIATION = 5.0

_SAME_SPACING = 1e-3

#: CT windows (width, level) of Estienne et al., Learn2Reg 2020: soft tissue, wide, bone.
ABDOMEN_WINDOWS = ((400.0, 40.0), (800.0, 100.0), (1000.0, 400.0))

#: About 1290 along each of three axes.
MOST_VOXELS = 2**31

_affines: dict[str, ndarray] = {}


@dataclass(frozen=True)
class Preparation:
    """The model grid and what is done to an image to bring it there.

    The grid has ``shape`` voxels. For each image a matrix A takes model indices to world points of that image
    (:meth:`index_to_world`); everything else follows from A. If ``A_f`` and ``A_m`` are the matrices of a pair and u is
    the displacement that a model finds on the grid, the transform is ``x -> A_m (A_f^-1 x + u(A_f^-1 x))``. Model axes
    run to the right, anterior and superior: those image axes that lie nearest.

    Parameters
    ----------
    shape
        Voxels of the model grid, two or three axes.
    spacing_mm
        Size of its voxels, one number or one an axis. None: those of each image (sets without a known voxel size).
    intensity
        ``minmax``: lowest to highest value to [0, 1]. ``percentile``: 0.5th to 99.5th percentile of the foreground,
        clamped, to [0, 1]. ``zscore``: mean and standard deviation of the voxels above 0, clamped at 5 deviations, then
        lowest to highest to [0, 1]. ``windows``: CT windows as channels, each clamped to its nominal bounds and scaled
        by them to [0, 1]. ``none``: as they are.
    windows
        (width, level) of each channel, for ``windows``.
    centre
        Where the middle of the model grid lies. ``image``: middle of the field of view. ``mass``: intensity centre.
        ``world``: at ``point``, axes along the world's (images that are aligned already). ``atlas``: in the middle of
        ``atlas``, carried to each image by an affine registration of this package. For ``image`` and ``mass`` it is
        moved by up to half a voxel of the image along axes where the spacing is a whole multiple of the image's, so
        that voxel centres fall on voxel centres.
    point
        World point for ``world``, mm.
    atlas
        Image file for ``atlas``. Variables such as ``${VERIMORPH_DATA}`` are expanded when it is read.

    Raises
    ------
    OptionError
        For a setting that is unknown, missing or of the wrong size.

    Examples
    --------
    >>> small = Preparation(shape=(64, 64, 64), spacing_mm=1.0, intensity="zscore")
    >>> Preparation.from_dict(small.to_dict()) == small
    True
    """

    shape: tuple[int, ...]
    spacing_mm: float | tuple[float, ...] | None = 1.0
    intensity: str = "percentile"
    windows: tuple[tuple[float, float], ...] = ()
    centre: str = "image"
    point: tuple[float, ...] | None = None
    atlas: str | None = None

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        object.__setattr__(self, "shape", shape)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise OptionError(f"preparation: shape is {shape}; give two or three numbers of voxels")
        if math.prod(shape) > MOST_VOXELS:
            raise OptionError(
                f"preparation: shape is {shape}, {math.prod(shape):.3g} voxels; no computer has memory for a network "
                "on as many; give a smaller shape"
            )
        if self.spacing_mm is not None:
            steps = per_axis(self.spacing_mm, len(shape))
            if len(steps) != len(shape) or not all(0 < step < float("inf") for step in steps):
                raise OptionError(f"preparation: spacing_mm is {self.spacing_mm}; give one size in mm, or {len(shape)}")
            same = len(set(steps)) == 1
            object.__setattr__(self, "spacing_mm", steps[0] if same else steps)
        for name, known in (("intensity", INTENSITIES), ("centre", CENTRES)):
            if getattr(self, name) not in known:
                raise OptionError(
                    f"preparation: {name} cannot be '{getattr(self, name)}'{nearest(getattr(self, name), known)}"
                )
        windows = tuple((float(width), float(level)) for width, level in self.windows)
        object.__setattr__(self, "windows", windows)
        if (self.intensity == "windows") != bool(windows) or any(width <= 0 for width, _ in windows):
            raise OptionError(
                "preparation: intensity 'windows' needs windows, (width, level) of each, width above 0; no other does"
            )
        if self.point is not None:
            object.__setattr__(self, "point", tuple(float(x) for x in self.point))
        if (self.centre == "world") != (self.point is not None):
            raise OptionError("preparation: centre 'world' needs a point (world mm); no other centre has one")
        if self.point is not None and len(self.point) != len(shape):
            raise OptionError(f"preparation: point has {len(self.point)} coordinates, the model grid {len(shape)} axes")
        if (self.centre == "atlas") != (self.atlas is not None):
            raise OptionError("preparation: centre 'atlas' needs an atlas (an image file); no other centre has one")
        if self.centre in ("world", "atlas") and self.spacing_mm is None:
            raise OptionError(f"preparation: centre '{self.centre}' needs spacing_mm")

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.shape)

    @property
    def channels(self) -> int:
        """Channels that one scalar image becomes."""
        return len(self.windows) if self.intensity == "windows" else 1

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON has them."""
        return json.loads(json.dumps({item.name: getattr(self, item.name) for item in fields(self)}))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Preparation:
        """Make one of what :meth:`to_dict` gave; unknown settings are refused with the nearest known one."""
        known = [item.name for item in fields(cls)]
        for name in settings:
            if name not in known:
                raise OptionError(f"preparation: no setting '{name}'{nearest(name, known)}")
        if "shape" not in settings:
            raise OptionError(
                "preparation: shape is missing; give the voxels of the model grid along each axis (--shape 64x64x64)"
            )
        values = {name: _tuples(value) for name, value in settings.items()}
        values["windows"] = values.get("windows") or ()
        for name, (fits, what) in _FORMS.items():
            if name in values and not fits(values[name]):
                raise OptionError(f"preparation: {name} is {settings[name]!r}; give {what}")
        return cls(**values)

    def fingerprint(self) -> str:
        """Return a hash of the settings; the atlas counts by its content."""
        told = json.dumps(self.to_dict(), sort_keys=True)
        if self.atlas is not None:
            told += hashlib.sha256(_atlas_file(self.atlas).read_bytes()).hexdigest()
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def index_to_world(
        self,
        image: Image,
        start: Float[ndarray, "h h"] | None = None,
        *,
        fixed: Float[ndarray, "h h"] | None = None,
        cache: str | os.PathLike | None = None,
    ) -> Float[ndarray, "h h"]:
        """Return the matrix A that takes indices of the model grid to world points of this image.

        ``A = [D diag(s), c - D diag(s) (N - 1) / 2]``: the grid's middle lies at c, its axes along the columns of D,
        its voxels are s apart. How the file stores its axes changes nothing.

        Parameters
        ----------
        image
            Its header is read; its voxels only for ``mass`` and ``atlas``.
        start
            World matrix M, fixed to moving, that aligns this (moving) image with a fixed one: then ``A = M @ fixed``.
        fixed
            Matrix A of the fixed image, needed with ``start``.
        cache
            Folder that keeps affines onto the atlas between runs.

        Raises
        ------
        InputError
            If the image has another number of axes than the model grid, or the atlas is missing.
        """
        if image.grid.ndim != self.ndim:
            raise InputError(
                f"{image.name}: is {image.grid.ndim}-D, the model grid is {self.ndim}-D; give a fitting image"
            )
        if (start is None) != (fixed is None):
            raise OptionError("a start needs both matrices: M from fixed to moving, and A of the fixed image")
        self._check_fits(image)
        if start is not None and fixed is not None:
            return np.asarray(start, dtype=np.float64) @ fixed
        if self.centre == "atlas":
            atlas = read_image(_atlas_file(str(self.atlas)))
            on_atlas = self._matrix(_canonical(atlas.grid), atlas.grid.centre)
            return _affine_from_atlas(atlas, image, cache) @ on_atlas
        if self.centre == "world":
            return self._matrix(np.eye(self.ndim), np.array(self.point))
        centre = image.grid.centre if self.centre == "image" else intensity_centre(image)
        return self._on_voxels(self._matrix(_canonical(image.grid), centre), image.grid)

    def _on_voxels(self, matrix: Float[ndarray, "h h"], grid: Grid) -> Float[ndarray, "h h"]:
        """Move the model grid onto voxel centres of an image along axes where every one of its voxels can be on one.

        Between two voxels (39 of them around 40) a linear image is blurred and a label map must choose a side: labels
        would lie half a voxel off their image.
        """
        d = self.ndim
        axes = _canonical(grid)
        ratio = np.linalg.norm(matrix[:d, :d], axis=0) / np.linalg.norm(axes, axis=0)
        whole = np.abs(ratio - ratio.round()) < _SAME_SPACING * ratio
        # At the middle, so that spacings that differ in the fourth digit part evenly to both ends.
        middle = matrix[:d, :d] @ ((np.array(self.shape) - 1) // 2) + matrix[:d, d]
        index = np.linalg.solve(axes, middle - _canonical_origin(grid))
        # Halves go right, anterior and superior; those of headers are halves to some digits only.
        shift = np.where(whole, np.floor(index.round(3) + 0.5) - index, 0)
        moved = matrix.copy()
        moved[:d, d] += axes @ shift
        return moved

    def _check_fits(self, image: Image) -> None:
        """Refuse voxels larger than the whole image, and a grid smaller than one voxel of it."""
        if self.spacing_mm is None:
            return
        steps, told = per_axis(self.spacing_mm, self.ndim), f"preparation: spacing_mm is {self.spacing_mm}"
        extent = float((image.grid.spacing * image.grid.shape).max())
        if max(steps) > extent:
            raise OptionError(f"{told}, and {image.name} is {extent:.4g} mm long; give voxels smaller than the image")
        if max(step * n for step, n in zip(steps, self.shape, strict=True)) < float(image.grid.spacing.min()):
            raise OptionError(
                f"{told}: a grid of {'x'.join(map(str, self.shape))} such voxels lies within one voxel of "
                f"{image.name}; give a larger spacing"
            )

    def _matrix(self, axes: Float[ndarray, "d d"], centre: Float[ndarray, " d"]) -> Float[ndarray, "h h"]:
        """``axes``: vectors of one image voxel, one a column; only directions count where a spacing is given."""
        d = self.ndim
        matrix = np.eye(d + 1)
        if self.spacing_mm is None:
            matrix[:d, :d] = axes
        else:
            matrix[:d, :d] = axes / np.linalg.norm(axes, axis=0) * np.array(per_axis(self.spacing_mm, d))
        matrix[:d, d] = centre - matrix[:d, :d] @ ((np.array(self.shape) - 1) / 2)
        return matrix

    def grid(self, index_to_world: Float[ndarray, "h h"]) -> Grid:
        """Return the model grid as it lies in an image."""
        return Grid(self.shape, index_to_world)

    def volume(
        self, image: Image | Sequence[Image], index_to_world: Float[ndarray, "h h"]
    ) -> Float[Tensor, "c *space"]:
        """Return grey values on the model grid: scaled on the whole image, then read in one interpolation (linear).

        Where the model grid is coarser than the image by a factor f along an image axis, the image is smoothed first by
        a Gaussian of ``sqrt(f^2 - 1) / 2.355`` voxels, which makes its point spread that of the model voxel. Outside
        the image the value is 0 (``none``: the air of a CT, else 0).

        Parameters
        ----------
        image
            One image, or several on one world as channels.
        index_to_world
            Matrix A of the image.

        References
        ----------
        Cardoso et al., Scale factor point spread function matching: beyond aliasing in image resampling, MICCAI 2015.
        """
        images = [image] if isinstance(image, Image) else list(image)
        return torch.cat([self._channels(one, index_to_world) for one in images])

    def _channels(self, image: Image, index_to_world: Float[ndarray, "h h"]) -> Float[Tensor, "c *space"]:
        validate.check_finite(image, "image")
        voxels, grid = canonical_order(image.array, image.grid)
        values = self.intensities(voxels)
        background = self.background(image)
        matrix = grid.inverse_affine @ index_to_world
        coarser = np.linalg.norm(matrix[:-1, :-1], axis=1)
        sigma = np.sqrt(np.clip(coarser**2 - 1, 0, None)) / (2 * np.sqrt(2 * np.log(2)))
        # The rim repeats the edge there: a factor of one by rounding must not blur.
        sigma[coarser < 1 + _SAME_SPACING] = 0
        smooth = field.gaussian_smooth(values[None], sigma.tolist())
        still = torch.zeros(1, self.ndim, *self.shape)
        return field.warp(smooth, still, matrix=matrix, background=background)[0]

    def background(self, image: Image) -> float:
        """Return the grey value outside an image on the model grid: 0; for ``none``, the air of a CT, else 0."""
        return default_background(image) if self.intensity == "none" else 0.0

    def intensities(self, voxels: Shaped[ndarray, "*space"]) -> Float[Tensor, "c *space"]:
        """Scale grey values, wherever they lie. A constant image becomes 0 (but for ``windows`` and ``none``)."""
        values = torch.from_numpy(np.array(voxels, dtype=np.float32, order="C"))
        if self.intensity == "none":
            return values[None]
        if self.intensity == "windows":
            bounds = [(level - width / 2, level + width / 2) for width, level in self.windows]
            return torch.stack([(values.clamp(low, high) - low) / (high - low) for low, high in bounds])
        if self.intensity == "percentile":
            low, high = quantile_range(values, QUANTILES)
            return rescale(values.clamp(low, high), low, high)[None]
        if self.intensity == "zscore":
            foreground = values[values > 0].double()
            deviation = float(foreground.std()) if foreground.numel() > 1 else 0.0
            if deviation > 0:
                scaled = (values - float(foreground.mean())) / deviation
                values = scaled.clamp(-LARGEST_DEVIATION, LARGEST_DEVIATION)
        return rescale(values)[None]

    def labels(self, labels: Image, index_to_world: Float[ndarray, "h h"]) -> Int[Tensor, "*space"]:
        """Return label values on the model grid, nearest neighbour, 0 outside; int64.

        Raises
        ------
        InputError
            If values are not whole numbers.
        """
        return self._nearest(validate.whole_numbers(labels, "label map"), labels.grid, index_to_world)

    def mask(self, mask: Image, index_to_world: Float[ndarray, "h h"]) -> Bool[Tensor, "*space"]:
        """Return where a mask is above 0 on the model grid, nearest neighbour, False outside."""
        return self._nearest((mask.array > 0).astype(np.int64), mask.grid, index_to_world) > 0

    def _nearest(self, voxels: ndarray, grid: Grid, index_to_world: ndarray) -> Tensor:
        voxels, grid = canonical_order(voxels, grid)
        source = torch.from_numpy(np.ascontiguousarray(voxels))[None, None]
        still = torch.zeros(1, self.ndim, *self.shape)
        matrix = grid.inverse_affine @ index_to_world
        return field.warp(source, still, matrix=matrix, mode="nearest", background=0)[0, 0]

    def points(
        self, points: Points | Float[ndarray, "n d"], index_to_world: Float[ndarray, "h h"]
    ) -> Float[Tensor, "n d"]:
        """Return world points, mm, as indices of the model grid (fractions)."""
        world = points.coordinates if isinstance(points, Points) else points
        return torch.from_numpy(self.grid(index_to_world).world_to_index(world)).float()

    def labels_back(
        self, labels: Shaped[Tensor, "*any"], index_to_world: Float[ndarray, "h h"], reference: Grid
    ) -> Image:
        """Carry labels from the model grid to the grid of the image they were found in.

        Parameters
        ----------
        labels
            Whole numbers ``(*shape)``, read by nearest neighbour; or class scores ``(k, *shape)`` (probabilities or
            logits), read linearly, whose largest gives the class: smoother where the image is finer. Outside the model
            grid the label is 0.
        index_to_world
            Matrix A of the image.
        reference
            Grid of the image.
        """
        still = Affine(np.eye(self.ndim + 1))
        if not labels.is_floating_point():
            whole = Image.from_array(labels.to(torch.int32), self.grid(index_to_world), name="labels")
            return resample(still, whole, reference, interpolation="nearest")
        matrix = np.linalg.inv(index_to_world) @ reference.affine
        zero = torch.zeros(1, self.ndim, *reference.shape)
        best = torch.full(reference.shape, -torch.inf)
        found = torch.zeros(reference.shape, dtype=torch.int32)
        inside = field.warp(torch.ones(1, 1, *self.shape), zero, matrix=matrix)[0, 0] > 0
        for k, score in enumerate(labels.detach().float().cpu()):  # one class at a time: k may be 140, the image 256^3
            value = field.warp(score[None, None].contiguous(), zero, matrix=matrix)[0, 0]
            better = value > best
            best, found = torch.where(better, value, best), torch.where(better, k, found)
        return Image.from_array(torch.where(inside, found, 0).to(torch.int32), reference, name="labels")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list | tuple) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, tuple) and all(_is_number(part) for part in value)


#: What a setting that was read from a file must be, and how to say so; what it may be is for the class to say.
_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "shape": (lambda v: _are_numbers(v) and all(n % 1 == 0 for n in v), "whole numbers of voxels: [160, 192, 160]"),
    "spacing_mm": (lambda v: v is None or _is_number(v) or _are_numbers(v), "one size in mm, one an axis, or null"),
    "intensity": (lambda v: isinstance(v, str), f"one of {', '.join(INTENSITIES)}"),
    "windows": (lambda v: all(_are_numbers(w) and len(w) == 2 for w in v) if isinstance(v, tuple) else False,
                "(width, level) of each: [[400, 40]]"),
    "centre": (lambda v: isinstance(v, str), f"one of {', '.join(CENTRES)}"),
    "point": (lambda v: v is None or _are_numbers(v), "world coordinates in mm: [0, 0, 0]"),
    "atlas": (lambda v: v is None or isinstance(v, str), "an image file"),
}  # fmt: skip


def intensity_centre(image: Image) -> Float[ndarray, " d"]:
    """Return the world point of the intensity centre; values are cut at two quantiles and count from the lower one."""
    low, high = quantile_range(image.array, QUANTILES)
    return centre_of_mass(image.tensor().clamp(low, high) - low, image.grid)


def _canonical(grid: Grid) -> Float[ndarray, "d d"]:
    """Return the vectors of one voxel step, reordered and turned to point right, anterior, superior; one a column."""
    d = grid.ndim
    steps = grid.affine[:d, :d]
    order = nib.orientations.io_orientation(grid.affine)
    out = np.empty((d, d))
    for axis, (world, sign) in enumerate(order):
        out[:, int(world)] = sign * steps[:, axis]
    return out


def _canonical_origin(grid: Grid) -> Float[ndarray, " d"]:
    """World point of the voxel farthest left, posterior and inferior: the first along those steps."""
    signs = nib.orientations.io_orientation(grid.affine)[:, 1]
    return grid.index_to_world(np.where(signs < 0, np.array(grid.shape) - 1, 0))


def canonical_order(voxels: Shaped[ndarray, "*space"], grid: Grid) -> tuple[Shaped[ndarray, "*other"], Grid]:
    """A view of the voxels along right, anterior and superior, and its grid.

    Halves between voxels and the rim of the image go by index: read so, they go by anatomy instead of the file's order.
    """
    orientation = nib.orientations.io_orientation(grid.affine)
    view = np.transpose(voxels, np.argsort(orientation[:, 0]))
    flips = orientation[np.argsort(orientation[:, 0]), 1]
    view = view[tuple(slice(None, None, -1 if sign < 0 else 1) for sign in flips)]
    affine = np.eye(grid.ndim + 1)
    affine[:-1, :-1], affine[:-1, -1] = _canonical(grid), _canonical_origin(grid)
    return view, Grid(view.shape, affine)


def _atlas_file(path: str) -> Path:
    file = expand(path)
    if not file.is_file():
        raise InputError(f"{file}: no such atlas; the model grid lies on it, so it is needed; check the path")
    return file


def _affine_from_atlas(atlas: Image, image: Image, cache: str | os.PathLike | None) -> Float[ndarray, "h h"]:
    """World matrix atlas to image by the package's own engine, kept in memory and, on request, in a folder."""
    told = hashlib.sha256()
    for one in (atlas, image):
        told.update(one.grid.affine.tobytes())
        told.update(repr((one.grid.shape, one.array.dtype)).encode())
        told.update(np.ascontiguousarray(one.array).tobytes())
    key = told.hexdigest()[:32]
    if key in _affines:
        return _affines[key]
    file = Path(cache) / f"affine-{key}.npy" if cache is not None else None
    if file is not None and file.is_file():
        matrix = np.load(file, allow_pickle=False)
    else:
        # The engine stands above this room; nothing else here needs it.
        from verimorph.registration import register

        matrix = _linear(register(fixed=atlas, moving=image, transform="affine").transform)
        if file is not None:
            with replacing(file) as beside:
                np.save(beside, matrix)
    _affines[key] = matrix
    return matrix


def _linear(transform: Any) -> Float[ndarray, "h h"]:
    """The matrix of an affine registration."""
    parts = getattr(transform, "parts", (transform,))
    matrix = np.eye(transform.ndim + 1)
    for part in parts:
        matrix = part.matrix @ matrix
    return matrix
