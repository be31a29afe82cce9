"""Terms from text and from YAML: ``lncc:radius=4+mind:weight=0.5``.

Terms are joined by ``+``; a colon starts a term's settings, commas part them, ``x`` parts the numbers of a list
(``radius=4x4x2``). The same in YAML: such a text, a list of ``{name: lncc, radius: 4, weight: 0.5}``, or a mapping
``{lncc: {radius: 4}, mind: {weight: 0.5}}``. Beside its own settings every term takes ``weight``, ``direction``,
``level``, ``scales``, ``scale_weights``, and regularisers ``on``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from verimorph.errors import OptionError, nearest
from verimorph.objective.objective import Objective, Schedule
from verimorph.objective.registry import row
from verimorph.objective.terms import DIRECTION, MultiScale, ObjectiveTerm, Term

Specification = str | Sequence[Mapping[str, Any]] | Mapping[str, Any]

_COMMON = ("weight", "direction", "level", "scales", "scale_weights", "on")

#: The least value of a setting, and whether it must be more than that.
_LEAST: Mapping[str, tuple[int, bool]] = {
    "weight": (0, False),
    "radius": (0, False),
    "radius_mm": (0, True),
    "dilation": (1, False),
    "dilation_mm": (0, True),
    "patch": (1, False),
    "patch_mm": (0, True),
    "sigma": (0, True),
    "sigma_mm": (0, True),
    "sigma_ratio": (0, True),
    "bins": (2, False),
    "epsilon": (0, False),
    "scales": (1, False),
}


class ScheduleSettings(BaseModel):
    """A weight that changes with progress, as YAML gives it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    start: float
    stop: float
    begin: float = 0.0
    end: float = 1.0
    shape: Literal["linear", "cosine", "log"] = "linear"


def _direction(name: str) -> str:
    if not DIRECTION.fullmatch(name):
        raise ValueError("give forward, backward, or stage1, stage2, ...")
    return name


@functools.cache
def settings_model(name: str) -> type[BaseModel]:
    """The strict model of a term's settings, read off its measure's signature."""
    entry = row(name)
    fields: dict[str, Any] = {key: (hint, default) for key, (hint, default) in entry.options().items()}
    fields["weight"] = (float | str | ScheduleSettings, 1.0)
    fields["direction"] = (Annotated[str, AfterValidator(_direction)] | None, None)
    fields["level"] = (int, Field(1, ge=1))
    fields["scales"] = (int | tuple[int, ...], (1,))
    fields["scale_weights"] = (tuple[float, ...] | None, None)
    if entry.on:
        fields["on"] = (Literal[entry.on], entry.on[0])
    config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
    return create_model(f"{name}_settings", __config__=config, **fields)


def _value(text: str) -> Any:
    """A word of the grammar as a Python value."""
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    parts = text.split("x")
    numbers = [_number(part) for part in parts]
    if any(number is None for number in numbers):
        return text
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def parse(text: str) -> list[dict[str, Any]]:
    """Text to a list of settings with the term's ``name``.

    >>> parse("lncc:radius=4+mind:weight=0.5")
    [{'name': 'lncc', 'radius': 4}, {'name': 'mind', 'weight': 0.5}]
    """
    entries = []
    for part in _split_terms(text):
        name, colon, rest = part.strip().partition(":")
        if not name or (colon and not rest.strip()):
            raise OptionError(f"'{text}' is not a list of terms; write for instance lncc:radius=4+mind:weight=0.5")
        entry: dict[str, Any] = {"name": name.strip()}
        for setting in filter(None, rest.split(",")):
            key, equals, value = setting.partition("=")
            if not equals or not value.strip():
                raise OptionError(f"setting '{setting.strip()}' of term '{name}' has no value; write key=value")
            if key.strip() in entry:
                raise OptionError(f"setting '{key.strip()}' of term '{name}' is given twice")
            entry[key.strip()] = _value(value.strip())
        entries.append(entry)
    return entries


def _split_terms(text: str) -> list[str]:
    """Parts between plus signs, where the plus of an exponent (``1e+3``) parts nothing."""
    parts = [""]
    for index, letter in enumerate(text):
        exponent = index >= 2 and text[index - 1] in "eE" and text[index - 2].isdigit()
        if letter == "+" and not exponent:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _entries(specification: Specification) -> list[dict[str, Any]]:
    if isinstance(specification, str):
        return parse(specification)
    if isinstance(specification, Mapping):
        if "name" in specification:
            return [dict(specification)]
        return [{"name": name, **(settings or {})} for name, settings in specification.items()]
    entries = []
    for entry in specification:
        if isinstance(entry, str):
            entries += parse(entry)
        elif isinstance(entry, Mapping) and "name" in entry:
            entries.append(dict(entry))
        else:
            raise OptionError(f"a term must be text or a mapping with a 'name', got {entry!r}")
    return entries


def _frozen(value: Any) -> Any:
    return tuple(_frozen(part) for part in value) if isinstance(value, list) else value


def validate(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a term, checked and completed; an unknown key is refused with the nearest valid one."""
    model = settings_model(name)
    for key in settings:
        if key not in model.model_fields:
            raise OptionError(f"term '{name}' has no setting '{key}'{nearest(key, model.model_fields)}")
    try:
        checked = model.model_validate({key: _frozen(value) for key, value in settings.items()})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = first["loc"][0] if first["loc"] else "?"
        raise OptionError(
            f"setting '{where}' of term '{name}': {first['msg'].lower()}, got {first['input']!r}"
        ) from None
    values = {key: getattr(checked, key) for key in model.model_fields}
    _check_ranges(name, values)
    return values


def _check_ranges(name: str, values: Mapping[str, Any]) -> None:
    """Refuse numbers that would turn a term round or leave it nothing to measure."""
    for key, value in values.items():
        least, above = _LEAST.get(key, (-math.inf, False))
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int | float):
                continue
            if not math.isfinite(number) or number < least or (above and number == least):
                wanted = (
                    f"{'more than' if above else 'at least'} {least}" if math.isfinite(least) else "a finite number"
                )
                raise OptionError(f"setting '{key}' of term '{name}' is {number}; give {wanted}")


def build_term(name: str, **settings: Any) -> tuple[ObjectiveTerm, float | str | Schedule]:
    """A term and its weight from validated settings."""
    given = validate(name, settings)
    weight = given.pop("weight")
    if isinstance(weight, ScheduleSettings):
        weight = Schedule(**weight.model_dump())
    scales = given.pop("scales")
    scales = (scales,) if isinstance(scales, int) else scales
    shares = given.pop("scale_weights")
    term = Term(name, **{key: value for key, value in given.items() if key in settings or key not in _COMMON})
    if scales == (1,) and shares is None:
        return term, weight
    return MultiScale(term, scales, shares), weight


def build_objective(*specifications: Specification) -> Objective:
    """An objective from one or several specifications (a similarity, a regularity, ...).

    >>> build_objective("lncc:radius=4", "diffusion:weight=0.1").names
    ['lncc', 'diffusion']
    """
    pairs = []
    for specification in specifications:
        for entry in _entries(specification):
            settings = dict(entry)
            name = settings.pop("name")
            if not isinstance(name, str):
                raise OptionError(f"the name of a term must be text, got {name!r}")
            pairs.append(build_term(name, **settings))
    return Objective(pairs)
