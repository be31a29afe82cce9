"""What is to be predicted: pairs and images by name, of a table or a split of a data set. Nothing is read yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verimorph.errors import InputError, OptionError
from verimorph.io.pairs import SPLITS, stem

if TYPE_CHECKING:
    from verimorph.data.cases import Case, Dataset


@dataclass(frozen=True)
class PairJob:
    """One pair.

    Attributes
    ----------
    name
        Unique; results go to the folder of that name.
    read
        Reads what `predict_pair` takes: images, and labels and landmarks where there are any.
    files
        Names of the two images, from which a submission is named.
    inputs
        Every file that is read, by what it is: no result may take its place, and a pair is done again if one changed.
    unit
        What distances are measured in: ``mm`` or ``voxel``.
    """

    name: str
    read: Callable[[], dict[str, Any]]
    files: tuple[str, str]
    inputs: Mapping[str, Path] = field(default_factory=dict)
    unit: str = "mm"


@dataclass(frozen=True)
class ImageJob:
    """One image: its name, its channels, and its true labels where there are any, with the values drawn in them.

    ``inputs`` are the files that are read, as for a `PairJob`.
    """

    name: str
    read: Callable[[], tuple[list[Any], Any]]
    known: frozenset[int] | None = None
    inputs: Mapping[str, Path] = field(default_factory=dict)


def jobs_of_table(path: str | Path, *, data: str | Path | None = None, split: str | None = None) -> list[PairJob]:
    """Pairs of a CSV or of a Learn2Reg JSON, named as ``verimorph evaluate`` names them.

    Parameters
    ----------
    data, split
        As for `verimorph.evaluate.cases.read_task`.
    """
    from verimorph.evaluate.cases import read_task

    task = read_task(path, data=data, split=split)
    return [_of_task(case, task.landmarks_in_voxels) for case in task.cases]


def _of_task(case: Any, in_voxels: bool) -> PairJob:
    if case.fixed is None or case.moving is None:
        raise InputError(f"{case.name}: has no fixed or no moving image; a model needs both")

    def read() -> dict[str, Any]:
        from verimorph.evaluate.many import _voxel_points
        from verimorph.io import read_image
        from verimorph.io.points import as_points

        found: dict[str, Any] = {
            "fixed": read_image(case.fixed),
            "moving": read_image(case.moving),
            "fixed_labels": case.fixed_labels,
            "moving_labels": case.moving_labels,
        }
        for side in ("fixed", "moving"):
            where = getattr(case, f"{side}_landmarks")
            if where is not None:
                grid = found[side].grid
                points = _voxel_points(Path(where), grid) if in_voxels else as_points(where, columns=side)
                found[f"{side}_landmarks"] = points
        return found

    return PairJob(case.name, read, (case.fixed.name, case.moving.name), case.inputs(), case.unit)


def dataset_of(name: str, root: str | Path | None) -> Dataset:
    """A named data set in a folder; by default the one of its name below ``VERIMORPH_DATA``."""
    from verimorph.data.adapters import adapter
    from verimorph.io.paths import expand

    found = adapter(name)
    folder = Path(root) if root is not None else expand("${VERIMORPH_DATA}") / name
    if root is None and not folder.is_dir():
        raise OptionError(f"--dataset {name}: no folder {folder}; say with --root where it lies ({found.obtain})")
    return found.dataset(folder)


def jobs_of_dataset(dataset: Dataset, split: str) -> list[PairJob]:
    """Pairs of a split: those the set lists, or else every two of its cases once, the first of them fixed."""
    name = SPLITS.get(split, split)
    listed = dataset.pairs.get(name)
    pairs = listed if listed is not None else tuple(combinations(dataset.split(name), 2))
    if not pairs:
        raise InputError(f"data set {dataset.name}: the split '{name}' has no pair")

    def job(first: str, second: str) -> PairJob:
        fixed, moving = dataset.case(first), dataset.case(second)
        files = fixed.images[0].path.name, moving.images[0].path.name
        inputs = _inputs(fixed, "fixed ") | _inputs(moving, "moving ")
        return PairJob(f"{first}-{second}", lambda: _read_pair(fixed, moving), files, inputs, dataset.units)

    return [job(first, second) for first, second in pairs]


def _inputs(case: Case, side: str = "") -> dict[str, Path]:
    return {f"{side}{number}": file for number, file in enumerate(case.files)}


def _read_pair(fixed: Case, moving: Case) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for side, case in (("fixed", fixed), ("moving", moving)):
        images = case.read_images()
        found[side] = images
        found[f"{side}_labels"] = case.read_labels()
        found[f"{side}_landmarks"] = case.read_points(images[0])
    for kind in ("labels", "landmarks"):
        if found[f"fixed_{kind}"] is None or found[f"moving_{kind}"] is None:
            found[f"fixed_{kind}"] = found[f"moving_{kind}"] = None
    return found


def images_of_dataset(dataset: Dataset, split: str | None) -> list[ImageJob]:
    """Images of a split; all of them where none is named."""
    wanted = dataset.ids if split is None else dataset.split(SPLITS.get(split, split))

    def job(case: Case) -> ImageJob:
        return ImageJob(case.id, lambda: (case.read_images(), case.read_labels()), case.known, _inputs(case))

    return [job(dataset.case(id)) for id in wanted]


def images_of_folder(folder: str | Path) -> list[ImageJob]:
    """Every image file of a folder."""
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder that holds the images")
    suffixes = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".mha", ".mhd", ".png", ".tif", ".tiff")
    files = [file for file in sorted(root.iterdir()) if file.name.lower().endswith(suffixes)]
    if not files:
        raise InputError(f"{root}: holds no image ({', '.join(suffixes)})")
    return [job_of_images([file]) for file in files]


def job_of_images(files: Sequence[Path]) -> ImageJob:
    """One image whose channels are in these files, called after the first."""
    from verimorph.io import read_image

    inputs = {str(number): file for number, file in enumerate(files)}
    return ImageJob(stem(files[0]), lambda: ([read_image(file) for file in files], None), inputs=inputs)
