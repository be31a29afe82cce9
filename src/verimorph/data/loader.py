"""Batches for training: item n of a stream is determined by seed and n, whoever computes it and when.

Two datasets of PyTorch's kind (pairs of real images, synthetic pairs), a collation to the names that the objective and
the trainer read, and an endless iterator that starts at any step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from verimorph.data.augment import Augmentation, Sample, augment, augment_pair
from verimorph.data.pairs import PairStream, augmentation_random
from verimorph.data.store import Store
from verimorph.data.synthetic import SyntheticSettings, deformed_pair, label_pair, shape_map
from verimorph.errors import OptionError, ResourceError

Batch = dict[str, Any]


@dataclass(eq=False)
class PairItems(Dataset):
    """Pairs of real images (or single ones), augmented and cropped.

    Parameters
    ----------
    crop
        Window of so many voxels, at one random place for both images; None: the whole model grid.
    swaps
        Classes that change places when left and right do.
    """

    store: Store
    pairs: PairStream
    seed: int = 0
    crop: tuple[int, ...] | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    swaps: tuple[tuple[int, int], ...] = ()
    single: bool = False

    def __post_init__(self) -> None:
        shape = self.store.preparation.shape
        fits = self.crop is None or (
            len(self.crop) == len(shape) and all(0 < c <= n for c, n in zip(self.crop, shape, strict=True))
        )
        if not fits:
            raise OptionError(f"crop {self.crop} does not fit into the model grid {shape}; give a smaller one")

    def __getitem__(self, n: int) -> dict[str, Any]:
        """Return item n of the stream."""
        fixed_id, moving_id = self.pairs(n)
        random = augmentation_random(self.seed, n)
        window = self._window(random)
        fixed = self.store[fixed_id].sample(window)
        if self.single:
            if self.augmentation.is_active:
                fixed = augment(fixed, self.augmentation, random, swaps=self.swaps)
            return {"image": fixed, "names": fixed_id}
        moving = self.store[moving_id].sample(window)
        if self.augmentation.is_active:
            fixed, moving = augment_pair(fixed, moving, self.augmentation, random, swaps=self.swaps)
        return {"fixed": fixed, "moving": moving, "names": f"{fixed_id}<-{moving_id}"}

    def _window(self, random: np.random.Generator) -> tuple[slice, ...] | None:
        if self.crop is None:
            return None
        room = [n - c for n, c in zip(self.store.preparation.shape, self.crop, strict=True)]
        corner = [int(random.integers(r + 1)) for r in room]
        return tuple(slice(start, start + size) for start, size in zip(corner, self.crop, strict=True))


@dataclass(eq=False)
class SyntheticItems(Dataset):
    """Pairs that were never scanned: images of random shapes or of label maps, or one image deformed at random."""

    settings: SyntheticSettings
    shape: tuple[int, ...]
    seed: int = 0
    store: Store | None = None
    pairs: PairStream | None = None

    def __getitem__(self, n: int) -> dict[str, Any]:
        """Return item n of the stream; ``known_field`` where the true displacement is known."""
        random = augmentation_random(self.seed, n)
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        if self.settings.kind == "shapes":
            number = n % self.settings.maps
            maps = torch.Generator().manual_seed(self.settings.map_seed * 1_000_003 + number)
            labels = shape_map(self.shape, self.settings.labels, generator=maps)
            made = label_pair(labels, labels, self.settings, classes=self.settings.labels, generator=generator)
            name = f"shapes{number}"
        else:
            if self.store is None or self.pairs is None:
                raise OptionError(f"synthetic: kind '{self.settings.kind}' needs a data set")
            fixed_id, moving_id = self.pairs(n)
            name = f"{fixed_id}<-{moving_id}"
            fixed = self.store[fixed_id].sample()
            if self.settings.kind == "images":
                return {**deformed_pair(fixed, self.settings, generator=generator), "names": f"{fixed_id}<-{fixed_id}"}
            moving = self.store[moving_id].sample()
            if fixed.labels is None or moving.labels is None:
                raise OptionError(f"synthetic: {name} has no label map, which kind 'labels' is made of")
            k = len(self.store.class_values)
            made = label_pair(fixed.labels.long(), moving.labels.long(), self.settings, classes=k, generator=generator)
        return {**made, "names": name}


def collate(items: Sequence[dict[str, Any]]) -> Batch:
    """Stack items to a batch.

    Keys: ``fixed``, ``moving`` (b, c, *space) float32; ``*_labels`` (b, *space) int64, classes 0 to k, where any item
    has them (0 for those that do not); ``*_known`` (b, k) bool; ``*_mask`` (b, 1, *space) bool, True for items without;
    ``*_points`` (b, n, d), model indices, where all items have as many; ``*_background`` (b, c), what lies outside the
    images, where it is not 0 in all; ``known_field`` (b, d, *space); ``names``, one ``fixed<-moving`` an item. Single
    images: ``image``, ``labels``, ``known``, ``mask``, ``points``, ``background``.
    """
    batch: Batch = {"names": [item["names"] for item in items]}
    backgrounds: Batch = {}
    for role in ("fixed", "moving", "image"):
        if role in items[0]:
            prefix = "" if role == "image" else f"{role}_"
            samples = [item[role] for item in items]
            batch[role] = torch.stack([sample.image for sample in samples])
            batch.update(_belongings(samples, prefix))
            zero = torch.zeros(len(samples[0].image))
            backgrounds[f"{prefix}background"] = torch.stack(
                [zero if sample.background is None else sample.background for sample in samples]
            )
    if any(bool(values.any()) for values in backgrounds.values()):
        batch.update(backgrounds)
    if "known_field" in items[0]:
        batch["known_field"] = torch.stack([item["known_field"] for item in items])
    return batch


def _belongings(samples: Sequence[Sample], prefix: str) -> Batch:
    found: Batch = {}
    shape = samples[0].shape
    if any(sample.labels is not None for sample in samples):
        labels = torch.zeros(len(samples), *shape, dtype=torch.int64)
        for row, sample in zip(labels, samples, strict=True):
            if sample.labels is not None:
                row.copy_(sample.labels)
        found[f"{prefix}labels"] = labels
        k = max(len(s.known) for s in samples if s.known is not None)
        none = torch.zeros(k, dtype=torch.bool)
        found[f"{prefix}known"] = torch.stack(
            [none if s.known is None or s.labels is None else s.known for s in samples]
        )
    if any(sample.mask is not None for sample in samples):
        whole = torch.ones(shape, dtype=torch.bool)
        found[f"{prefix}mask"] = torch.stack([whole if s.mask is None else s.mask for s in samples])[:, None]
    points = [sample.points for sample in samples if sample.points is not None]
    if len(points) == len(samples) and len({len(p) for p in points}) == 1:
        found[f"{prefix}points"] = torch.stack(points)
    return found


@dataclass(frozen=True)
class _Steps:
    """Endless numbers of items, a batch at a time: rank r of w takes the r-th share of every step."""

    batch: int
    start_step: int = 0
    rank: int = 0
    world: int = 1

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            first = (step * self.world + self.rank) * self.batch
            yield list(range(first, first + self.batch))
            step += 1


def batches(
    items: Dataset,
    *,
    batch: int = 1,
    start_step: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Return an endless iterator of batches, beginning with that of ``start_step``.

    Parameters
    ----------
    workers
        Processes that prepare batches ahead; 0: this one. They are started afresh (no fork of a process that has
        threads), so the code that calls this must be importable (``if __name__ == "__main__":`` in scripts).
    rank, world
        This process among those that train together; each sees other items of the same stream.
    pin_memory
        Page-locked tensors, for copies to a GPU that overlap with its work.

    Raises
    ------
    ResourceError
        If a worker was killed.
    """
    if batch < 1 or workers < 0:
        raise OptionError(
            f"loader: batch is {batch} and workers {workers}; give a batch of 1 or more, workers 0 or more"
        )
    more: dict[str, Any] = {}
    if workers > 0:
        context = "forkserver" if sys.platform.startswith("linux") else "spawn"
        more = {"multiprocessing_context": context, "prefetch_factor": 2, "worker_init_fn": _prepare_worker}
    loader = DataLoader(
        items,
        batch_sampler=_Steps(batch, start_step, rank, world),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        # Its own, though an item is decided by its number: a loader that begins draws from the global generator, and a
        # resumed run, which begins one more, would go on with other dropout than the run it continues.
        generator=torch.Generator().manual_seed(0),
        **more,
    )
    return _guarded(loader)


def _guarded(loader: Iterable[Batch]) -> Iterator[Batch]:
    try:
        yield from loader
    except (RuntimeError, ConnectionError, EOFError) as error:
        # The latter two where a worker ends while it hands a batch over.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise ResourceError(
            f"a data worker ended unexpectedly ({_first_line(error)}), most often for want of memory; use fewer "
            "workers (0 loads in the main process), a smaller batch, or cache a folder"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:160]


def _prepare_worker(_: int) -> None:
    """Workers share the cores, one thread each, and keep freed memory: what is a command's entry is this for them."""
    from verimorph.cli.runtime import tune_allocator
    from verimorph.field.backend import set_threads

    tune_allocator()
    set_threads(1)
