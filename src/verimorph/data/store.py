"""Cases on the model grid, ready: computed once, kept in memory or on disk.

On disk a case is a few ``.npy`` files in a folder named by a hash of its files, the preparation and the classes. They
are written beside their place and renamed, so that a run that was killed leaves nothing half-written and several runs
may share a cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from verimorph.data.augment import Sample
from verimorph.data.cases import Case, Dataset
from verimorph.data.preparation import Preparation
from verimorph.data.source import Source
from verimorph.errors import InputError, ResourceError
from verimorph.image import Image
from verimorph.io import validate
from verimorph.io.safe import require_free_space, writing_folder
from verimorph.memory import memory

_FORMAT = 4
_PARTS = ("image", "labels", "mask", "points", "known", "matrix", "background")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A case on the model grid, as arrays (memory-mapped where they come from disk).

    Attributes
    ----------
    image
        (c, *shape), float32.
    labels
        (*shape), classes 0 to k in the narrowest type; None without a label map.
    known
        (k), which classes are truly annotated (or given by noisy labels); all False without a label map.
    matrix
        A: model index to world of the image.
    background
        (c), grey value outside of the image.
    """

    image: np.ndarray
    labels: np.ndarray | None
    mask: np.ndarray | None
    points: np.ndarray | None
    known: np.ndarray
    matrix: np.ndarray
    background: np.ndarray

    def sample(self, window: Sequence[slice] | None = None) -> Sample:
        """Tensors of the whole case, or of a window of it (points then count from its corner), on the same memory."""
        box = tuple(window) if window is not None else (slice(None),) * (self.image.ndim - 1)
        corner = np.array([part.start or 0 for part in box], dtype=np.float32)
        return Sample(
            image=torch.from_numpy(self.image[(slice(None), *box)]),
            labels=None if self.labels is None else torch.from_numpy(self.labels[box]),
            mask=None if self.mask is None else torch.from_numpy(self.mask[box]),
            points=None if self.points is None else torch.from_numpy(self.points - corner),
            known=torch.from_numpy(self.known),
            background=torch.from_numpy(self.background),
            spacing=np.linalg.norm(self.matrix[:-1, :-1], axis=0),
        )


