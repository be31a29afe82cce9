"""A recipe: one strict YAML file: what is trained, on what, how. Its first lines say the command and the result.

A recipe is settled from four layers, later ones first: ``--set`` on the command line, the file, the method's variant,
the method. What is left open has the defaults below. Here it becomes plain arguments; no setting goes further.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from verimorph.data.config import Strict, explain
from verimorph.errors import InputError, OptionError, nearest
from verimorph.io.paths import expand
from verimorph.methods import METHODS, method
from verimorph.objective import Objective, build_objective
from verimorph.train.phases import Optimiser, Part, Phase
from verimorph.train.teacher import Teacher
from verimorph.uncertainty.double import DoubleWeighting

Terms = str | list[str | dict[str, Any]] | dict[str, Any]


class OptimiserRecipe(Strict):
    """See `verimorph.train.phases.Optimiser`; further keys are those of the torch optimiser."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(default=1e-4, gt=0)
    schedule: Literal["constant", "cosine", "poly"] = "constant"
    power: float = 0.9
    final: float = Field(default=0.0, ge=0, le=1)
    warmup: int = Field(default=0, ge=0)
    weight_decay: float | None = None
    betas: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    eps: float | None = None
    amsgrad: bool | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    settings: dict[str, Any] = Field(default_factory=dict)

    def build(self) -> Optimiser:
        """The plain settings of the loop."""
        own = ("name", "lr", "schedule", "power", "final", "warmup")
        more = self.model_dump(exclude={*own, "settings"}, exclude_none=True)
        return Optimiser(**{name: getattr(self, name) for name in own}, settings={**self.settings, **more})


class PartRecipe(Strict):
    """Some weights (regular expression over their names) and what moves them; see `verimorph.train.phases.Part`."""

    match: str = ""
    optimiser: OptimiserRecipe | None = None
    turns: int | None = Field(default=None, ge=1)
    objective: Terms | None = None


class PhaseRecipe(Strict):
    """One stretch of training; what it leaves open is as in the recipe."""

    name: str | None = None
    steps: int | None = Field(default=None, ge=1)
    objective: Terms | None = None
    optimiser: OptimiserRecipe | None = None
    parts: list[PartRecipe] | None = None
    freeze: list[str] | None = None
    start_from: str | None = None
    strict: bool | None = None
    symmetric: bool | None = None


class TeacherRecipe(Strict):
    """See `verimorph.train.teacher.Teacher` and `verimorph.uncertainty.double.DoubleWeighting`."""

    draws: int = Field(default=6, ge=2)
    smoothness: float = Field(default=5.0, ge=0)
    consistency: float = Field(default=1.0, ge=0)
    transformation_threshold: float = Field(default=0.1, ge=0, le=1)
    appearance_threshold: float = Field(default=0.01, ge=0)

    def build(self) -> Teacher:
        """The plain settings of the loop."""
        return Teacher(self.draws, DoubleWeighting(**self.model_dump(exclude={"draws"})))


