"""The part of a recipe that says what is learned from, and what is built of it.

A strict model: an unknown key is refused with the nearest known one. :func:`build_data` turns it into plain objects;
no setting goes further than there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch.utils.data import Dataset as TorchDataset

from verimorph.data.adapters import adapter
from verimorph.data.augment import Augmentation, flip_axes
from verimorph.data.cases import Case, Dataset, Pair, read_folder, read_learn2reg, read_pairs
from verimorph.data.loader import Batch, PairItems, SyntheticItems, batches, collate
from verimorph.data.pairs import PairStream, make_sampler
from verimorph.data.preparation import Preparation
from verimorph.data.store import Store
from verimorph.data.synthetic import SyntheticSettings
from verimorph.errors import InputError, OptionError, nearest
from verimorph.io import validate
from verimorph.io.lock import TemporaryFolder
from verimorph.io.pairs import names_of_split
from verimorph.io.paths import expand


class Strict(BaseModel):
    """Settings whose unknown keys are refused with the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            for key in given:
                if key not in cls.model_fields:
                    raise ValueError(f"no setting '{key}'{nearest(str(key), cls.model_fields)}")
        return given


class FolderConfig(Strict):
    """A folder whose files have a pattern; see :func:`verimorph.data.cases.read_folder`."""

    images: str
    labels: str | None = None
    masks: str | None = None
    landmarks: str | None = None
    subject: str | None = None
    cohort: str | None = None
    label_names: dict[int, str] = Field(default_factory=dict)
    swaps: list[tuple[int, int]] = Field(default_factory=list)


class PairsConfig(Strict):
    """Which images meet; see :mod:`verimorph.data.pairs`.

    ``kind`` is ``inter`` (between subjects), ``intra`` (within), ``atlas`` (``atlas`` is the id of the moving image),
    ``listed`` (``list`` names a list of pairs; default the split's) or ``single`` (models of one image).
    """

    kind: Literal["inter", "intra", "atlas", "listed", "single"] = "inter"
    list: str | None = None
    atlas: str | None = None
    bidirectional: bool = False
    within_cohort: bool = True
    itself: bool = False

    @model_validator(mode="after")
    def _acts(self) -> PairsConfig:
        kinds = {"list": "listed", "atlas": "atlas", "within_cohort": "inter", "itself": "inter"}
        for name, kind in kinds.items():
            if self.kind != kind and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of kind '{kind}', and kind is '{self.kind}'; leave it out")
        return self


