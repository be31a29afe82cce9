"""Training images changed at random, and everything that belongs to them changed alike.

Functions take a :class:`Sample` (tensors on the model grid) and random numbers; nothing here keeps a state. Which side
is left follows the model grid: its first axis runs to the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from numpy import ndarray
from torch import Tensor

from verimorph import field
from verimorph.errors import OptionError, nearest

SPATIAL = ("flip", "turn", "affine", "elastic")


@dataclass(frozen=True, eq=False)
class Sample:
    """One image on the model grid with what belongs to it; labels are classes 0 to k, points model indices.

    ``background`` is what lies outside the image, one value a channel; None: 0. ``spacing`` is the size of a voxel
    along each axis, mm; None: equal.
    Its tensors may share memory with a cache: nothing here writes into them.
    """

    image: Float[Tensor, "c *space"]
    labels: Integer[Tensor, "*space"] | None = None
    mask: Bool[Tensor, "*space"] | None = None
    points: Float[Tensor, "n d"] | None = None
    known: Bool[Tensor, " k"] | None = None
    background: Float[Tensor, " c"] | None = None
    spacing: Float[ndarray, " d"] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(self.image.shape[1:])


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images, and how often. All off by default.

    Parameters
    ----------
    flip
        Probability of a mirror along each axis. Left and right labels (``swaps``) change places when the first axis is
        mirrored.
    flip_axes
        Axes that may be mirrored, from 0, or from -1 backwards; default all.
    turn
        Probability of a random turn by right angles, among those that keep the shape and the size of the voxels
        (where both images turn alike, of both).
    affine
        Probability of a linear map about the middle: rotation of at most ``rotation_degrees`` about each axis, factors
        of size within ``1 +- scale`` an axis, shears within ``shear``, shift within ``shift`` of each side.
    elastic
        Probability of a smooth random deformation: the flow of a velocity with a standard deviation of up to
        ``elastic_voxels``, drawn every ``elastic_spacing`` voxels.
    gamma, contrast, bias, noise
        Strengths of changes of grey values, each drawn anew: exponent ``exp(N(0, gamma))``; factor about the mean
        ``exp(N(0, contrast))``; smooth factor ``exp(b)``, b of standard deviation up to ``bias``; Gaussian noise of
        standard deviation up to ``noise`` of the range.
    intensity
        Probability that an image's grey values are changed.
    shared
        Spatial changes that both images of a pair undergo alike; of the others each has its own. Changes of grey values
        are always each image's own.

    Raises
    ------
    OptionError
        For a probability outside 0 to 1, a negative strength or an unknown name in ``shared``.
    """

    flip: float = 0.0
    flip_axes: tuple[int, ...] | None = None
    turn: float = 0.0
    affine: float = 0.0
    rotation_degrees: float = 15.0
    scale: float = 0.1
    shear: float = 0.0
    shift: float = 0.05
    elastic: float = 0.0
    elastic_voxels: float = 2.0
    elastic_spacing: int = 8
    intensity: float = 0.0
    gamma: float = 0.2
    contrast: float = 0.1
    bias: float = 0.2
    noise: float = 0.03
    shared: tuple[str, ...] = ("flip", "turn")

    def __post_init__(self) -> None:
        for name in (*SPATIAL, "intensity"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"augmentation: {name} is a probability, {getattr(self, name)} is not within 0 and 1")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, float | int) and value < 0:
                raise OptionError(f"augmentation: {item.name} is {value}; give 0 or more")
        for name in self.shared:
            if name not in SPATIAL:
                raise OptionError(f"augmentation: shared cannot hold '{name}'{nearest(name, SPATIAL)}")
        if self.elastic_spacing < 2 or self.elastic_voxels > self.elastic_spacing:
            raise OptionError("augmentation: elastic_spacing must be 2 voxels or more, and not below elastic_voxels")

    @property
    def is_active(self) -> bool:
        """Whether anything can happen."""
        return any(getattr(self, name) > 0 for name in (*SPATIAL, "intensity"))


