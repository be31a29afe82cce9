"""``verimorph export``: a trained network as one file for other programs, checked against the original."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verimorph.cli.options import application, examples, flag, option
from verimorph.cli.runtime import choose, schedule, set_threads
from verimorph.errors import OptionError

FORMATS = ("torchscript", "onnx", "torch-export")

app = application()


@app.command(
    epilog=examples(
        ("For ONNX Runtime:", "verimorph export model -o model.onnx"),
        ("For C++ and libtorch, at another size:", "verimorph export model -o model.pt --shape 96x96x96"),
    )
)
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a trained model.", show_default=False)],
    output: Annotated[Path, option("-o", "--output", value="FILE", text="Where it goes: .pt, .onnx or .pt2.")],
    format: Annotated[
        str | None,
        option("--format", value="NAME", text="torchscript, onnx or torch-export; default: by the suffix of the file."),
    ] = None,
    shape: Annotated[
        str | None, option("--shape", value="160x192x224", text="Voxels it takes; default: the model's own grid.")
    ] = None,
    tolerance: Annotated[
        float, option("--tolerance", value="X", text="Largest difference from the original, voxels.")
    ] = 1e-3,
    all_outputs: Annotated[bool, flag("--all-outputs", text="Also raw outputs, such as the velocity.")] = False,
    threads: Annotated[
        int | None, option("-j", "--threads", value="N", text="Processor cores to use; default: all.")
    ] = None,
) -> None:
    """Write a trained network as one file for other programs, and check that it gives the same.

    The file takes fixed and moving image on the model's grid, prepared as its card says, and returns the displacement
    in voxels of that grid; of a segmentation model one image, and the scores of its classes before softmax.
    """
    set_threads(threads)
    chosen = _format(format, output)
    sides = schedule(shape, "--shape", least=1)

    from verimorph.methods.checkpoint import read_card
    from verimorph.predict.checks import load_for
    from verimorph.predict.export import export_model

    task = read_card(model).task
    module, card, preparation = load_for(model, task=task)
    if sides is not None and len(sides) != card.ndim:
        raise OptionError(f"--shape has {len(sides)} sides, the model is {card.ndim}-D")
    from verimorph.predict.runner import rounded_up

    stride = int(getattr(module, "stride", 1))
    done = export_model(
        module,
        output,
        format=chosen,
        shape=sides or tuple(rounded_up(n, stride) for n in preparation.shape),
        channels=card.channels,
        task=task,
        tolerance=tolerance,
        all_outputs=all_outputs,
    )
    size = "x".join(map(str, (1, done.channels, *done.shape)))
    print(f"{done.path}: {done.format}, {' and '.join(done.inputs)} of {size}, gives {', '.join(done.outputs)}")
    print(f"largest difference from the model: {done.difference:.2g}")


def _format(name: str | None, output: Path) -> str:
    if name is not None:
        return choose(name, FORMATS, "--format")
    by_suffix = {".pt": "torchscript", ".onnx": "onnx", ".pt2": "torch-export"}
    if output.suffix not in by_suffix:
        raise OptionError(f"{output}: its suffix says no format; give --format {', '.join(FORMATS)}")
    return by_suffix[output.suffix]
