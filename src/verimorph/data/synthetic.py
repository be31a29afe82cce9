"""Images that were never scanned, with labels and, where one anatomy is deformed twice, the true displacement.

Random shapes of smooth noise, random velocities, images drawn from labels: the family of SynthMorph and SynthSeg.
Functions on tensors, any device, every random number from a generator that is passed in.

References
----------
Hoffmann et al., SynthMorph: learning contrast-invariant registration without acquired images, IEEE TMI 41, 2022.
Billot et al., SynthSeg, Medical Image Analysis 86, 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verimorph import field
from verimorph.data.augment import Sample, warp_image
from verimorph.errors import OptionError, nearest

KINDS = ("shapes", "labels", "images")


@dataclass(frozen=True)
class SyntheticSettings:
    """What is drawn at random, and how strongly. Defaults are those of SynthMorph's shapes model.

    Parameters
    ----------
    kind
        ``shapes``: label maps of nothing but noise, both images from one map. ``labels``: from the label maps of a data
        set, two subjects (the truth is then unknown, labels teach). ``images``: one real image deformed at random.
    labels, maps, map_seed
        ``shapes``: labels of a map; how many maps there are; their seed.
    velocity, scales
        Standard deviation of the velocity, up to so much, and the distance between its random values, one number a
        scale; both in voxels of the grid of half the size on which it flows. ``velocity`` 3 at (8, 16, 32) is the
        shapes model, 0.5 at (16,) the brains model.
    deviation
        Standard deviation of the grey values within a label, a range out of 255.
    means
        Range of the mean of a label, out of 255.
    blur
        Standard deviation of the blur along each axis, up to so many voxels.
    bias
        Standard deviation, up to, of the logarithm of a smooth factor drawn every ``bias_scale`` voxels.
    gamma
        Standard deviation of the logarithm of the exponent.
    zero_background
        Probability that the background (label 0) is 0.
    """

    kind: str = "shapes"
    labels: int = 16
    maps: int = 100
    map_seed: int = 0
    velocity: float = 3.0
    scales: tuple[int, ...] = (8, 16, 32)
    means: tuple[float, float] = (25.0, 225.0)
    deviation: tuple[float, float] = (5.0, 25.0)
    blur: float = 1.0
    bias: float = 0.3
    bias_scale: int = 40
    gamma: float = 0.25
    zero_background: float = 0.2

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OptionError(f"synthetic: unknown kind '{self.kind}'{nearest(self.kind, KINDS)}")
        if self.labels < 2 or self.maps < 1 or not self.scales or min(self.scales) < 1:
            raise OptionError(
                "synthetic: labels must be 2 or more, maps 1 or more, scales one or more numbers of voxels"
            )
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, float | int) and value < 0:
                raise OptionError(f"synthetic: {item.name} is {value}; give 0 or more")
        for name in ("means", "deviation"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]:
                raise OptionError(f"synthetic: {name} is {tuple(bounds)}; give two numbers, 0 <= low <= high")


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One number between two."""
    return low + (high - low) * float(torch.rand((), generator=generator, device=generator.device))


def smooth_noise(
    shape: Sequence[int],
    scales: Sequence[int],
    *,
    most: float,
    least: float = 0.0,
    channels: int = 1,
    generator: torch.Generator,
) -> Float[Tensor, "1 c *space"]:
    """Return ``sum_s up(N(0, sigma_s^2) on a grid of ceil(shape / s))``, ``sigma_s ~ U(least, most)``; linear up."""
    total = torch.zeros(1, channels, *shape, device=generator.device)
    for scale in scales:
        coarse = [max(2, math.ceil(n / scale)) for n in shape]
        rough = torch.randn(1, channels, *coarse, generator=generator, device=generator.device)
        total += field.resize(rough * uniform(least, most, generator), tuple(shape))
    return total


def shape_map(
    shape: Sequence[int], labels: int, *, scales: Sequence[int] = (32, 64), generator: torch.Generator
) -> Int[Tensor, "*space"]:
    """Return a map of random shapes: the label of the largest of so many smooth noise images, each warped at random.

    One image at a time, so that memory does not grow with the number of labels. Labels are 0 to ``labels - 1``; the
    warps reach a sixteenth of the longest side (16 voxels at 256, as published). The noise of no scale is weaker than
    one half, lest a label vanish.
    """
    best = torch.full((1, 1, *shape), -math.inf, device=generator.device)
    found = torch.zeros((1, 1, *shape), dtype=torch.int64, device=generator.device)
    for label in range(labels):
        noise = smooth_noise(shape, scales, most=1.0, least=0.5, generator=generator)
        bend = smooth_noise(shape, (16, 32, 64), most=max(shape) / 16, channels=len(shape), generator=generator)
        value = field.warp(noise, _kept_inside(bend))
        better = value > best
        best, found = torch.where(better, value, best), torch.where(better, label, found)
    return found[0, 0]


