"""``verimorph apply``: carry an image, a label map or points through transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from verimorph.cli.options import application, examples, flag, option
from verimorph.cli.runtime import choose, set_threads

INTERPOLATIONS = ("linear", "nearest", "cubic", "labels")

_FORMATS = "Transform files that need more"

app = application()


@app.command(
    epilog=examples(
        ("The moving image:", "verimorph apply -i moving.nii.gz -t out/transform.h5 -r fixed.nii.gz -o moved.nii.gz"),
        (
            "Its labels, boundaries smoothed by a vote of the neighbours:",
            "verimorph apply -i seg.nii.gz -t out/transform.h5 -r fixed.nii.gz -o seg_moved.nii.gz -n labels",
        ),
        ("Landmarks of the moving image:", "verimorph apply -i marks.csv -t out/transform.h5 -o marks_moved.csv"),
        (
            "The atlas labels of the fixed image, onto the moving one:",
            "verimorph apply -i atlas.nii.gz -t out/transform.h5 -r moving.nii.gz -o atlas_moved.nii.gz --inverse",
        ),
        (
            "What ANTs wrote, in the order of antsApplyTransforms:",
            "verimorph apply -i m.nii.gz -t 1Warp.nii.gz -t 0GenericAffine.mat -r f.nii.gz -o moved.nii.gz",
        ),
    )
)
def apply(
    thing: Annotated[
        Path, option("-i", "--input", value="FILE", text="Image, label map or points (CSV, FCSV, MRK.JSON).")
    ],
    transforms: Annotated[
        list[Path],
        option(
            "-t",
            "--transform",
            value="FILE",
            text="Transform; repeat it for several: they act on a fixed point from first to last, as in ANTs.",
        ),
    ],
    output: Annotated[Path, option("-o", "--output", value="FILE", text="Where the result goes.")],
    reference: Annotated[
        Path | None,
        option(
            "-r",
            "--reference",
            value="FILE",
            text="Image to carry onto: the fixed one, with --inverse the moving one. Not for points.",
        ),
    ] = None,
    inverse: Annotated[
        bool, flag("--inverse", text="Carry from fixed to moving. Without it everything goes from moving to fixed.")
    ] = False,
    interpolation: Annotated[
        str | None,
        option(
            "-n",
            "--interpolation",
            value="NAME",
            text="linear, nearest, cubic or labels; default nearest for what looks like labels, else linear.",
        ),
    ] = None,
    background: Annotated[float, option("--background", value="V", text="Value outside the image.")] = 0.0,
    volume: Annotated[int | None, option("--volume", value="N", text="Which volume of a 4-D image, from 0.")] = None,
    format: Annotated[
        str | None,
        option("--from", value="FORMAT", text="Format of the transforms, where suffixes mislead.", panel=_FORMATS),
    ] = None,
    fixed: Annotated[
        Path | None, option("--fixed", value="FILE", text="Fixed image, if it is not REFERENCE.", panel=_FORMATS)
    ] = None,
    moving: Annotated[
        Path | None, option("--moving", value="FILE", text="Moving image, if it is not the input.", panel=_FORMATS)
    ] = None,
    threads: Annotated[int | None, option("--threads", value="N", text="Processor threads; default all.")] = None,
) -> None:
    """Carry an image, a label map or points through transforms, from moving to fixed space.

    Images are resampled once, however many transforms there are, and keep the type of their voxels. Points take the
    inverse of the way images take, automatically.
    """
    if interpolation is not None:
        choose(interpolation, INTERPOLATIONS, "--interpolation")
    set_threads(threads)
    from verimorph.carry import carry, is_points_file, load_transform
    from verimorph.io import read_image, write_image, write_points
    from verimorph.io.safe import require_writable

    require_writable(output.parent)
    points = is_points_file(thing)
    image = None if points else read_image(thing, volume=volume)
    onto = None if reference is None else read_image(reference).grid
    own = None if image is None else image.grid
    hints = {"fixed": own if inverse else onto, "moving": onto if inverse else own}
    if fixed is not None:
        hints["fixed"] = read_image(fixed).grid
    if moving is not None:
        hints["moving"] = read_image(moving).grid
    chain = load_transform(list(transforms), format=format, **hints)
    done = carry(
        thing if image is None else image,
        transform=chain,
        reference=onto,
        inverse=inverse,
        interpolation=interpolation,
        background=background,
    )
    written = write_points(done.result, output) if points else write_image(done.result, output)  # type: ignore[arg-type]
    way = f"{done.source} -> {done.target}"
    if points:
        print(f"{thing}: {len(done.result)} points carried {way} by {done.reason}; world RAS mm inside, {written}")  # type: ignore[arg-type]
    else:
        print(f"{thing}: carried {way}, interpolation {done.interpolation} ({done.reason})")
        print(f"{written}: {done.result.grid}, {done.result.dtype}; world RAS mm")  # type: ignore[union-attr]
