"""What there is to learn from: cases (one image each, with what belongs to it), and sets of them with their splits.

Readers make a :class:`Dataset` of a CSV of pairs, a folder or a Learn2Reg file; named sets are in ``adapters/``.
Nothing is loaded here but lists and headers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from verimorph.data.source import Source, as_source
from verimorph.errors import InputError, OptionError, nearest
from verimorph.image import Image
from verimorph.io import validate
from verimorph.io.pairs import learn2reg_pairs, learn2reg_place, read_learn2reg_lists, read_rows, start_of, stem
from verimorph.io.points import Points, as_points

Pair = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """One image and what belongs to it.

    Attributes
    ----------
    id
        Unique in its set.
    images
        One file, or several on one world that become channels.
    labels, mask
        On the grid of the image.
    landmarks
        File of world points; ``file::prefix`` picks a list of a table.
    landmarks_in_voxels
        Learn2Reg's form: no header, voxel indices of the image.
    subject, cohort
        Whom it shows, for pairs within a subject; where it comes from, for pairs within a cohort.
    known
        Label values that are truly annotated; None: all of the set, where there is a label map.
    relabel
        Value in the file -> value in the set.
    """

    id: str
    images: tuple[Source, ...]
    labels: Source | None = None
    mask: Source | None = None
    landmarks: str | None = None
    landmarks_in_voxels: bool = False
    subject: str = ""
    cohort: str = ""
    known: frozenset[int] | None = None
    relabel: tuple[tuple[int, int], ...] = ()

    @property
    def files(self) -> list[Path]:
        """Every file the case names."""
        found = [source.path for source in (*self.images, self.labels, self.mask) if source is not None]
        if self.landmarks is not None:
            found.append(Path(self.landmarks.partition("::")[0]))
        return found

    def read_images(self) -> list[Image]:
        """Read the images (their voxels when first needed)."""
        return [source.read() for source in self.images]

    def read_labels(self) -> Image | None:
        """Read the label map, values as the set numbers them; None where there is none."""
        if self.labels is None:
            return None
        found = self.labels.read()
        if not self.relabel:
            return found
        voxels = validate.whole_numbers(found, "label map").astype(np.int32)
        out = voxels.copy()
        for old, new in self.relabel:
            out[voxels == old] = new
        return found.with_array(out)

    def read_points(self, image: Image) -> Points | None:
        """Read the landmarks as world points."""
        if self.landmarks is None:
            return None
        if not self.landmarks_in_voxels:
            return as_points(self.landmarks)
        try:
            index = np.loadtxt(self.landmarks, delimiter=",", ndmin=2)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.landmarks}: not a readable list of voxel indices ({error})") from None
        return Points(image.grid.index_to_world(index), name=Path(self.landmarks).name)


@dataclass(frozen=True)
class Dataset:
    """Cases with their labels, splits and listed pairs.

    Attributes
    ----------
    label_names
        Label value -> name, without the background.
    splits
        Name -> ids.
    pairs
        Name -> ordered pairs (fixed, moving) of ids.
    swaps
        Label values that change places when left and right do.
    units
        ``voxel`` where the images have no known voxel size, else ``mm``: what predictions are scored in.
    preparation
        Settings of :class:`verimorph.data.preparation.Preparation` that suit the set; a recipe overrides them.
    obtain, licence
        How to obtain the data and under which terms, one line each.
    """

    name: str
    cases: tuple[Case, ...]
    label_names: Mapping[int, str] = field(default_factory=dict)
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pairs: Mapping[str, tuple[Pair, ...]] = field(default_factory=dict)
    swaps: tuple[tuple[int, int], ...] = ()
    preparation: Mapping[str, Any] = field(default_factory=dict)
    units: str = "mm"
    obtain: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        ids = [case.id for case in self.cases]
        if not ids:
            raise InputError(f"data set {self.name}: holds no case{'; ' + self.obtain if self.obtain else ''}")
        twice = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
        if twice:
            raise InputError(f"data set {self.name}: case {twice[0]} stands there more than once; name each case once")
        known = set(ids)
        for kind, lists in (("split", self.splits), ("pairs", self.pairs)):
            for name, entries in lists.items():
                strangers = {i for entry in entries for i in ([entry] if isinstance(entry, str) else entry)} - known
                if strangers:
                    raise InputError(
                        f"data set {self.name}: {kind} '{name}' names {', '.join(sorted(strangers)[:5])}, "
                        f"which {'is' if len(strangers) == 1 else 'are'} not among its {len(known)} cases"
                    )

    def case(self, id: str) -> Case:
        """Return a case by its id."""
        found = self._by_id.get(id)
        if found is None:
            raise OptionError(f"data set {self.name} has no case '{id}'{nearest(id, self._by_id)}")
        return found

    @property
    def _by_id(self) -> dict[str, Case]:
        made = self.__dict__.get("_index")
        if made is None:
            made = {case.id: case for case in self.cases}
            object.__setattr__(self, "_index", made)
        return made

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids."""
        return tuple(case.id for case in self.cases)

    def split(self, wanted: str | Sequence[str] | None) -> tuple[str, ...]:
        """Return the ids of a split; of several joined by ``+``; of a list of ids; ``all`` or None: all."""
        if wanted is None or wanted == "all":
            return self.ids
        if not isinstance(wanted, str):
            return tuple(self.case(id).id for id in wanted)
        found: list[str] = []
        for name in wanted.split("+"):
            if name not in self.splits:
                raise OptionError(f"data set {self.name} has no split '{name}'{nearest(name, [*self.splits, 'all'])}")
            found += self.splits[name]
        return tuple(dict.fromkeys(found))

    def listed_pairs(self, name: str) -> tuple[Pair, ...]:
        """Return a list of pairs by name."""
        if name not in self.pairs:
            raise OptionError(f"data set {self.name} has no list of pairs '{name}'{nearest(name, self.pairs)}")
        return self.pairs[name]

    def require_files(self, ids: Iterable[str] | None = None) -> None:
        """Check that every file is there.

        Raises
        ------
        InputError
            Naming all missing files at once, and how to obtain the set.
        """
        wanted = self.ids if ids is None else dict.fromkeys(ids)
        files = dict.fromkeys(file for id in wanted for file in self.case(id).files)
        require_files(files, self.name, self.obtain)

    def with_labels_only(self, ids: Iterable[str]) -> Dataset:
        """Return the set with the label maps of other cases than these left out (scarce labels)."""
        kept = set(ids)
        return replace(
            self, cases=tuple(case if case.id in kept else replace(case, labels=None) for case in self.cases)
        )


