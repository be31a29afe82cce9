"""The table of terms: what each is called on the command line and in YAML, and what it reads."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, get_type_hints

from torch import Tensor

from verimorph.errors import OptionError, nearest
from verimorph.objective import consistency, labels, regularity, similarity

#: Arguments of a measure that the term fills in by itself.
_FILLED = ("mask", "weight", "spacing", "reduction", "map", "statistics", "generator")


@dataclass(frozen=True)
class Row:
    """One term.

    Attributes
    ----------
    name
        In the grammar.
    measure
        The pure function.
    inputs
        Argument of the function -> name of the tensor it reads.
    optional
        The same, for tensors that may be absent.
    masks
        Tensors whose product is the mask, each optional.
    settings
        Presets of the function's settings; a setting preset here cannot be set again.
    on
        Kinds of field the term may act on, the default first; empty where it reads no single field.
    passes
        Further forward passes it asks for: ``backward`` is the same model or solver with fixed and moving exchanged,
        its tensors under ``backward/``.
    prepare
        Statistics of the fixed image worth keeping between calls: ``prepare(fixed, mask=..., **settings)``.
    """

    name: str
    group: str
    measure: Callable[..., Tensor]
    inputs: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    masks: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    on: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    prepare: Callable[..., Any] | None = None

    @property
    def summary(self) -> str:
        """First line of the measure's docstring."""
        return (inspect.getdoc(self.measure) or "").partition("\n")[0]

    def accepts(self, argument: str) -> bool:
        """Whether the measure has an argument."""
        return argument in _signature(self.measure).parameters

    def options(self) -> dict[str, tuple[Any, Any]]:
        """Settings that a user may give: name -> (type, default)."""
        hints = _hints(self.measure)
        taken = {*_FILLED, *self.inputs, *self.optional, *self.settings}
        return {
            name: (hints[name], parameter.default)
            for name, parameter in _signature(self.measure).parameters.items()
            if name not in taken
        }


@functools.cache
def _signature(measure: Callable[..., Tensor]) -> inspect.Signature:
    return inspect.signature(measure)


@functools.cache
def _hints(measure: Callable[..., Tensor]) -> dict[str, Any]:
    return get_type_hints(inspect.unwrap(measure))


_IMAGES = {"fixed": "fixed", "moved": "moved"}
_LABELS = {"fixed_labels": "labels/fixed", "moved_labels": "labels/moved"}
_BOTH = ("fixed_mask", "moved_mask")
_FIELDS = ("field", "velocity", "inverse")


def _lncc_prepare(fixed: Tensor, *, mask: Tensor | None, radius: Any = 4, border: Any = "valid", **_: Any) -> Any:
    return similarity.lncc_statistics(fixed, radius, mask=mask, border=border)


def _image(name: str, measure: Callable[..., Tensor], **settings: Any) -> Row:
    prepare = _lncc_prepare if name == "lncc" else None
    return Row(name, "similarity", measure, _IMAGES, masks=_BOTH, settings=settings, prepare=prepare)


def _field(name: str, measure: Callable[..., Tensor], on: tuple[str, ...] = _FIELDS, **settings: Any) -> Row:
    argument = "field" if on == _FIELDS else "displacement"
    return Row(name, "regularity", measure, {argument: on[0]}, masks=("field_mask",), settings=settings, on=on)


def _label(name: str, measure: Callable[..., Tensor], **optional: str) -> Row:
    return Row(name, "labels", measure, _LABELS, optional=optional, masks=_BOTH)


_ROWS = (
    _image("mse", similarity.mse),
    _image("mae", similarity.mae),
    _image("pearson", similarity.pearson),
    _image("lncc", similarity.lncc),
    _image("lncc_gaussian", similarity.lncc_gaussian),
    _image("mind", similarity.mind_distance),
    _image("mi", similarity.mutual_information),
    _image("mattes", similarity.mutual_information, window="mattes"),
    _image("nmi", similarity.mutual_information, form="normalised"),
    _image("local_mi", similarity.local_mutual_information),
    _image("correlation_ratio", similarity.correlation_ratio),
    _image("local_correlation_ratio", similarity.local_correlation_ratio),
    _image("ssim", similarity.ssim),
    _image("ngf", similarity.ngf),
    Row(
        "features",
        "similarity",
        similarity.feature_distance,
        {"fixed": "features/fixed", "moved": "features/moved"},
        masks=_BOTH,
    ),
    _field("diffusion", regularity.diffusion),
    _field("tv", regularity.total_variation),
    _field("bending", regularity.bending),
    _field("elastic", regularity.linear_elasticity),
    _field("folding", regularity.jacobian_folding, ("field", "inverse")),
    _field("volume", regularity.jacobian_volume, ("field", "inverse")),
    Row(
        "laplacian_prior",
        "regularity",
        regularity.laplacian_prior,
        {"velocity_mean": "velocity_mean", "velocity_log_variance": "velocity_log_variance"},
        masks=("field_mask",),
    ),
    Row(
        "neutral_gradients",
        "regularity",
        regularity.neutral_gradients,
        {"gradients": "gradients"},
        masks=("field_mask",),
    ),
    Row(
        "inverse_consistency",
        "consistency",
        consistency.inverse_consistency,
        {"field": "field", "inverse": "inverse"},
        masks=("field_mask",),
    ),
    Row(
        "icon",
        "consistency",
        consistency.inverse_consistency,
        {"field": "field", "inverse": "backward/field"},
        masks=("field_mask",),
        settings={"jitter": 0.5},
        passes=("backward",),
    ),
    Row(
        "gradicon",
        "consistency",
        consistency.gradient_inverse_consistency,
        {"field": "field", "inverse": "backward/field"},
        masks=("field_mask",),
        passes=("backward",),
    ),
    Row(
        "teacher",
        "consistency",
        labels.known_field_distance,
        {"field": "field", "known_field": "teacher/field"},
        masks=("fixed_mask",),
        settings={"squared": True},
    ),
    _label("dice", labels.soft_dice),
    _label("generalised_dice", labels.generalised_dice),
    _label("partial_dice", labels.partial_dice, known="labels/known"),
    _label("cross_entropy", labels.cross_entropy),
    Row(
        "beta_nll",
        "labels",
        labels.beta_nll,
        {**_LABELS, "log_variance": "label_log_variance"},
        masks=_BOTH,
    ),
    Row(
        "landmarks",
        "labels",
        labels.landmark_distance,
        {"field": "field", "fixed_points": "points/fixed", "moving_points": "points/moving"},
        optional={"weight": "points/weight"},
    ),
    Row(
        "known_field",
        "labels",
        labels.known_field_distance,
        {"field": "field", "known_field": "known_field"},
        masks=("fixed_mask",),
    ),
)

#: Every term by name.
TERMS: Mapping[str, Row] = MappingProxyType({row.name: row for row in _ROWS})


def row(name: str) -> Row:
    """The row of a term; an unknown name is refused with the nearest one."""
    if name not in TERMS:
        raise OptionError(f"unknown term '{name}'{nearest(name, TERMS)}")
    return TERMS[name]