class DataConfig(Strict):
    """What is learned from.

    Exactly one source: ``dataset`` (a named set; ``root`` its folder, ``options`` its options), ``csv`` (a list of
    pairs; ``root`` where relative names start), ``folder`` (patterns under ``root``), ``learn2reg`` (a dataset file;
    ``root`` as for ``csv``), or ``synthetic`` of kind ``shapes`` alone. ``synthetic`` of another kind comes besides a
    source.

    Parameters
    ----------
    train
        Split (several joined by ``+``, ``all``) or ids to train on.
    labelled
        Split or ids whose label maps count; those of the other training images are left out (scarce labels).
    validation
        List of pairs, or split whose pairs in order are taken; None: no validation.
    classes
        Label values that count, in the order of the classes; default: all that the set names.
    keep_labels
        False: train without label maps.
    noisy_labels
        Folder of predicted label maps ``ID.nii.gz`` for classes a training image lacks.
    preparation
        Settings of :class:`verimorph.data.preparation.Preparation`; those of the named set are the default.
    crop
        Window of so many voxels at a random place, one for both images.
    augment
        Settings of :class:`verimorph.data.augment.Augmentation`.
    memory
        Keep prepared images in memory (where ``cache`` is not given).
    cache
        Folder that keeps prepared images between runs; read from there as memory maps.
    workers
        Processes that prepare batches ahead; they share prepared images through ``cache``, or a folder of this run.
    """

    dataset: str | None = None
    root: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    csv: str | None = None
    folder: FolderConfig | None = None
    learn2reg: str | None = None
    synthetic: dict[str, Any] | None = None

    train: str | list[str] = "train"
    labelled: str | list[str] | None = None
    validation: str | None = None
    classes: list[int] | None = None
    keep_labels: bool = True
    noisy_labels: str | None = None

    preparation: dict[str, Any] = Field(default_factory=dict)
    pairs: PairsConfig = PairsConfig()
    crop: list[int] | None = None
    augment: dict[str, Any] = Field(default_factory=dict)
    memory: bool = True
    cache: str | None = None
    workers: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        sources = [name for name in ("dataset", "csv", "folder", "learn2reg") if getattr(self, name) is not None]
        shapes = self.synthetic is not None and self.synthetic.get("kind", "shapes") == "shapes"
        if len(sources) > 1 or (not sources and not shapes):
            raise ValueError("give one of dataset, csv, folder, learn2reg, or synthetic of kind shapes")
        if sources and shapes:
            raise ValueError(
                f"synthetic shapes need no images; leave out {sources[0]}, or choose kind labels or images"
            )
        if self.labelled is not None and not self.keep_labels:
            raise ValueError("labelled says whose labels count, keep_labels: false that none do; leave one of them out")
        return self

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> DataConfig:
        """Make one of plain settings.

        Raises
        ------
        OptionError
            Naming every setting that cannot be used, with its place.
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            raise OptionError(f"data: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """Say in one line what a strict model refused, and where; each setting once, whatever else it might have been."""
    told: dict[str, str] = {}
    for entry in error.errors():
        kinds = (part for part in entry["loc"] if part != "str" and not str(part).startswith(("list[", "dict[")))
        place = ".".join(map(str, kinds))
        text = entry["msg"].removeprefix("Value error, ")
        text = text[:1].lower() + text[1:]
        got = "" if entry["type"] in ("value_error", "missing") else f", got {entry['input']!r}"
        told.setdefault(place, f"{place}: {text}{got}" if place else f"{text}{got}")
    return "; ".join(told.values())


@dataclass(eq=False)
class Data:
    """What a trainer needs of its data.

    Attributes
    ----------
    dataset
        The cases; None for random shapes.
    preparation, class_values, label_names
        What stands on the model card: class i is label value ``class_values[i - 1]``.
    train_ids
        Images that are trained on.
    validation_pairs
        Ordered pairs (fixed, moving) of ids.
    items
        The endless stream; ``items[n]`` is determined by seed and n.
    """

    preparation: Preparation
    class_values: tuple[int, ...]
    label_names: dict[int, str]
    items: TorchDataset
    dataset: Dataset | None = None
    store: Store | None = None
    validation_store: Store | None = None
    train_ids: tuple[str, ...] = ()
    validation_pairs: tuple[Pair, ...] = ()
    channels: int = 1
    epoch: int = 1
    single: bool = False
    workers: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    _folder: TemporaryFolder | None = field(default=None, repr=False)

    @property
    def classes(self) -> int:
        """Number of classes without the background."""
        return len(self.class_values)

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return self.preparation.ndim

    def fill(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Prepare all training images now; see :meth:`Store.fill`."""
        if self.store is not None:
            self.store.fill(self.train_ids, progress)

    def train_batches(
        self,
        start_step: int = 0,
        *,
        batch: int = 1,
        workers: int | None = None,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
    ) -> Iterator[Batch]:
        """Return an endless iterator of batches from a step on; see :func:`verimorph.data.loader.batches`."""
        count = self.workers if workers is None else workers
        if count > 0 and self.store is not None:
            self._share()
        return batches(
            self.items,
            batch=batch,
            start_step=start_step,
            workers=count,
            rank=rank,
            world=world,
            pin_memory=pin_memory,
        )

    def _share(self) -> None:
        """Let workers read the same files: arrays in the memory of this process would be copied to each of them."""
        if self.store is not None and self.store.folder is None:
            self._folder = TemporaryFolder("verimorph-cache-")
            self.store.folder = self._folder.path
        self.fill()

    def pair(self, fixed: str, moving: str) -> Batch:
        """Return one pair as a batch of one, whole and unchanged."""
        store = self.validation_store or self.store
        if store is None:
            raise OptionError("random shapes have no pairs by name")
        item = {"fixed": store[fixed].sample(), "moving": store[moving].sample(), "names": f"{fixed}<-{moving}"}
        return collate([item])

    def image(self, id: str) -> Batch:
        """Return one image as a batch of one, for models of one image."""
        store = self.validation_store or self.store
        if store is None:
            raise OptionError("random shapes have no images by name")
        return collate([{"image": store[id].sample(), "names": id}])

    def validation_batches(self) -> Iterator[Batch]:
        """Return the validation pairs one by one (for models of one image: each image once)."""
        if self.single:
            yield from (self.image(id) for id in dict.fromkeys(id for pair in self.validation_pairs for id in pair))
        else:
            yield from (self.pair(fixed, moving) for fixed, moving in self.validation_pairs)

    def matrices(self, fixed: str, moving: str) -> tuple[np.ndarray, np.ndarray]:
        """Matrices A of both images of a pair, model index to world."""
        store = self.validation_store or self.store
        if store is None:
            raise OptionError("random shapes lie nowhere in the world")
        return store[fixed].matrix, store[moving].matrix