class Recipe(Strict):
    """All that a training run is determined by.

    Attributes
    ----------
    method, variant, model
        What is trained, and settings of its builder.
    data
        Settings of `verimorph.data.config.DataConfig`.
    objective
        Terms in the grammar of `verimorph.objective`; default: those of the method.
    steps, batch, accumulate
        Steps of the optimiser, pairs of a batch, batches of a step.
    optimiser, parts, freeze, start_from, strict, symmetric, phases
        See `verimorph.train.phases`. Without ``phases`` there is one, of these settings.
    precision
        ``32-true``, ``bf16-mixed`` or ``16-mixed``; ``gpu-bf16`` is bf16-mixed on a GPU and 32-true elsewhere.
    seed, ema, clip, log_every, validate_every, checkpoint_every, keep, monitor, highest, patience, minutes,
    channels_last, tensorboard
        See `verimorph.train.options.Options`.
    teacher
        See `verimorph.train.teacher`; None: no teacher.
    start
        How predictions bring a pair together before the model sees it: ``none``, ``centres``, ``rigid``, ``affine``.
    licence
        Of the weights.
    """

    method: str
    variant: str | None = None
    model: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)
    objective: Terms | None = None
    steps: int = Field(default=10_000, ge=1)
    batch: int = Field(default=1, ge=1)
    accumulate: int = Field(default=1, ge=1)
    optimiser: OptimiserRecipe = OptimiserRecipe()
    parts: list[PartRecipe] | None = None
    freeze: list[str] = Field(default_factory=list)
    start_from: str | None = None
    strict: bool = True
    symmetric: bool = False
    phases: list[PhaseRecipe] | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "gpu-bf16"] = "32-true"
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    ema: float | None = Field(default=None, gt=0, lt=1)
    teacher: TeacherRecipe | None = None
    clip: float | None = Field(default=None, gt=0)
    log_every: int = Field(default=10, ge=1)
    validate_every: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1)
    monitor: str | None = None
    highest: bool | None = None
    patience: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    channels_last: bool | None = None
    tensorboard: bool = True
    start: Literal["none", "centres", "rigid", "affine"] = "none"
    licence: str = "not stated"

    def build_phases(self) -> tuple[Phase, ...]:
        """The phases, with their objectives."""
        told: list[str | dict[str, Any]] = [*_terms(self.method, self.variant)]
        default: Terms = self.objective if self.objective is not None else told
        objectives: dict[str, Objective] = {}

        def objective(terms: Terms) -> Objective:
            text = json.dumps(terms)
            if text not in objectives:
                objectives[text] = build_objective(*terms) if isinstance(terms, list) else build_objective(terms)
            return objectives[text]

        phases = []
        for number, phase in enumerate(self.phases or [PhaseRecipe()], start=1):
            optimiser = _over(self.optimiser, phase.optimiser)
            parts = phase.parts if phase.parts is not None else self.parts
            first = number == 1
            phases.append(
                Phase(
                    steps=phase.steps or self.steps,
                    objective=objective(phase.objective if phase.objective is not None else default),
                    name=phase.name or (f"phase {number}" if self.phases else "train"),
                    parts=tuple(
                        Part(
                            part.match,
                            _over(optimiser, part.optimiser).build(),
                            part.turns,
                            None if part.objective is None else objective(part.objective),
                        )
                        for part in parts or [PartRecipe()]
                    ),
                    freeze=tuple(self.freeze if phase.freeze is None else phase.freeze),
                    start_from=_expand(phase.start_from or (self.start_from if first else None)),
                    strict=self.strict if phase.strict is None else phase.strict,
                    symmetric=self.symmetric if phase.symmetric is None else phase.symmetric,
                )
            )
        return tuple(phases)

    def to_yaml(self, *, head: Sequence[str] = ()) -> str:
        """The recipe as a file, all that any of its layers said; ``head`` are its first comment lines.

        A value that happens to be a default is written, too: read back, it stands against the method's own.
        """
        settings = self.model_dump(mode="json", exclude_unset=True)
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=110)
        return "".join(f"# {line}\n" for line in head) + text


def _over(base: OptimiserRecipe, more: OptimiserRecipe | None) -> OptimiserRecipe:
    """What ``more`` says, and for the rest what ``base`` does."""
    return base if more is None else base.model_copy(update=more.model_dump(exclude_unset=True))


def _expand(path: str | None) -> str | None:
    return None if path is None else str(expand(path))