def augment_pair(
    fixed: Sample,
    moving: Sample,
    settings: Augmentation,
    random: np.random.Generator,
    *,
    swaps: Sequence[tuple[int, int]] = (),
) -> tuple[Sample, Sample]:
    """Change both images of a pair; see :class:`Augmentation`.

    Parameters
    ----------
    swaps
        Classes (numbers from 1) that change places when left and right do.
    """
    seeds = {name: (int(s := random.integers(2**31)), s if name in settings.shared else int(random.integers(2**31)))
             for name in SPATIAL}  # fmt: skip
    partners = ((moving,), (fixed,)) if "turn" in settings.shared else ((), ())
    own = [int(random.integers(2**31)), int(random.integers(2**31))]
    changed = [
        augment(
            sample,
            settings,
            swaps=swaps,
            partners=partners[role],
            random={name: np.random.default_rng(pair[role]) for name, pair in seeds.items()}
            | {"intensity": np.random.default_rng(own[role])},
        )
        for role, sample in enumerate((fixed, moving))
    ]
    return changed[0], changed[1]


def augment(
    sample: Sample,
    settings: Augmentation,
    random: dict[str, np.random.Generator] | np.random.Generator,
    *,
    swaps: Sequence[tuple[int, int]] = (),
    partners: Sequence[Sample] = (),
) -> Sample:
    """Change one image.

    Parameters
    ----------
    random
        One source of random numbers, or one for each kind of change.
    swaps
        As for `augment_pair`.
    partners
        Images that turn alike.
    """
    source = random if isinstance(random, dict) else dict.fromkeys((*SPATIAL, "intensity"), random)
    d = len(sample.shape)
    if settings.flip > 0:
        allowed = flip_axes(settings, d)
        drawn = [source["flip"].random() < settings.flip for _ in range(d)]
        sample = flip(sample, [axis for axis in allowed if drawn[axis]], swaps=swaps)
    if settings.turn > 0 and source["turn"].random() < settings.turn:
        sample = random_turn(sample, source["turn"], partners=partners)
    matrix, displacement = None, None
    if settings.affine > 0 and source["affine"].random() < settings.affine:
        matrix = random_matrix(sample.shape, settings, source["affine"], sample.spacing)
    if settings.elastic > 0 and source["elastic"].random() < settings.elastic:
        displacement = random_elastic(sample.shape, settings, source["elastic"])
    if matrix is not None or displacement is not None:
        sample = deform(sample, matrix, displacement)
    if settings.intensity > 0 and source["intensity"].random() < settings.intensity:
        sample = replace(sample, image=change_intensities(sample.image, settings, source["intensity"]))
    return sample


def flip_axes(settings: Augmentation, d: int) -> list[int]:
    """Axes of a grid of d axes that may be mirrored, from 0.

    Raises
    ------
    OptionError
        For an axis that the grid does not have.
    """
    given = settings.flip_axes if settings.flip_axes is not None else range(d)
    if not isinstance(given, Sequence) or any(type(axis) is not int or not -d <= axis < d for axis in given):
        raise OptionError(f"augmentation: flip_axes is {given}; give axes of the model grid, from 0 to {d - 1}")
    return sorted({axis % d for axis in given})


def flip(sample: Sample, axes: Sequence[int], *, swaps: Sequence[tuple[int, int]] = ()) -> Sample:
    """Mirror along axes, numbered from 0; where the first is among them, left and right classes change places."""
    if not axes:
        return sample
    labels, known = sample.labels, sample.known
    if 0 in axes and swaps:
        labels = None if labels is None else swap_classes(labels, swaps)
        known = None if known is None else _swap_known(known, swaps)
    points = sample.points
    if points is not None:
        last = torch.tensor([n - 1.0 for n in sample.shape])
        mirrored = torch.tensor([axis in axes for axis in range(len(sample.shape))])
        points = torch.where(mirrored, last - points, points)
    return replace(
        sample,
        image=sample.image.flip([axis + 1 for axis in axes]),
        labels=None if labels is None else labels.flip(list(axes)),
        mask=None if sample.mask is None else sample.mask.flip(list(axes)),
        points=points,
        known=known,
    )