def build_data(config: DataConfig | Mapping[str, Any], *, seed: int = 0) -> Data:
    """Build what a trainer needs of a configuration.

    Raises
    ------
    InputError, OptionError
        For files that are missing (all of them are listed) and settings that cannot be used.
    """
    settings = config if isinstance(config, DataConfig) else DataConfig.parse(config)
    synthetic = None if settings.synthetic is None else _made(SyntheticSettings, settings.synthetic, "synthetic")
    augmentation = _made(Augmentation, settings.augment, "augment")
    if synthetic is not None and synthetic.kind == "shapes":
        return _shapes(settings, synthetic, augmentation, seed)
    dataset = read_dataset(settings)
    preparation = Preparation.from_dict({**_plain(dataset.preparation), **settings.preparation})
    flip_axes(augmentation, preparation.ndim)  # a wrong axis is better refused before images are read
    try:
        train = dataset.split(settings.train)
    except OptionError as error:
        raise OptionError(f"data.train: {error}") from None
    trained = _with_labels(dataset, settings, train)
    judged_pairs = _validation(settings, dataset)
    seen = dict.fromkeys([*train, *(id for pair in judged_pairs for id in pair)])
    class_values = _class_values(settings, dataset, seen)
    noisy = None if settings.noisy_labels is None else expand(settings.noisy_labels)
    if noisy is not None and not noisy.is_dir():
        raise InputError(f"{noisy}: no such folder of noisy labels; predict them first or leave out noisy_labels")
    cache = None if settings.cache is None else expand(settings.cache)
    store = Store(trained, preparation, class_values, memory=settings.memory, folder=cache, noisy_labels=noisy)
    # What is scored has its own labels, whatever training may see of them.
    judged = Store(dataset, preparation, class_values, memory=settings.memory, folder=cache)
    cases = [trained.case(id) for id in train]
    single = settings.pairs.kind == "single"
    if single and settings.keep_labels:
        cases = [case for case in cases if case.labels is not None or store._noisy_source(case) is not None]
        if not cases:
            raise OptionError("data: no training image has labels; give a split with labels, or noisy_labels")
    stream = PairStream(_sampler(settings, dataset, cases), seed=seed, bidirectional=settings.pairs.bidirectional)
    swaps = _class_swaps(dataset.swaps, class_values)
    items: TorchDataset
    if synthetic is None:
        crop = None if settings.crop is None else tuple(settings.crop)
        items = PairItems(store, stream, seed, crop, augmentation, swaps, single)
    else:
        _refuse_both(augmentation, settings)
        items = SyntheticItems(synthetic, preparation.shape, seed, store, stream)
    ids = tuple(case.id for case in cases)
    if settings.pairs.atlas is not None:
        ids = tuple(dict.fromkeys([*ids, settings.pairs.atlas]))
    return Data(
        preparation=preparation,
        class_values=class_values,
        label_names={value: dataset.label_names.get(value, str(value)) for value in class_values},
        items=items,
        dataset=dataset,
        store=store,
        validation_store=judged,
        train_ids=ids,
        validation_pairs=judged_pairs,
        channels=preparation.channels * len(dataset.cases[0].images),
        epoch=stream.sampler.size,
        single=single,
        workers=settings.workers,
        settings=settings.model_dump(exclude_defaults=True),
    )