def _terms(name: str, variant: str | None) -> tuple[str, ...]:
    told = method(name)
    return told.variant(variant).objective or told.objective


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-4`` is a number, a date is a text, and a key that is given twice is refused."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, dict | list):
            told = "a mapping or list stands where a key is; put texts with braces or brackets into quotes"
            raise yaml.constructor.ConstructorError(None, None, told, key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(text: str, *, where: object = "recipe") -> Any:
    """YAML to plain values.

    Raises
    ------
    InputError
        If it is no YAML, or a key is given twice; with the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{where}{line}: {getattr(error, 'problem', None) or error}; mend the file") from None


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Layers of settings as one; later ones win, mappings within mappings are merged too.

    >>> merged({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}, "b": 4})
    {'a': {'x': 1, 'y': 3}, 'b': 4}
    """
    whole: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(whole.get(key), Mapping):
                whole[key] = merged(whole[key], value)
            else:
                whole[key] = dict(value) if isinstance(value, Mapping) else value
    return whole


def assignments(texts: Iterable[str]) -> list[tuple[list[str], Any]]:
    """``key.sub=value`` of the command line as places and values; values are read as in YAML.

    >>> assignments(["optimiser.lr=1e-3", "data.crop=[64, 64, 64]"])
    [(['optimiser', 'lr'], 0.001), (['data', 'crop'], [64, 64, 64])]
    """
    found = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise OptionError(f"--set '{text}' says nothing; write key=value, for instance --set optimiser.lr=1e-3")
        found.append((key.strip().split("."), read_yaml(value, where=f"--set {text}")))
    return found


def assign_setting(settings: dict[str, Any], place: Sequence[str], value: Any) -> None:
    """Put a value at a place of nested mappings and lists; numbers are places in lists."""
    here: Any = settings
    for depth, (key, following) in enumerate(zip(place, [*place[1:], None], strict=True)):
        if isinstance(here, list):
            if not key.isdigit() or int(key) >= len(here):
                shown = ".".join(place[: depth + 1])
                raise OptionError(f"--set {'.'.join(place)}: '{shown}' is no place in a list of {len(here)} entries")
            where: Any = int(key)
        elif isinstance(here, dict):
            where = key
        else:
            raise OptionError(f"--set {'.'.join(place)}: '{'.'.join(place[:depth])}' is a value, nothing is under it")
        if following is None:
            here[where] = value
            return
        if isinstance(here, dict) and here.get(where) is None:
            here[where] = {}
        here = here[where]


def settle(given: Mapping[str, Any], *, sets: Iterable[str] = (), where: object = "recipe") -> Recipe:
    """A recipe from what a file says, over the scheme of its method, under ``--set``.

    Raises
    ------
    OptionError
        For a key that is unknown (the nearest one is named), a value that does not fit, or an unknown method.
    """
    settings = dict(given)
    try:
        settings = json.loads(json.dumps(settings))
        for place, value in assignments(sets):
            assign_setting(settings, place, json.loads(json.dumps(value)))
    except TypeError as error:  # what YAML calls !!set or !!binary
        raise OptionError(f"{where}: {error}; write numbers, texts, lists and mappings alone") from None
    name = settings.get("method")
    if not isinstance(name, str):
        raise OptionError(f"{where}: names no method; write method: {next(iter(METHODS))}")
    told = method(name)
    variant = told.variant(settings.get("variant"))
    scheme = json.loads(json.dumps(merged(told.scheme, variant.scheme)))
    whole = merged(scheme, settings)
    try:
        recipe = Recipe.model_validate(whole)
    except ValidationError as error:
        raise OptionError(f"{where}: {explain(error)}") from None
    known = told.settings()
    for setting in recipe.model:
        if setting not in known:
            raise OptionError(f"{where}: method '{name}' has no setting '{setting}'{nearest(setting, known)}")
    recipe.build_phases()  # a mistake in the terms or phases is better said before data are read
    return recipe


def read_recipe(path: str | os.PathLike, *, sets: Iterable[str] = (), over: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe file; ``over`` are settings that win over the file, ``sets`` those that win over both.

    Raises
    ------
    InputError
        If there is no such file, or it is no YAML.
    OptionError
        As `settle`.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: there is no such recipe; give a YAML file or the name of a method")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: is no text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    given = read_yaml(text, where=file)
    if not isinstance(given, dict):
        raise InputError(f"{file}: is no recipe; it must hold settings, 'method' among them")
    return settle(merged(given, over or {}), sets=sets, where=file)


__all__ = [
    "OptimiserRecipe",
    "PartRecipe",
    "PhaseRecipe",
    "Recipe",
    "assign_setting",
    "assignments",
    "merged",
    "read_recipe",
    "read_yaml",
    "settle",
]
