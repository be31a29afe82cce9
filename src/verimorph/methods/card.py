"""The card of a trained model: what it is, what it was trained on, how well it does, and how to use it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from verimorph.errors import InputError, nearest

#: Number of the card's layout; raised when an older reader could no longer understand it.
LAYOUT = 1

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Label(_Strict):
    """One class of the label maps: the value it has in files, and what it is called."""

    value: int
    name: str


class TrainingData(_Strict):
    """What a model has seen.

    Attributes
    ----------
    name
        Of the data set, or of the file that lists the pairs.
    cases
        Number of images it was trained on; None where unknown.
    sha256
        Of the sorted list of their names, one a line: two models with one hash have seen the same cases.
    """

    name: str
    cases: int | None = None
    sha256: _Sha256 | None = None


class Card(_Strict):
    """What is written beside the weights of a trained model.

    Attributes
    ----------
    method, variant, settings
        What builds the network: ``verimorph.methods.method(method).model(variant=variant, **settings)``.
    task
        ``registration`` or ``segmentation``.
    ndim, channels
        Axes of space, and channels of one image.
    preparation
        Settings of the preparation that puts images on the model's grid (``verimorph.data.preparation``).
    labels
        Classes in the order of the channels, the background first; empty where it was trained without labels.
    start
        How a pair is brought together before the model sees it: ``none``, ``centres``, ``rigid``, ``affine``.
    training_data, steps, recipe
        What it was trained on, for how many steps, and the recipe as it was run.
    metrics
        Measured on the validation pairs, on the model's grid.
    licence
        Of the weights.
    parameters
        Number of trained numbers.
    weights_sha256
        Of ``model.safetensors``; filled in when the model is saved.
    verimorph
        Version that trained it.
    """

    layout: int = LAYOUT
    method: str
    variant: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    task: Literal["registration", "segmentation"] = "registration"
    ndim: Literal[2, 3] = 3
    channels: Annotated[int, Field(ge=1)] = 1
    preparation: dict[str, Any] = Field(default_factory=dict)
    labels: list[Label] = Field(default_factory=list)
    start: str = "none"
    training_data: TrainingData
    steps: int | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    licence: str = "not stated"
    parameters: int | None = None
    weights_sha256: _Sha256 | None = None
    verimorph: str = ""

    def to_json(self) -> str:
        """The card as JSON, indented, keys in the order of the fields."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: object = "card.json") -> Card:
        """Read a card.

        Raises
        ------
        InputError
            If the text is no card; one line says which field is wrong.
        """
        try:
            given = json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{where}: is no model card (not JSON: {error}); fetch or train the model again") from None
        if not isinstance(given, dict) or "method" not in given:
            raise InputError(f"{where}: is no model card (it names no method); fetch or train the model again")
        layout = given.get("layout", LAYOUT)
        if isinstance(layout, int) and layout > LAYOUT:
            raise InputError(f"{where}: is a card of layout {layout}, this version reads {LAYOUT}; update verimorph")
        for key in given:
            if key not in cls.model_fields:
                raise InputError(f"{where}: a model card has no field '{key}'{nearest(key, cls.model_fields)}")
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{where}: field '{field}': {first['msg'].lower()}; the card is damaged") from None


def _settings_text(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in settings.items()) or "the method's defaults"


#: What the centre of a preparation does to a pair, in words.
_PLACED = {
    "image": ", the middles of their fields of view laid together",
    "mass": ", their intensity centres laid together",
    "world": ", in world coordinates",
    "atlas": ", in the world coordinates of the atlas",
}


def render(card: Card) -> str:
    """The card in plain words, Markdown: what stands beside the weights for people to read.

    >>> card = Card(method="voxelmorph", training_data=TrainingData(name="pairs.csv", cases=20))
    >>> print(render(card).splitlines()[0])
    # voxelmorph, trained on pairs.csv
    """
    name = card.method if card.variant is None else f"{card.method} ({card.variant})"
    data = card.training_data
    seen = "an unstated number of images" if data.cases is None else f"{data.cases} images"
    size = "" if card.parameters is None else f" It has {card.parameters:,} parameters."
    job = "takes a fixed and a moving image and gives the displacement that aligns them"
    if card.task == "segmentation":
        job = "takes one image and labels every voxel"
    channels = "one channel" if card.channels == 1 else f"{card.channels} channels"
    lines = [
        f"# {name}, trained on {data.name}",
        "",
        f"This network {job}. It works on {card.ndim}-D images with {channels}.{size}",
        "",
        "## How it was trained",
        "",
        f"On {seen} of {data.name}" + ("" if card.steps is None else f", for {card.steps:,} steps") + ".",
        f"Network settings: {_settings_text(card.settings)}.",
    ]
    if data.sha256 is not None:
        lines.append(f"SHA-256 of the sorted list of cases: `{data.sha256}`.")
    lines += ["", "## What it expects", ""]
    if card.preparation:
        lines.append(f"Images prepared so: {_settings_text(card.preparation)}.")
    if card.task == "registration":
        placed = _PLACED.get(str(card.preparation.get("centre")), "")
        lines.append(
            f"Pairs as they are{placed}." if card.start == "none" else f"Pairs brought together by {card.start}."
        )
    lines.append("Anything else than it was trained on is a guess: look at the result.")
    if card.labels:
        lines += ["", "Labels: " + ", ".join(f"{label.value} {label.name}" for label in card.labels) + "."]
    lines += ["", "## How well it does", ""]
    if card.metrics:
        lines += ["On the validation pairs, on the model's own grid:", "", "| measure | value |", "|---|---|"]
        lines += [f"| {measure} | {value:.4g} |" for measure, value in card.metrics.items()]
    else:
        lines.append("Not measured.")
    lines += [
        "",
        "## Licence and origin",
        "",
        f"Licence of the weights: {card.licence}. Trained with verimorph {card.verimorph or '(version not stated)'}.",
        f"SHA-256 of `model.safetensors`: `{card.weights_sha256}`.",
        "The recipe stands in `card.json`. Loading this model runs no code from these files.",
        "",
    ]
    return "\n".join(lines)


__all__ = ["LAYOUT", "Card", "Label", "TrainingData", "render"]
