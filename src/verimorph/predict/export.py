"""A trained network as one file for other programs: TorchScript, ONNX or torch.export; checked against the original.

What is exported takes volumes on the model's own grid and returns its outputs there: putting images on that grid and
fields back on the images is the preparation's part, which the card beside the file describes.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from verimorph.errors import InputError, MissingExtraError, OptionError, nearest
from verimorph.field.backend import plain_torch
from verimorph.io.safe import replacing, require_free_space
from verimorph.predict.runner import rounded_up

FORMATS = ("torchscript", "onnx", "torch-export")
SUFFIXES = {"torchscript": ".pt", "onnx": ".onnx", "torch-export": ".pt2"}
TOLERANCE = 1e-3
"""Largest difference between the file's outputs and the model's, voxels for fields; a larger one is refused."""

_OPSET = 20


class Named(nn.Module):
    """A model with positional volumes and a tuple of outputs, or the only one itself: what the formats can hold.

    Parameters
    ----------
    module
        Takes ``inputs`` by keyword and returns named tensors.
    inputs, outputs
        Their names in order.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def forward(self, *volumes: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the outputs in the order of their names; one output as it is."""
        found = self.module(**dict(zip(self.inputs, volumes, strict=True)))
        if len(self.outputs) == 1:
            return found[self.outputs[0]]
        return tuple(found[name] for name in self.outputs)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    path
        The file.
    shape
        Voxels of the volumes it takes.
    inputs, outputs
        Names, in order; ``stageK/field`` and the like are written with ``_`` for ``/``.
    difference
        Largest difference of any output from the original's, on random images.
    """

    path: Path
    format: str
    shape: tuple[int, ...]
    channels: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    difference: float


def export_model(
    module: nn.Module,
    path: str | Path,
    *,
    format: str,
    shape: Sequence[int],
    channels: int = 1,
    task: str = "registration",
    tolerance: float = TOLERANCE,
    all_outputs: bool = False,
    seed: int = 0,
) -> Exported:
    """Write a network and check that the file gives what the network gives.

    Parameters
    ----------
    format
        ``torchscript``, ``onnx`` or ``torch-export``.
    shape
        Voxels of the volumes; the file takes this shape.
    tolerance
        Largest difference allowed.
    all_outputs
        Also the raw outputs (``velocity``, ...) beside ``field`` or ``logits``.

    Raises
    ------
    OptionError
        For an unknown format or a shape that does not suit the model.
    InputError
        If the network cannot be written in that format, or the file gives something else; nothing is left behind.
    ResourceError
        If the disk is full.
    """
    if format not in FORMATS:
        raise OptionError(f"unknown format '{format}'{nearest(format, FORMATS)}")
    stride = int(getattr(module, "stride", 1))
    if any(n % stride for n in shape):
        suited = "x".join(str(rounded_up(n, stride)) for n in shape)
        raise OptionError(f"a shape of {'x'.join(map(str, shape))} does not suit the model; try --shape {suited}")
    inputs = ("fixed", "moving") if task == "registration" else ("image",)
    generator = torch.Generator().manual_seed(seed)
    volumes = tuple(torch.rand(1, channels, *shape, generator=generator) for _ in inputs)
    module = module.cpu().eval()
    # Numbers of integration steps follow the data in the package's own integration; a graph has one for all data.
    with plain_torch(), torch.no_grad():
        found = module(**dict(zip(inputs, volumes, strict=True)))
    main = "field" if task == "registration" else "logits"
    outputs = tuple(name for name in found if name == main or all_outputs)
    expected = tuple(found[name] for name in outputs)
    network = Named(module, inputs, outputs).eval()
    target = Path(path)
    # Writers in C++ end the whole process on a full disk.
    require_free_space(target, sum(t.numel() * t.element_size() for t in module.state_dict().values()))
    with replacing(target) as beside:
        try:
            with plain_torch(), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _WRITERS[format](network, volumes, beside)
        except (MissingExtraError, OSError):
            raise
        except Exception as error:
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"the model cannot be written as {format}: {first[0][:200]}") from error
        # On other images than it was traced with: a number frozen into the graph shows.
        others = tuple(torch.rand(1, channels, *shape, generator=generator) for _ in inputs)
        with plain_torch(), torch.no_grad():
            second = module(**dict(zip(inputs, others, strict=True)))
        difference = 0.0
        for images, wanted in ((volumes, expected), (others, tuple(second[name] for name in outputs))):
            try:
                got = _READERS[format](beside, images)
            except Exception as error:
                first = str(error).strip().splitlines() or [type(error).__name__]
                raise InputError(f"the {format} file of the model cannot be run: {first[0][:200]}") from error
            for one, other in zip(got, wanted, strict=True):
                apart = float((one - other).abs().amax())
                difference = max(difference, apart if math.isfinite(apart) else math.inf)
        if not difference <= tolerance:
            raise InputError(
                f"the {format} file differs from the model by up to {difference:.3g} (allowed: {tolerance:g}); "
                "nothing is kept; try another format"
            )
    return Exported(target, format, tuple(shape), channels, inputs, outputs, difference)