@dataclass(eq=False)
class Store:
    """Gives prepared cases by id.

    Parameters
    ----------
    memory
        Keep what was prepared in memory, where there is no folder.
    folder
        Keep it there, and read it as memory maps: what is needed often stays in the system's file cache, which all
        processes share.
    noisy_labels
        Folder of label maps ``ID.nii.gz`` (as a segmentation model predicts them) for classes a case lacks; where it
        has true labels those are put back.
    """

    dataset: Dataset
    preparation: Preparation
    class_values: tuple[int, ...]
    memory: bool = True
    folder: Path | None = None
    noisy_labels: Path | None = None
    _kept: dict[str, Prepared] = field(default_factory=dict, repr=False)

    def __getitem__(self, id: str) -> Prepared:
        """Return a case, prepared."""
        if id in self._kept:
            return self._kept[id]
        made = self._from_disk(id) if self.folder is not None else self._prepare(self.dataset.case(id))
        if self.memory or self.folder is not None:  # a memory map takes no memory of its own
            self._kept[id] = made
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Leave memory maps behind when a worker gets a copy: it opens its own."""
        state = dict(self.__dict__)
        if self.folder is not None:
            state["_kept"] = {}
        return state

    def fill(self, ids: Iterable[str], progress: Callable[[int, int], None] | None = None) -> None:
        """Prepare cases now, so that workers find them; ``progress(done, all)`` is called after each.

        Raises
        ------
        ResourceError
            If they do not fit into memory, or onto the disk.
        """
        wanted = list(dict.fromkeys(ids))
        if self.folder is not None:
            self._kept = {id: made for id, made in self._kept.items() if isinstance(made.image, np.memmap)}
        left = [id for id in wanted if id not in self._kept]
        if self.folder is None:
            if not self.memory:
                return
            _require_memory(len(left) * self.bytes_per_case())
        for number, id in enumerate(wanted, start=1):
            self[id]
            if progress is not None:
                progress(number, len(wanted))

    def bytes_per_case(self) -> int:
        """Estimate of what one prepared case takes."""
        images = max(len(case.images) for case in self.dataset.cases)
        return int(np.prod(self.preparation.shape)) * (4 * images * self.preparation.channels + 2)

    def _from_disk(self, id: str) -> Prepared:
        case = self.dataset.case(id)
        place = Path(self.folder or ".") / self.key(case)
        if not (place / "done.json").is_file():
            made = self._prepare(case)
            require_free_space(place, self.bytes_per_case())
            with writing_folder(place) as beside:
                for name in _PARTS:
                    if (value := getattr(made, name)) is not None:
                        np.save(beside / f"{name}.npy", value)
                (beside / "done.json").write_text(json.dumps({"case": id, "format": _FORMAT}), encoding="utf-8")
        parts: dict[str, Any] = {}
        for name in _PARTS:
            file = place / f"{name}.npy"
            # Copy on write: torch wants memory that could be written to; the file never is.
            mode: Any = "c" if name in ("image", "labels", "mask") else None
            parts[name] = np.load(file, mmap_mode=mode, allow_pickle=False) if file.is_file() else None
        return Prepared(**parts)

    def key(self, case: Case) -> str:
        """Name of the folder of a case in the cache.

        Files count by name, size and time of change: reading all of them at every start would take longer than many a
        training step.
        """
        files = [*case.files, *([noisy.path] if (noisy := self._noisy_source(case)) is not None else [])]
        told = [_FORMAT, self.preparation.fingerprint(), self.class_values, case.relabel]
        told += [sorted(case.known) if case.known is not None else None, [str(source) for source in case.images]]
        # The part of a file counts as well: one .npz may hold several label maps.
        told += [str(case.labels), str(case.mask), case.landmarks, case.landmarks_in_voxels]
        for file in files:
            try:
                state = os.stat(file)
            except OSError:
                raise InputError(f"{file}: no such file; check the path of case {case.id}") from None
            told.append([os.fspath(file.absolute()), state.st_size, state.st_mtime_ns])
        digest = hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:16]
        readable = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in case.id)
        return f"{readable}-{digest}"

    def _noisy_source(self, case: Case) -> Source | None:
        if self.noisy_labels is None:
            return None
        found = [self.noisy_labels / f"{case.id}{suffix}" for suffix in (".nii.gz", ".nii", ".mgz", ".nrrd")]
        return next((Source(file) for file in found if file.is_file()), None)

    def _prepare(self, case: Case) -> Prepared:
        images = case.read_images()
        for other in images[1:]:
            validate.check_same_grid(images[0], other, f"channel of case {case.id}")
        if all(image.array.min() == image.array.max() for image in images):  # one channel of several may be empty
            validate.check_not_constant(images[0], f"image of case {case.id}")
        matrix = self.preparation.index_to_world(images[0], cache=self.folder)
        labels, known = self._labels(case, matrix, images[0])
        mask = None
        if case.mask is not None:
            drawn = case.mask.read()
            validate.check_mask(drawn, images[0], f"mask of case {case.id}")
            mask = self.preparation.mask(drawn, matrix).numpy()
        points = case.read_points(images[0])
        return Prepared(
            image=self.preparation.volume(images, matrix).numpy(),
            labels=labels,
            mask=mask,
            points=None if points is None else self.preparation.points(points, matrix).numpy(),
            known=known,
            matrix=matrix,
            background=np.repeat(
                [np.float32(self.preparation.background(image)) for image in images], self.preparation.channels
            ),
        )

    def _labels(self, case: Case, matrix: np.ndarray, image: Image) -> tuple[np.ndarray | None, np.ndarray]:
        """Classes on the model grid, and which are known: true labels, and noisy ones of the classes that lack them.

        A map without any label is taken: an image may show none of the structures.
        """
        k = len(self.class_values)
        narrow = np.uint8 if k < 256 else np.int16
        truth, known = None, np.zeros(k, dtype=bool)
        drawn = case.read_labels()
        if drawn is not None:
            validate.check_same_grid(image, drawn, f"label map of case {case.id}")
            truth = classes_of(self.preparation.labels(drawn, matrix), self.class_values)
            known = np.array([case.known is None or value in case.known for value in self.class_values], dtype=bool)
            # Values that nobody annotated on purpose say nothing.
            truth[~torch.from_numpy(np.concatenate([[True], known]))[truth]] = 0
        noisy = self._noisy_source(case)
        if noisy is None:
            return (None if truth is None else truth.numpy().astype(narrow)), known
        guessed = noisy.read()
        validate.check_same_grid(image, guessed, f"noisy label map of case {case.id}")
        predicted = classes_of(self.preparation.labels(guessed, matrix), self.class_values)
        if truth is not None:
            predicted[torch.from_numpy(np.concatenate([[False], known]))[predicted]] = 0
            predicted = torch.where(truth > 0, truth, predicted)
        return predicted.numpy().astype(narrow), np.ones(k, dtype=bool)


def classes_of(labels: Int[Tensor, "*space"], class_values: Sequence[int]) -> Int[Tensor, "*space"]:
    """Number label values as classes: the i-th of ``class_values`` (from 1) becomes i, every other value 0."""
    if not class_values:
        return torch.zeros_like(labels, dtype=torch.int64)
    values = torch.tensor(sorted(class_values), dtype=torch.int64)
    numbers = torch.tensor([list(class_values).index(int(v)) + 1 for v in values], dtype=torch.int64)
    place = torch.searchsorted(values, labels.contiguous()).clamp(max=len(values) - 1)
    return torch.where(values[place] == labels, numbers[place], 0)


def _require_memory(needed: int) -> None:
    available = memory()["available"]
    if available is not None and needed > available:
        raise ResourceError(
            f"the prepared images need {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are free; "
            "give cache a folder with memory: false, or a coarser preparation"
        )