def swap_classes(labels: Integer[Tensor, "*space"], swaps: Sequence[tuple[int, int]]) -> Integer[Tensor, "*space"]:
    """Exchange the classes of each pair."""
    top = max(int(labels.max()), *(max(pair) for pair in swaps))
    table = torch.arange(top + 1, dtype=labels.dtype)
    for a, b in swaps:
        table[a], table[b] = b, a
    return table[labels.long()]


def _swap_known(known: Tensor, swaps: Sequence[tuple[int, int]]) -> Tensor:
    out = known.clone()
    for a, b in swaps:
        out[a - 1], out[b - 1] = known[b - 1], known[a - 1]
    return out


def random_turn(sample: Sample, random: np.random.Generator, *, partners: Sequence[Sample] = ()) -> Sample:
    """Turn by right angles: as many quarter turns in each plane as drawn; planes of unequal sides take half turns.

    Sides are unequal in voxels or in mm: a quarter turn between voxels of two sizes would stretch what is shown.
    ``partners`` are images that turn alike: their sides count, too.
    """
    d, turned = len(sample.shape), (sample, *partners)
    planes = [(a, b) for a in range(d) for b in range(a + 1, d)]
    quarters = []
    for k in random.permutation(len(planes)):
        a, b = planes[k]
        count = int(random.integers(4))
        alike = all(_square(one, a, b) for one in turned)
        count -= 0 if alike else count % 2
        quarters.append((planes[k], count))
    return turn(sample, quarters)


def _square(sample: Sample, a: int, b: int) -> bool:
    """Whether two axes are of one length, in voxels and in mm."""
    steps = np.ones(len(sample.shape)) if sample.spacing is None else sample.spacing
    return sample.shape[a] == sample.shape[b] and bool(np.isclose(steps[a], steps[b], rtol=1e-3))


def turn(sample: Sample, quarters: Sequence[tuple[tuple[int, int], int]]) -> Sample:
    """Turn by quarters, plane after plane, each as ``torch.rot90`` does, in one copy. Labels keep their sides' names.

    Parameters
    ----------
    quarters
        ((first axis, second axis), number of quarter turns) of each plane.
    """
    d = len(sample.shape)
    # Output axis k is input axis order[k], mirrored where reverse[k].
    order, reverse = list(range(d)), [False] * d
    for (a, b), count in quarters:
        for _ in range(count % 4):
            order[a], order[b] = order[b], order[a]
            reverse[a], reverse[b] = not reverse[b], reverse[a]
    if order == list(range(d)) and not any(reverse):
        return sample

    def turned(x: Tensor, skip: int) -> Tensor:
        axes = [*range(skip), *(axis + skip for axis in order)]
        return x.permute(axes).flip([axis + skip for axis in range(d) if reverse[axis]])

    points = sample.points
    if points is not None:
        points = points[:, order]
        last = torch.tensor([sample.shape[axis] - 1.0 for axis in order])
        points = torch.where(torch.tensor(reverse), last - points, points)
    return replace(
        sample,
        image=turned(sample.image, 1),
        labels=None if sample.labels is None else turned(sample.labels, 0),
        mask=None if sample.mask is None else turned(sample.mask, 0),
        points=points,
        spacing=None if sample.spacing is None else sample.spacing[order],
    )


def random_matrix(
    shape: Sequence[int],
    settings: Augmentation,
    random: np.random.Generator,
    spacing: Sequence[float] | ndarray | None = None,
) -> Float[ndarray, "h h"]:
    """Return a homogeneous matrix, output to input index, that turns, scales, shears and shifts about the middle."""
    d = len(shape)
    turned = np.eye(d)
    for a in range(d):
        for b in range(a + 1, d):
            angle = np.radians(random.uniform(-settings.rotation_degrees, settings.rotation_degrees))
            plane = np.eye(d)
            plane[a, a] = plane[b, b] = np.cos(angle)
            plane[a, b], plane[b, a] = -np.sin(angle), np.sin(angle)
            turned = turned @ plane
    scaled = np.diag(1 + random.uniform(-settings.scale, settings.scale, d))
    sheared = np.eye(d) + np.triu(random.uniform(-settings.shear, settings.shear, (d, d)), 1)
    steps = np.diag(np.ones(d) if spacing is None else np.asarray(spacing, dtype=np.float64))
    linear = np.linalg.inv(steps) @ turned @ scaled @ sheared @ steps
    middle = (np.array(shape) - 1) / 2
    matrix = np.eye(d + 1)
    matrix[:d, :d] = linear
    matrix[:d, d] = middle - linear @ middle + random.uniform(-settings.shift, settings.shift, d) * np.array(shape)
    return matrix