def require_files(files: Iterable[Path], name: str, obtain: str = "") -> None:
    """Refuse with one line that lists every file that is not there."""
    missing = [file for file in files if not file.exists()]
    if missing:
        count = f"{len(missing)} file{'s are' if len(missing) > 1 else ' is'} missing"
        how = f"; {obtain}" if obtain else "; check the folder"
        raise InputError(f"data set {name}: {count}: {', '.join(map(str, missing))}{how}")


def read_pairs(path: str | Path, *, data: str | Path | None = None, name: str | None = None) -> Dataset:
    """Read a CSV of pairs.

    Its columns are those of `verimorph.io.pairs.read_rows`; ``fixed`` and ``moving`` are needed, ``split`` is ``train``
    where it is not given.

    Every pair of a split is in the list of pairs of that name, and its images in the split.

    Parameters
    ----------
    path
        The file.
    data
        As for `verimorph.io.pairs.read_rows`.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a column, or names no pair.
    """
    file = Path(path)
    rows, columns = read_rows(file, data=data)
    for needed in ("fixed", "moving"):
        if needed not in columns:
            close = nearest(needed, columns) if columns else ""
            raise InputError(f"{file}: has no column '{needed}'{close}; a list of pairs needs fixed and moving")
    cases: dict[Case, Case] = {}
    taken: dict[str, int] = {}
    pairs: dict[str, list[Pair]] = {}
    for row in rows:
        ids = []
        for role in ("fixed", "moving"):
            image = getattr(row, role)
            if image is None:
                raise InputError(f"{file}: line {row.line} has no {role} image; fill it in")
            made = Case(
                id="",
                images=(as_source(image) or Source(image),),
                labels=as_source(getattr(row, f"{role}_labels")),
                mask=as_source(getattr(row, f"{role}_mask")),
                landmarks=getattr(row, f"{role}_landmarks"),
                subject=getattr(row, f"{role}_subject"),
                cohort=row.cohort,
            )
            if made not in cases:
                base = stem(image)
                taken[base] = taken.get(base, 0) + 1
                cases[made] = replace(made, id=base if taken[base] == 1 else f"{base}-{taken[base]}")
            ids.append(cases[made].id)
        pairs.setdefault(row.split or "train", []).append((ids[0], ids[1]))
    return Dataset(
        name=name or file.stem,
        cases=tuple(cases.values()),
        splits={split: tuple(dict.fromkeys(id for pair in listed for id in pair)) for split, listed in pairs.items()},
        pairs={split: tuple(listed) for split, listed in pairs.items()},
    )