def read_dataset(settings: DataConfig) -> Dataset:
    """Read the set that a configuration names; its files are checked to be there."""
    root = None if settings.root is None else expand(settings.root)
    if settings.dataset is not None:
        named = adapter(settings.dataset)
        return named.dataset(root or expand("${VERIMORPH_DATA}") / settings.dataset, **settings.options)
    if settings.options:
        raise OptionError("data: options are those of a named dataset; leave them out")
    if settings.csv is not None:
        made = read_pairs(expand(settings.csv), data=root)
    elif settings.learn2reg is not None:
        made = read_learn2reg(expand(settings.learn2reg), data=root)
    else:
        folder = settings.folder
        if folder is None or root is None:
            raise OptionError("data: a folder needs root, the place its patterns start from")
        told = folder.model_dump(exclude={"label_names", "swaps"})
        read = read_folder(root, **told)
        made = Dataset(
            read.name,
            read.cases,
            folder.label_names,
            {"train": read.ids},
            {},
            tuple((a, b) for a, b in folder.swaps),
        )
    made.require_files()
    return made


def _shapes(settings: DataConfig, synthetic: SyntheticSettings, augmentation: Augmentation, seed: int) -> Data:
    """Data of random shapes alone; every label counts, the one numbered 0 too."""
    _refuse_both(augmentation, settings)
    preparation = Preparation.from_dict({"intensity": "minmax", **settings.preparation})
    values = tuple(range(1, synthetic.labels + 1))
    return Data(
        preparation=preparation,
        class_values=values,
        label_names={value: f"shape {value}" for value in values},
        items=SyntheticItems(synthetic, preparation.shape, seed),
        epoch=synthetic.maps,
        workers=settings.workers,
        settings=settings.model_dump(exclude_defaults=True),
    )


def _refuse_both(augmentation: Augmentation, settings: DataConfig) -> None:
    if augmentation.is_active or settings.crop is not None:
        raise OptionError("data: synthetic pairs bring their own deformations; leave out augment and crop")


def _made(kind: Any, given: Mapping[str, Any], place: str) -> Any:
    """Make settings of a mapping; unknown ones are refused with the nearest, lists become tuples."""
    known = [item.name for item in fields(kind)]
    for name in given:
        if name not in known:
            raise OptionError(f"data: {place} has no setting '{name}'{nearest(name, known)}")
    for item in fields(kind):
        value = given.get(item.name, item.default)
        if not _is_like(value, item.default):
            like = list(item.default) if isinstance(item.default, tuple) else item.default
            raise OptionError(f"data: {place}.{item.name} is {value!r}; give something like {like}")
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    except TypeError as error:
        raise OptionError(f"data: {place}: {error}") from None


def _is_like(value: Any, default: Any) -> bool:
    """Whether a setting is of the type of its default: a number, a text, a list of such; a whole one where that is."""
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and all(_is_like(part, default[0]) for part in value)
    if type(default) in (int, float):
        return isinstance(value, int if type(default) is int else int | float) and not isinstance(value, bool)
    return not isinstance(default, str) or isinstance(value, str)


