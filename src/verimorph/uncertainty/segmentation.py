"""From draws of transforms to maps of uncertainty of the labels they carry over, and how well a map tells the error.

Four maps and a sum (Chen et al., ISBI 2024): transformation, appearance, epistemic and aleatoric segmentation
uncertainty. The first two are one map for all classes, the others one a class. Nothing here trains or writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from numpy import ndarray
from scipy import ndimage
from torch import Tensor

from verimorph import field as fields
from verimorph.errors import InputError
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.prepare import default_background
from verimorph.transform import DisplacementField, Transform
from verimorph.uncertainty import metrics
from verimorph.uncertainty.accumulate import Appearance, FieldSpread, LabelVotes, RunningMoments, binary_entropy
from verimorph.uncertainty.sampler import Draw, displacement_of

LOG_VARIANCE = "label_log_variance"
"""Feature of a draw that becomes the aleatoric map."""

WRONG = 0.5
"""A voxel's label counts as wrong where its soft error is above this."""


@dataclass(frozen=True)
class LabelUncertainty:
    """Maps on the grid of the fixed image; k classes, background first.

    Attributes
    ----------
    draws
        T.
    mean_displacement
        ``mean_t u_t``, millimetres along the grid's axes.
    moved_labels
        The labels as the mean displacement moves them, read linearly: what the maps are judged by.
    mean_labels
        ``p_bar = mean_t p_t``.
    transformation, transformation_trace
        ``Var_t |u_t|`` and ``tr Cov_t u_t``, mm^2.
    appearance, predictive_variance
        ``mean_t (I_m o phi_t - I_f)^2`` and ``Var_t (I_m o phi_t)``, squared intensities.
    epistemic
        Binary entropy of ``p_bar`` per class, nats.
    mutual_information, vote_entropy
        Of the draws per class, and of their hard votes, nats.
    aleatoric
        ``mean_t sigma_t^2`` per class, squared label units; None where the draws bring no variance.
    mean_warp_entropy
        Control: binary entropy of ``moved_labels``; no spread enters it, only soft borders.
    """

    draws: int
    mean_displacement: Float[Tensor, "1 d *space"] = field(repr=False)
    moved_labels: Float[Tensor, "1 k *space"] = field(repr=False)
    mean_labels: Float[Tensor, "1 k *space"] = field(repr=False)
    transformation: Float[Tensor, "1 1 *space"] = field(repr=False)
    transformation_trace: Float[Tensor, "1 1 *space"] = field(repr=False)
    appearance: Float[Tensor, "1 1 *space"] = field(repr=False)
    predictive_variance: Float[Tensor, "1 1 *space"] = field(repr=False)
    epistemic: Float[Tensor, "1 k *space"] = field(repr=False)
    mutual_information: Float[Tensor, "1 k *space"] = field(repr=False)
    vote_entropy: Float[Tensor, "1 k *space"] = field(repr=False)
    mean_warp_entropy: Float[Tensor, "1 k *space"] = field(repr=False)
    aleatoric: Float[Tensor, "1 k *space"] | None = field(default=None, repr=False)

    @property
    def combined(self) -> Float[Tensor, "1 k *space"] | None:
        """Epistemic plus aleatoric, unweighted as published (nats and squared label units)."""
        return None if self.aleatoric is None else self.epistemic + self.aleatoric

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Maps by name, in the order of the published table, controls last."""
        yield "transformation", self.transformation
        yield "appearance", self.appearance
        yield "epistemic", self.epistemic
        if self.aleatoric is not None:
            yield "aleatoric", self.aleatoric
            yield "epistemic + aleatoric", self.epistemic + self.aleatoric
        yield "trace of covariance", self.transformation_trace
        yield "predictive variance", self.predictive_variance
        yield "mutual information", self.mutual_information
        yield "entropy of hard votes", self.vote_entropy
        yield "entropy of the mean warp", self.mean_warp_entropy


def one_hot(labels: Image, values: Sequence[int]) -> Float[Tensor, "1 k *space"]:
    """Label image to one channel for each of ``values``, the background (everything else) first."""
    array = torch.from_numpy(np.asarray(labels.array))
    channels = torch.stack([array == value for value in values]).float()
    return torch.cat([1 - channels.sum(0, keepdim=True), channels])[None]


def carried_labels(transform: Transform, labels: Image, values: Sequence[int], grid: Grid) -> Float[Tensor, "1 k *out"]:
    """Labels through a transform as probabilities, read linearly; what comes from outside is background."""
    moved = [
        transform.resample(labels.with_array(channel), grid).tensor()[0]
        for channel in one_hot(labels, values)[0, 1:].numpy()
    ]
    rest = torch.stack(moved, 1)
    return torch.cat([(1 - rest.sum(1, keepdim=True)).clamp(0, 1), rest.clamp(0, 1)], 1)


def label_uncertainty(
    draws: Iterable[Draw], *, fixed: Image, moving: Image, moving_labels: Image, values: Sequence[int]
) -> LabelUncertainty:
    """All maps of a stream of draws; no draw is kept.

    Parameters
    ----------
    draws
        Two or more, of any sampler.
    fixed, moving
        The pair, with intensities on one scale for the appearance maps to mean something.
    moving_labels
        Labels to carry over, on the grid of ``moving``.
    values
        Label values of the classes; ``label_log_variance`` of the draws has them in this order, background first.

    Raises
    ------
    InputError
        If there are fewer than two draws, variances of other classes, or no structures among ``values``.
    """
    if not values or 0 in values:
        raise InputError(f"values are {list(values)}; name the labels of one structure or more, without 0 (background)")
    grid, background = fixed.grid, default_background(moving)
    spread, appearance, votes = FieldSpread(), Appearance(fixed.tensor().float()), LabelVotes()
    variances = RunningMoments()
    for draw in draws:
        spread.add(displacement_of(draw.transform, grid))
        appearance.add(draw.transform.resample(moving, grid, background=background).tensor().float())
        votes.add(carried_labels(draw.transform, moving_labels, values, grid))
        if LOG_VARIANCE in draw.features:
            variances.add(_on_grid(draw.features[LOG_VARIANCE].exp(), draw.grid, grid, len(values) + 1))
    if spread.count < 2:
        raise InputError(f"maps of uncertainty need two draws or more, got {spread.count}")
    if variances.count not in (0, spread.count):
        raise InputError(f"{variances.count} of {spread.count} draws bring variances; all or none must")
    steps = torch.tensor(np.asarray(grid.spacing), dtype=torch.float32).view(1, -1, *[1] * grid.ndim)
    mean = DisplacementField(grid, (spread.mean / steps).contiguous())
    moved = carried_labels(mean, moving_labels, values, grid)
    return LabelUncertainty(
        draws=spread.count,
        mean_displacement=spread.mean,
        moved_labels=moved,
        mean_labels=votes.mean,
        transformation=spread.variance_of_magnitude,
        transformation_trace=spread.trace,
        appearance=appearance.expected_error,
        predictive_variance=appearance.predictive_variance,
        epistemic=votes.class_entropy,
        mutual_information=votes.class_mutual_information,
        vote_entropy=votes.class_vote_entropy,
        mean_warp_entropy=binary_entropy(moved),
        aleatoric=None if variances.count == 0 else variances.mean,
    )


def _on_grid(values: Tensor, source: Grid | None, grid: Grid, classes: int) -> Tensor:
    """Maps of a source's grid on another, read linearly; beyond the source's edge, what stands at it."""
    if values.shape[1] != classes:
        raise InputError(f"the draws bring variances of {values.shape[1]} classes, the labels have {classes}")
    if source is None or source == grid:
        return values
    inner = source.inverse_affine @ grid.affine
    zero = torch.zeros(1, grid.ndim, *grid.shape)
    inside = fields.warp(torch.ones(1, 1, *values.shape[2:]), zero, matrix=inner)
    read = fields.warp(values.contiguous(), zero, matrix=inner)
    # Outside there is no variance to tell: the smallest that was found stands for background far away.
    return torch.where(inside > 0.5, read, values.amin(tuple(range(2, values.ndim)), keepdim=True))


# --- how well a map tells the error ----------------------------------------------------------------------------------


def label_error(
    fixed_labels: Float[Tensor, "1 k *space"], moved_labels: Float[Tensor, "1 k *space"]
) -> Float[Tensor, "1 k *space"]:
    """Soft label error ``|y_k - p_k|``, in [0, 1]."""
    if fixed_labels.shape != moved_labels.shape:
        raise InputError(f"labels differ in shape: {tuple(fixed_labels.shape)} and {tuple(moved_labels.shape)}")
    return (fixed_labels - moved_labels).abs()


def around(structure: Bool[ndarray, "*space"], voxels: int = 5) -> Bool[ndarray, "*space"]:
    """The structure and what is within so many steps of a face neighbour: where an error could be."""
    return ndimage.binary_dilation(structure, iterations=voxels) if voxels > 0 else structure


@dataclass(frozen=True)
class MapScore:
    """How well one map tells one class's error. NaN where the map or the error is constant (structure absent).

    Attributes
    ----------
    pearson
        Over the whole volume, as published.
    pearson_near, spearman_near
        Within the dilated structure.
    auroc_near, ause_near, risk_near
        Within it too: area under the ROC curve for voxels whose error is above `WRONG`; area between sparsification
        curve and oracle, in units of the mean error; area under the risk-coverage curve, in label units.
    """

    name: str
    label: int
    pearson: float
    pearson_near: float
    spearman_near: float
    auroc_near: float
    ause_near: float
    risk_near: float


def score_maps(
    maps: LabelUncertainty, fixed_labels: Image, values: Sequence[int], *, voxels: int = 5
) -> list[MapScore]:
    """Compare every map with the label error of every structure.

    Pearson's r of the map and the soft error over all voxels, background included (the published measure), and the
    controls that it needs: the region near the structure, ranks, wrong voxels found, and what it is worth to leave out
    the most uncertain. ``voxels`` is how far the region reaches.
    """
    truth = one_hot(fixed_labels, values)
    errors = label_error(truth, maps.moved_labels)[0].numpy()
    scores = []
    for index, value in enumerate(values, start=1):
        error = errors[index]
        structure = (truth[0, index].numpy() > 0.5) | (maps.moved_labels[0, index].numpy() > 0.5)
        near = around(structure, voxels)
        for name, tensor in maps.named():
            map_ = tensor[0, index if tensor.shape[1] > 1 else 0].numpy()
            scores.append(_score(name, value, map_, error, near))
    return scores


def _score(name: str, value: int, map_: ndarray, error: ndarray, near: ndarray) -> MapScore:
    inside_map, inside_error = map_[near].astype(np.float64), error[near].astype(np.float64)
    return MapScore(
        name=name,
        label=value,
        pearson=metrics.pearson(map_.astype(np.float64), error.astype(np.float64)),
        pearson_near=metrics.pearson(inside_map, inside_error),
        spearman_near=metrics.spearman(inside_map, inside_error),
        auroc_near=metrics.auroc(inside_map, inside_error > WRONG),
        ause_near=metrics.ause(inside_error, inside_map),
        risk_near=metrics.risk_coverage_area(inside_error, inside_map),
    )


def moved_dice(fixed_labels: Image, moved: Float[Tensor, "1 k *space"], values: Sequence[int]) -> dict[int, float]:
    """Dice of the likeliest class (arg max of the linearly carried labels) per structure; NaN where both lack it."""
    truth: Shaped[ndarray, "*space"] = one_hot(fixed_labels, values)[0].argmax(0).numpy()
    found = moved[0].argmax(0).numpy()
    scores = {}
    for index, value in enumerate(values, start=1):
        first, second = truth == index, found == index
        size = int(first.sum()) + int(second.sum())
        scores[value] = 2 * int((first & second).sum()) / size if size else float("nan")
    return scores