def read_folder(
    root: str | Path,
    *,
    images: str,
    labels: str | None = None,
    masks: str | None = None,
    landmarks: str | None = None,
    subject: str | None = None,
    cohort: str | None = None,
    name: str | None = None,
) -> Dataset:
    """Make a set of the files of a folder.

    Parameters
    ----------
    root
        The folder.
    images
        Pattern with one ``{id}``, relative to the folder, such as ``imagesTr/{id}.nii.gz`` or ``{id}/t1.nii.gz``; ``*``
        and ``**`` as in shells. Several patterns joined by ``+`` are channels. What a pattern below takes for
        something of another image is no image.
    labels, masks, landmarks
        The same for what belongs to an image; where one image has none it is left out.
    subject
        Regular expression whose first group, found in the id, says whom the image shows.
    cohort
        The same for the cohort.

    Raises
    ------
    OptionError
        For a pattern without ``{id}``.
    InputError
        If the folder, every image, or what belongs to them is missing everywhere, or a channel of some image is.

    Examples
    --------
    >>> read_folder("scans", images="images/{id}.nii.gz", labels="labels/{id}.nii.gz")  # doctest: +SKIP
    """
    import re

    folder = Path(root)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds the images")
    more = {kind: _found(folder, pattern) if pattern else {} for kind, pattern in
            (("labels", labels), ("masks", masks), ("landmarks", landmarks))}  # fmt: skip
    # Of {id}.nii.gz and {id}_labels.nii.gz the first fits both: scan_labels.nii.gz is no image but the labels of scan.
    belongs = {file: id for kind in more.values() for id, file in kind.items()}
    patterns = images.split("+")
    first = {id: file for id, file in _found(folder, patterns[0]).items() if belongs.get(file, id) == id}
    if not first:
        raise InputError(f"{folder}: no file fits the pattern '{patterns[0]}'; write {{id}} where the names differ")

    def group(expression: str | None, id: str) -> str:
        match = re.search(expression, id) if expression else None
        return (match.group(1) if match.groups() else match.group(0)) if match else ""

    rest = [_found(folder, pattern) for pattern in patterns[1:]]
    lacking = [f"{id} ({pattern})" for id in first for pattern, found in zip(patterns[1:], rest, strict=True)
               if id not in found]  # fmt: skip
    if lacking:
        raise InputError(f"{folder}: {len(lacking)} channels are missing: {', '.join(lacking)}")
    for kind, pattern in (("labels", labels), ("masks", masks), ("landmarks", landmarks)):
        if pattern and not more[kind].keys() & first.keys():
            raise InputError(
                f"{folder}: no file for any of its {len(first)} images fits the pattern '{pattern}' of {kind}"
            )
    cases = []
    for id, file in first.items():
        points = more["landmarks"].get(id)
        cases.append(
            Case(
                id=id,
                images=tuple(Source(found) for found in (file, *(channel[id] for channel in rest))),
                labels=as_source(more["labels"].get(id)),
                mask=as_source(more["masks"].get(id)),
                landmarks=str(points) if points else None,
                subject=group(subject, id),
                cohort=group(cohort, id),
            )
        )
    return Dataset(name=name or folder.name, cases=tuple(cases))