def _plain(preparation: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in preparation.items()}


def _with_labels(dataset: Dataset, settings: DataConfig, train: Sequence[str]) -> Dataset:
    """Leave label maps out of training where the configuration says so."""
    if not settings.keep_labels:
        return dataset.with_labels_only([])
    if settings.labelled is None:
        return dataset
    labelled = dataset.split(settings.labelled)
    strangers = [id for id in labelled if id not in set(train)]
    if strangers:
        raise OptionError(f"data: labelled names {', '.join(strangers[:5])}, which training does not; both must fit")
    return dataset.with_labels_only(labelled)


def _class_values(settings: DataConfig, dataset: Dataset, ids: Iterable[str]) -> tuple[int, ...]:
    """Label values of the classes: as asked for, as the set names them, or as found in the label maps of ``ids``.

    Labels that are for the validation alone count, too: it scores by them.
    """
    if settings.classes is not None:
        if len(set(settings.classes)) < len(settings.classes) or min(settings.classes, default=1) < 1:
            raise OptionError(f"data: classes {settings.classes} must be label values above 0, each once")
        unknown = [value for value in settings.classes if dataset.label_names and value not in dataset.label_names]
        if unknown:
            raise OptionError(f"data: data set {dataset.name} has no label {unknown[0]}; it has {_few(dataset)}")
        return tuple(settings.classes)
    if dataset.label_names:
        if min(dataset.label_names) < 1:
            raise OptionError(
                f"data: label_names holds {min(dataset.label_names)}; give label values above 0, the background is none"
            )
        return tuple(sorted(dataset.label_names))
    found: set[int] = set()
    for id in ids:
        labels = dataset.case(id).read_labels()
        if labels is not None:
            values = np.unique(validate.whole_numbers(labels, "label map"))
            if values[0] < 0:
                raise InputError(
                    f"label map {labels.name}: holds {values[0]}, and label values are above 0; name those that count "
                    "in data.classes, and what is not among them is background"
                )
            found |= {int(value) for value in values}
    return tuple(sorted(found - {0}))


def _few(dataset: Dataset) -> str:
    names = [f"{value} ({name})" for value, name in sorted(dataset.label_names.items())]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _sampler(settings: DataConfig, dataset: Dataset, cases: Sequence[Case]) -> Any:
    chosen = settings.pairs
    listed: Sequence[Pair] = ()
    if chosen.kind == "listed":
        name = chosen.list or (settings.train if isinstance(settings.train, str) else "train")
        listed = dataset.listed_pairs(name)
    if chosen.atlas is not None:
        dataset.case(chosen.atlas)
    return make_sampler(
        chosen.kind,
        cases,
        listed=listed,
        atlas=chosen.atlas,
        within_cohort=chosen.within_cohort,
        itself=chosen.itself,
    )


def _class_swaps(
    swaps: Sequence[Pair] | Sequence[tuple[int, int]], values: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Pairs of label values as pairs of classes; those of which one does not count are left out."""
    number = {value: i for i, value in enumerate(values, start=1)}
    return tuple((number[a], number[b]) for a, b in swaps if a in number and b in number)  # type: ignore[index]


def _validation(settings: DataConfig, dataset: Dataset) -> tuple[Pair, ...]:
    """The list of that name, or neighbours in the split of that name; ``val`` is also ``validation``."""
    if settings.validation is None:
        return ()
    lists = {**dataset.splits, **dataset.pairs}
    name = next((one for one in names_of_split(settings.validation) if one in lists), settings.validation)
    if name in dataset.pairs:
        return dataset.pairs[name]
    if name in dataset.splits:
        ids = dataset.splits[name]
        return tuple(zip(ids, ids[1:] + ids[:1], strict=True)) if len(ids) > 1 else ()
    raise OptionError(f"data: set {dataset.name} has no list of pairs or split '{name}'{nearest(name, lists)}")
