"""Running a network on volumes of any size: whole, or on tiles where memory is short. For pairs and single images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from verimorph.errors import VerimorphWarning
from verimorph.memory import is_out_of_memory, memory
from verimorph.predict.tiles import bytes_per_voxel, run_tiled

_PROBED_VOXELS = 2_000_000
_SHARE_OF_MEMORY = 0.7


class Runner:
    """A network in evaluation mode on a device.

    Parameters
    ----------
    module
        Takes named volumes ``(1, c, *space)`` and returns named tensors; ``stride`` says of what the sides must be
        multiples. On the CPU its weights and inputs lie channels last, which is what the convolutions there like.
    tile
        Largest input, voxels along each axis. Default: whole, or as large as memory allows.
    overlap
        Part of a tile that neighbours share.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        ndim: int,
        device: torch.device | str = "cpu",
        tile: Sequence[int] | None = None,
        overlap: float = 0.25,
    ) -> None:
        self.device = torch.device(device)
        self.stride = int(getattr(module, "stride", 1))
        self.layout = torch.contiguous_format
        self.module = module.to(self.device).eval()
        if self.device.type == "cpu":
            self.layout = torch.channels_last_3d if ndim == 3 else torch.channels_last
            self.module = self.module.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.tile = None if tile is None else tuple(rounded_up(n, self.stride) for n in tile)
        self.overlap = overlap
        self._bytes_per_voxel: float | None = None

    def __call__(
        self,
        volumes: Mapping[str, Tensor],
        *,
        condition: Tensor | None = None,
        each_tile: Callable[[Mapping[str, Tensor]], None] | None = None,
    ) -> tuple[dict[str, Tensor], int]:
        """Return the outputs, float32 on the CPU, and the number of tiles; smaller tiles if the device is full.

        Parameters
        ----------
        each_tile
            Called with the outputs of each tile, where there is more than one.
        """
        shape = tuple(next(iter(volumes.values())).shape[2:])
        tile = self._tile(volumes, shape)
        while True:
            try:
                return self._run(volumes, condition, shape, tile, each_tile)
            except (RuntimeError, MemoryError) as error:
                smaller = _smaller(tile, self.stride)
                if not is_out_of_memory(error) or smaller is None:
                    raise
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                said = " x ".join(map(str, smaller))
                text = f"not enough memory for {' x '.join(map(str, shape))} voxels at once: tiles of {said}"
                warnings.warn(VerimorphWarning(text), stacklevel=4)
                tile = smaller

    def forward(self, volumes: Mapping[str, Tensor], condition: Tensor | None = None) -> dict[str, Tensor]:
        """Run the network once."""
        more = {} if condition is None else {"condition": condition.to(self.device)}
        with torch.inference_mode():
            moved = {
                name: volume.to(self.device).contiguous(memory_format=self.layout) for name, volume in volumes.items()
            }
            return self.module(**moved, **more)

    def _run(
        self,
        volumes: Mapping[str, Tensor],
        condition: Tensor | None,
        shape: tuple[int, ...],
        tile: tuple[int, ...],
        each_tile: Callable[[Mapping[str, Tensor]], None] | None,
    ) -> tuple[dict[str, Tensor], int]:
        count = 0

        def run(window: tuple[slice, ...]) -> dict[str, Tensor]:
            nonlocal count
            count += 1
            outputs = self.forward({name: volume[(..., *window)] for name, volume in volumes.items()}, condition)
            # A copy made outside inference mode is an ordinary tensor: solvers may differentiate through it.
            return {name: value.detach().float().cpu().clone() for name, value in outputs.items()}

        def run_tile(window: tuple[slice, ...]) -> dict[str, Tensor]:
            outputs = run(window)
            if each_tile is not None:
                each_tile(outputs)
            return outputs

        if all(size >= n for size, n in zip(tile, shape, strict=True)):
            return run(tuple(slice(0, n) for n in shape)), 1
        return run_tiled(run_tile, shape, tile, overlap=self.overlap, step=self.stride), count

    def _tile(self, volumes: Mapping[str, Tensor], shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.tile is not None:
            return tuple(min(a, b) for a, b in zip(self.tile, shape, strict=True))
        if math.prod(shape) < _PROBED_VOXELS:
            return shape
        available = _available_memory(self.device)
        if available is None:
            return shape
        if self._bytes_per_voxel is None:
            side = tuple(min(n, max(2 * self.stride, rounded_up(24, self.stride))) for n in shape)
            blank = {name: torch.zeros(1, volume.shape[1], *side) for name, volume in volumes.items()}
            self._bytes_per_voxel = bytes_per_voxel(self.module, lambda: self.forward(blank), math.prod(side))
        tile = shape
        while math.prod(tile) * self._bytes_per_voxel > _SHARE_OF_MEMORY * available:
            smaller = _smaller(tile, self.stride)
            if smaller is None:
                break
            tile = smaller
        return tile


def rounded_up(n: int, stride: int) -> int:
    """The next multiple of a stride.

    >>> rounded_up(35, 16)
    48
    """
    return math.ceil(n / stride) * stride


def _smaller(tile: tuple[int, ...], stride: int) -> tuple[int, ...] | None:
    """The tile with its longest side cut to about half; None if it is as small as it gets."""
    longest = max(tile)
    half = rounded_up(math.ceil(longest / 2), stride)
    if half >= longest or half < 4 * stride:
        return None
    axis = tile.index(longest)
    return tuple(half if k == axis else n for k, n in enumerate(tile))


def _available_memory(device: torch.device) -> float | None:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    found = memory()["available"]
    return None if found is None else float(found)