def file_names(outputs: Sequence[str]) -> list[str]:
    """Names of outputs as graphs can hold them."""
    return [name.replace("/", "_") for name in outputs]


def _write_torchscript(network: Named, volumes: tuple[Tensor, ...], path: Path) -> None:
    held = io.BytesIO()  # to a file it would write in C++
    torch.jit.save(torch.jit.trace(network, volumes, check_trace=False), held)
    path.write_bytes(held.getbuffer())


def _read_torchscript(path: Path, volumes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return _listed(torch.jit.load(str(path))(*volumes))


def _listed(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _write_torch_export(network: Named, volumes: tuple[Tensor, ...], path: Path) -> None:
    held = io.BytesIO()
    torch.export.save(torch.export.export(network, volumes), held)
    path.write_bytes(held.getbuffer())


def _read_torch_export(path: Path, volumes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        held = io.BytesIO(path.read_bytes())  # of a file it warns where the name does not end in .pt2
        return _listed(torch.export.load(held).module()(*volumes))


def _write_onnx(network: Named, volumes: tuple[Tensor, ...], path: Path) -> None:
    _require_onnx()
    names: dict[str, Any] = {"input_names": list(network.inputs), "output_names": file_names(network.outputs)}
    # The exporter by tracing: it writes GridSample as one operation (of volumes from opset 20 on), where the newer one
    # takes every reading of a volume apart into hundreds and needs minutes for an integrated velocity.
    torch.onnx.register_custom_op_symbolic("aten::__iand_", _logical_and, _OPSET)
    torch.onnx.register_custom_op_symbolic("aten::movedim", _moved_axes, _OPSET)
    with redirect_stdout(io.StringIO()):
        try:
            torch.onnx.export(network, volumes, str(path), opset_version=_OPSET, dynamo=False, **names)
            _read_onnx(path, volumes)
        except OSError:
            raise
        except Exception:  # an operation that it does not know, or writes so that no runtime loads it
            torch.onnx.export(network, volumes, str(path), dynamo=True, external_data=False, **names)


def _moved_axes(graph: Any, value: Any, source: Any, destination: Any) -> Any:
    """``movedim`` as a transposition; the exporter's own writes negative axes as they are, which no runtime loads."""
    rank = value.type().dim()
    constants = (source.node().t("value"), destination.node().t("value"))
    here, there = ([axis % rank for axis in constant.view(-1).tolist()] for constant in constants)
    order = [axis for axis in range(rank) if axis not in here]
    for target, axis in sorted(zip(there, here, strict=True)):
        order.insert(target, axis)
    return graph.op("Transpose", value, perm_i=order)


def _logical_and(graph: Any, one: Any, other: Any) -> Any:
    return graph.op("And", one, other)


def _read_onnx(path: Path, volumes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    values = session.run(None, {name: volume.numpy() for name, volume in zip(names, volumes, strict=True)})
    return tuple(torch.from_numpy(value) for value in values)


def _require_onnx() -> None:
    from importlib.util import find_spec

    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "export", "writing and checking ONNX")


_WRITERS = {"torchscript": _write_torchscript, "onnx": _write_onnx, "torch-export": _write_torch_export}
_READERS = {"torchscript": _read_torchscript, "onnx": _read_onnx, "torch-export": _read_torch_export}
