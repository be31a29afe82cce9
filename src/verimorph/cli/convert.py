"""``verimorph convert``: transforms between formats, and several into one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verimorph.cli.options import application, examples, flag, option
from verimorph.errors import OptionError

_IMAGES = "Images, for formats that are relative to voxels"

app = application()


@app.command(
    epilog=examples(
        ("For ANTs, SimpleITK and Slicer:", "verimorph convert warp.nii.gz transform.h5 --from niftyreg"),
        (
            "A FLIRT matrix, which means nothing without its images:",
            "verimorph convert flirt.mat affine.tfm --from fsl --fixed ref.nii.gz --moving in.nii.gz",
        ),
        ("Several into one field:", "verimorph convert -t 1Warp.nii.gz -t 0GenericAffine.mat total.nii.gz"),
        ("The other way:", "verimorph convert transform.h5 inverse.h5 --inverse"),
    )
)
def convert(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="IN OUT", help="What to read and to write; with -t only OUT.", show_default=False),
    ],
    transforms: Annotated[
        list[Path] | None,
        option(
            "-t", "--transform", value="FILE", text="Compose these instead: on a fixed point first to last, as in ANTs."
        ),
    ] = None,
    inverse: Annotated[bool, flag("--inverse", text="Write the inverse.")] = False,
    source: Annotated[str | None, option("--from", value="FORMAT", text="Format of IN; default: recognised.")] = None,
    target: Annotated[str | None, option("--to", value="FORMAT", text="Format of OUT; default: by its suffix.")] = None,
    fixed: Annotated[Path | None, option("--fixed", value="FILE", text="Fixed image.", panel=_IMAGES)] = None,
    moving: Annotated[Path | None, option("--moving", value="FILE", text="Moving image.", panel=_IMAGES)] = None,
    reference: Annotated[
        Path | None,
        option(
            "-r", "--reference", value="FILE", text="Grid of the field that is written; default its own.", panel=_IMAGES
        ),
    ] = None,
) -> None:
    """Convert transforms between formats, or compose several into one.

    Formats: itk (.h5 .tfm .txt .mat), itk-field (.nii.gz .nrrd .mha), learn2reg (.npz .npy), niftyreg, elastix (.txt),
    fsl, freesurfer (.lta), afni (.1D), x5 (.x5).
    """
    if len(files) != (1 if transforms else 2):
        wanted = "OUT alone, as -t names what to read" if transforms else "IN and OUT"
        raise OptionError(f"{len(files)} file names given; give {wanted} (see 'verimorph convert --help')")
    from verimorph.carry import load_transform
    from verimorph.cli.runtime import choose
    from verimorph.io import read_image, write_transform
    from verimorph.io.safe import require_writable
    from verimorph.io.transforms import FORMATS

    for name, option_name in ((source, "--from"), (target, "--to")):
        if name is not None:
            choose(name, FORMATS, option_name)
    require_writable(files[-1].parent)
    grids = {
        role: None if path is None else read_image(path).grid
        for role, path in (("fixed", fixed), ("moving", moving), ("grid", reference))
    }
    inputs = transforms or files[:1]
    transform = load_transform(list(inputs), format=source, fixed=grids["fixed"], moving=grids["moving"])
    images = {"fixed": grids["fixed"], "moving": grids["moving"]}
    if inverse:
        transform = transform.inverse()
        images = {"fixed": grids["moving"], "moving": grids["fixed"]}
    written = write_transform(transform, files[-1], format=target, grid=grids["grid"], **images)
    read = " then ".join(str(path) for path in inputs)
    print(f"{'inverse of ' if inverse else ''}{read} -> {written}: {transform.kind}, fixed to moving points")
