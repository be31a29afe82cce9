"""What a file of this folder says about its method: plain data and one builder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from verimorph.errors import OptionError, VerimorphError, nearest


@dataclass(frozen=True)
class Citation:
    """Where the idea was published."""

    authors: str
    title: str
    venue: str
    year: int
    doi: str = ""


@dataclass(frozen=True)
class Published:
    """One figure from the paper or its code, to compare with."""

    data: str
    measure: str
    value: float
    source: str


@dataclass(frozen=True)
class Variant:
    """A named choice of settings of builder, objective and scheme; what is not given is the method's."""

    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    objective: tuple[str, ...] | None = None
    scheme: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None


@dataclass(frozen=True)
class Method:
    """One published method.

    Attributes
    ----------
    build
        Makes the model from flat keyword arguments; ``ndim`` (2 or 3) and ``channels`` (of one image) come first.
    objective
        Terms in the grammar of `verimorph.objective`, for instance ``("lncc:radius=4", "diffusion")``.
    scheme
        How it is trained where a recipe says nothing else: keys of a recipe's phase and of its top level, for instance
        ``{"optimiser": {"name": "adam", "lr": 1e-4}, "batch": 1, "symmetric": True}``.
    task
        ``registration`` (two images in) or ``segmentation`` (one image in, ``logits`` out).
    parameters
        Published number of parameters at the default settings in 3-D with one channel; None where none is published.
    needs
        Optional packages, as extras (``train`` brings MONAI).
    """

    name: str
    summary: str
    citation: Citation
    build: Callable[..., nn.Module]
    objective: tuple[str, ...]
    scheme: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Variant] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    task: Literal["registration", "segmentation"] = "registration"
    parameters: int | None = None
    needs: tuple[str, ...] = ()
    deviations: str = ""

    def variant(self, name: str | None) -> Variant:
        """Return a variant by name; None is the method itself."""
        if name is None:
            return Variant(self.summary)
        if name not in self.variants:
            raise OptionError(f"method '{self.name}' has no variant '{name}'{nearest(name, self.variants)}")
        return self.variants[name]

    def settings(self) -> dict[str, Any]:
        """Settings of the builder and their defaults."""
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.build).parameters.items()
            if name not in ("ndim", "channels")
        }

    def model(self, *, ndim: int = 3, channels: int = 1, variant: str | None = None, **settings: Any) -> nn.Module:
        """Build the model; an unknown setting is refused with the nearest known one.

        Raises
        ------
        OptionError
            For a setting that is unknown, of another type than its default, or that no network can be built with.
        """
        known = self.settings()
        given = {**self.variant(variant).settings, **settings}
        for name in given:
            if name not in known:
                raise OptionError(f"method '{self.name}' has no setting '{name}'{nearest(name, known)}")
            _check_like(self.name, name, given[name], known[name])
        told = ", ".join(f"{name} {value}" for name, value in settings.items())
        try:
            model = self.build(ndim=ndim, channels=channels, **given)
        except VerimorphError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            if not settings:
                raise
            raise OptionError(f"method '{self.name}' cannot be built with {told} ({error})") from error
        if any(weight.numel() == 0 for weight in model.parameters()):
            raise OptionError(f"method '{self.name}' with {told}: a layer has no channels; give larger numbers")
        return model


def _check_like(method: str, name: str, value: Any, default: Any) -> None:
    """Refuse a setting that is not of the type of its default: a number, a text, a list of whole numbers above 0."""
    if isinstance(default, tuple | list) and default and all(type(entry) is int for entry in default):
        fits, kind = isinstance(value, tuple | list) and _are_counts(value), "whole numbers above 0"
    elif type(default) is int:
        fits, kind = type(value) is int and value >= 0, "a whole number"
    elif type(default) is float:
        fits, kind = type(value) in (int, float), "a number"
    elif type(default) in (bool, str):
        fits, kind = type(value) is type(default), "true or false" if type(default) is bool else "a text"
    else:
        return
    if not fits:
        like = list(default) if isinstance(default, tuple) else default
        raise OptionError(f"method '{method}': {name} is {value!r}; give {kind}, such as {like}")


def _are_counts(values: Any) -> bool:
    """Whether all entries are whole numbers above 0, or lists of such (several convolutions a level)."""
    return all(
        _are_counts(entry) if isinstance(entry, tuple | list) else type(entry) is int and entry > 0 for entry in values
    )