def _kept_inside(displacement: Float[Tensor, "1 d *space"]) -> Float[Tensor, "1 d *space"]:
    """Stop vectors at the rim of the grid, so that what is read beyond it is the edge's value and no background."""
    index = field.voxel_index(tuple(displacement.shape[2:]), device=displacement.device)
    last = torch.tensor(displacement.shape[2:], device=displacement.device).view(1, -1, *[1] * (index.ndim - 2)) - 1.0
    return torch.minimum((index + displacement).clamp(min=0), last) - index


def random_velocity(
    shape: Sequence[int], settings: SyntheticSettings, *, generator: torch.Generator
) -> Float[Tensor, "1 d *half"]:
    """Return a smooth stationary velocity on the grid of half the size, in voxels of that grid."""
    half = [math.ceil(n / 2) for n in shape]
    return smooth_noise(half, settings.scales, most=settings.velocity, channels=len(half), generator=generator)


def flow(velocity: Float[Tensor, "1 d *half"], shape: Sequence[int]) -> Float[Tensor, "1 d *space"]:
    """Return the displacement of a velocity's flow on the full grid, voxels of that grid."""
    return field.resize_displacement(field.exponentiate(velocity), tuple(shape)).contiguous()


def render(
    labels: Int[Tensor, "*space"], settings: SyntheticSettings, *, generator: torch.Generator
) -> Float[Tensor, "1 *space"]:
    """Return an image of a label map: each label a random mean and noise, then blur, bias, range [0, 1] and gamma."""
    device = generator.device
    count = int(labels.max()) + 1
    low, high = settings.means
    means = low + (high - low) * torch.rand(count, generator=generator, device=device)
    sd_low, sd_high = settings.deviation
    deviations = sd_low + (sd_high - sd_low) * torch.rand(count, generator=generator, device=device)
    means[0] = uniform(0, high, generator)
    deviations[0] = uniform(0, sd_high, generator)
    if uniform(0, 1, generator) < settings.zero_background:
        means[0] = deviations[0] = 0
    noise = torch.randn(labels.shape, generator=generator, device=device)
    image = (means[labels] + deviations[labels] * noise)[None, None]
    image = field.gaussian_smooth(image, [uniform(0, settings.blur, generator) for _ in labels.shape])
    bias = smooth_noise(labels.shape, (settings.bias_scale,), most=settings.bias, generator=generator)
    image = (image * bias.exp()).clamp(0, 255)
    lowest, highest = image.min(), image.max()
    image = (image - lowest) / (highest - lowest).clamp(min=1e-6)
    exponent = math.exp(settings.gamma * float(torch.randn((), generator=generator, device=device)))
    return image[0] ** exponent


def label_pair(
    fixed: Int[Tensor, "*space"],
    moving: Int[Tensor, "*space"],
    settings: SyntheticSettings,
    *,
    classes: int,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Return two images of label maps, deformed and drawn independently.

    Both maps are deformed by flows ``phi_f`` and ``phi_m`` of random velocities. Where they are one and the same map,
    ``known_field`` is the displacement of the true transform ``phi_m^-1 o phi_f``, with ``phi_m^-1 = exp(-v_m)``.

    Returns
    -------
    dict
        ``fixed`` and ``moving`` (:class:`~verimorph.data.augment.Sample`), and ``known_field`` (d, *space). For
        ``shapes`` all labels count, so class i is label i - 1; for maps of a data set 0 is the background.
    """
    shape = tuple(fixed.shape)
    made: dict[str, Any] = {}
    velocities = []
    for role, labels in (("fixed", fixed), ("moving", moving)):
        velocity = random_velocity(shape, settings, generator=generator)
        velocities.append(velocity)
        bent = field.warp(labels[None, None], _kept_inside(flow(velocity, shape)), mode="nearest")[0, 0]
        image = render(bent, settings, generator=generator)
        numbered = bent + 1 if settings.kind == "shapes" else bent
        made[role] = Sample(image, labels=numbered, known=torch.ones(classes, dtype=torch.bool))
    if fixed is moving:
        back = flow(-velocities[1], shape)
        made["known_field"] = field.compose(back, flow(velocities[0], shape))[0]
    return made


def deformed_pair(fixed: Sample, settings: SyntheticSettings, *, generator: torch.Generator) -> dict[str, Any]:
    """Return a real image and itself deformed at random; the displacement between them is known.

    The moving image is ``J(y) = I(phi(y))`` with ``phi = exp(v)``; then ``I(x) = J(phi^-1(x))`` and the true transform,
    fixed to moving, is ``phi^-1 = exp(-v)``.
    """
    shape = fixed.shape
    velocity = random_velocity(shape, settings, generator=generator)
    forward = flow(velocity, shape)
    moving = Sample(
        image=warp_image(fixed, forward),
        labels=None if fixed.labels is None else field.warp(fixed.labels[None, None], forward, mode="nearest")[0, 0],
        known=fixed.known,
        background=fixed.background,
    )
    kept = replace(fixed, mask=None, points=None)
    return {"fixed": kept, "moving": moving, "known_field": flow(-velocity, shape)[0]}