def random_elastic(
    shape: Sequence[int], settings: Augmentation, random: np.random.Generator
) -> Float[Tensor, "1 d *space"]:
    """Return the flow of a smooth random velocity, voxels: smooth, and invertible for all but extreme settings."""
    d = len(shape)
    coarse = tuple(max(2, -(-n // settings.elastic_spacing)) for n in shape)
    half = tuple(-(-n // 2) for n in shape)  # smooth as it is, it flows on half the grid at an eighth of the cost
    strength = random.uniform(0, settings.elastic_voxels / 2)
    velocity = torch.from_numpy(random.standard_normal((1, d, *coarse)).astype(np.float32)) * strength
    flowed = field.exponentiate(field.resize(velocity, half).contiguous())
    return field.resize_displacement(flowed, tuple(shape)).contiguous()


def deform(
    sample: Sample, matrix: Float[ndarray, "h h"] | None = None, displacement: Float[Tensor, "1 d *space"] | None = None
) -> Sample:
    """Read everything at ``matrix @ (i + u(i))``, points by the inverse; outside is the background."""
    d = len(sample.shape)
    u = torch.zeros(1, d, *sample.shape) if displacement is None else displacement
    points = sample.points
    if points is not None and len(points):
        back = np.eye(d + 1) if matrix is None else np.linalg.inv(matrix)
        points = points @ torch.from_numpy(back[:d, :d].T).float() + torch.from_numpy(back[:d, d]).float()
        if displacement is not None:
            inverse = field.invert(displacement).displacement
            points = points + field.sample_field(inverse, points.T[None].contiguous())[0].T
    labels, mask = sample.labels, sample.mask
    return replace(
        sample,
        image=warp_image(sample, u, matrix),
        labels=None if labels is None else field.warp(labels[None, None], u, matrix=matrix, mode="nearest")[0, 0],
        mask=None if mask is None
        else field.warp(mask[None, None].to(torch.uint8), u, matrix=matrix, mode="nearest")[0, 0] > 0,
        points=points,
    )  # fmt: skip


def warp_image(
    sample: Sample, displacement: Float[Tensor, "1 d *space"], matrix: Float[ndarray, "h h"] | None = None
) -> Float[Tensor, "c *space"]:
    """Read the image at ``matrix @ (i + u(i))``; outside is its background."""
    background = 0.0 if sample.background is None else sample.background[None]
    return field.warp(sample.image[None], displacement, matrix=matrix, background=background)[0]


def change_intensities(
    image: Float[Tensor, "c *space"], settings: Augmentation, random: np.random.Generator
) -> Float[Tensor, "c *space"]:
    """Change contrast, gamma, brightness across the image, and add noise; each channel stays within its own range."""
    out = []
    for channel in image:
        low, high = channel.min(), channel.max()
        if not bool(high > low):
            out.append(channel)
            continue
        x = (channel - low) / (high - low)
        factor, exponent = np.exp(random.normal(0, settings.contrast)), np.exp(random.normal(0, settings.gamma))
        mean = x.mean()
        x = ((x - mean) * float(factor) + mean).clamp(0, 1) ** float(exponent)
        rough = random.standard_normal((1, 1, *[4] * x.ndim)).astype(np.float32) * random.uniform(0, settings.bias)
        x = x * field.resize(torch.from_numpy(rough.astype(np.float32)), tuple(x.shape))[0, 0].exp()
        noise = torch.from_numpy(random.standard_normal(tuple(x.shape), dtype=np.float32))
        x = (x + noise * random.uniform(0, settings.noise)).clamp(0, 1)
        out.append(x * (high - low) + low)
    return torch.stack(out)