def _found(folder: Path, pattern: str) -> dict[str, Path]:
    """Files that fit a pattern, by what stands for ``{id}``; sorted."""
    import re

    if pattern.count("{id}") < 1:
        raise OptionError(f"the pattern '{pattern}' has no {{id}}; write it where the names of the cases differ")
    parts = re.split(r"(\{id\}|\*\*/|\*|\?)", pattern)
    seen, expression = False, ""
    for part in parts:
        if part == "{id}":
            expression += "(?P=id)" if seen else "(?P<id>[^/]+?)"
            seen = True
        else:
            expression += {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
    found: dict[str, Path] = {}
    for file in sorted(folder.glob(pattern.replace("{id}", "*"))):
        match = re.fullmatch(expression, file.relative_to(folder).as_posix())
        if match:
            id = match["id"]
            if id in found:
                raise InputError(f"{folder}: {found[id].name} and {file.name} both fit '{pattern}' as '{id}'")
            found[id] = file
    return found


def read_learn2reg(path: str | Path, *, data: str | Path | None = None, name: str | None = None) -> Dataset:
    """Read a Learn2Reg dataset file (``<TASK>_dataset.json``).

    Images are those of ``training``, ``test`` and of every list of pairs; labels, masks and key points lie in folders
    beside that of the image (``imagesTr`` -> ``labelsTr``, ``masksTr``, ``keypointsTr`` or ``landmarksTr``), and count
    where they are there. Splits: ``train`` (images of ``training`` that no pair to validate or test has),
    ``validation``, ``test``; every list of pairs keeps its name, and ``validation`` and ``test`` name the fitting one
    too.

    Parameters
    ----------
    data
        Folder that relative names start from; default: that of the file.

    Raises
    ------
    InputError
        If the file is missing or no such file.
    """
    file = Path(path)
    content, lists = read_learn2reg_lists(file)
    root = start_of(file, data)
    cases: dict[str, Case] = {}

    def add(image: str) -> str:
        made = _learn2reg_case(root, image)
        return cases.setdefault(made.id, made).id

    def images(key: str) -> list[str]:
        entries = content.get(key) or []
        if not isinstance(entries, list):
            raise InputError(f"{file}: '{key}' is {entries!r}; give a list of images")
        found = [entry.get("image") if isinstance(entry, dict) else entry for entry in entries]
        return [image for image in found if isinstance(image, str)]

    trained = [add(image) for image in images("training")]
    tested = [add(image) for image in images("test")]
    pairs = {
        key: tuple((add(fixed), add(moving)) for fixed, moving in learn2reg_pairs(file, key, listed))
        for key, listed in lists.items()
    }
    if not cases:
        raise InputError(
            f"{file}: names no image; a Learn2Reg dataset file has lists such as training, registration_val"
        )
    for short, keys in (
        ("validation", ("registration_val", "validation")),
        ("test", ("registration_test", "test_paired_images")),
    ):
        listed = next((pairs[key] for key in keys if key in pairs), None)
        if listed is not None:
            pairs[short] = listed
    judged = {id for pair in pairs.get("validation", ()) for id in pair}
    held = judged | {id for pair in pairs.get("test", ()) for id in pair}
    train = [id for id in trained if id not in held]
    if "training_paired_images" in pairs:
        pairs["train"] = tuple(pair for pair in pairs["training_paired_images"] if not set(pair) & held)
    splits = {
        "train": tuple(train),
        "validation": tuple(sorted(judged)),
        "test": tuple(dict.fromkeys([*tested, *(id for pair in pairs.get("test", ()) for id in pair)])),
    }
    return Dataset(
        name=name or str(content.get("name") or file.stem.removesuffix("_dataset")),
        cases=tuple(cases.values()),
        label_names=_learn2reg_labels(content.get("labels")),
        splits={key: ids for key, ids in splits.items() if ids},
        pairs=pairs,
        licence=str(content.get("licence") or content.get("license") or ""),
    )


def _learn2reg_case(root: Path, image: str) -> Case:
    file = root / image

    def beside(kind: str, suffix: str | None = None) -> Path | None:
        place = learn2reg_place(file, kind, suffix)
        return place if place.is_file() else None

    points = beside("keypoints", ".csv") or beside("landmarks", ".csv")
    parts = stem(file).split("_")
    return Case(
        id=stem(file),
        images=(Source(file),),
        labels=as_source(beside("labels")),
        mask=as_source(beside("masks")),
        landmarks=str(points) if points else None,
        landmarks_in_voxels=points is not None,
        # TASK_0001_0000: subject, modality
        subject=parts[-2] if len(parts) > 2 else "",
    )


def _learn2reg_labels(labels: Any) -> dict[int, str]:
    """``{"0": {"0": "background", "1": "liver"}}``, or without the outer level (modality)."""
    if not isinstance(labels, dict):
        return {}
    named: dict[int, str] = {}
    for key, value in labels.items():
        entries = value if isinstance(value, dict) else {key: value}
        named.update({int(k): str(v) for k, v in entries.items() if str(k).isdigit() and int(k) > 0})
    return dict(sorted(named.items()))
