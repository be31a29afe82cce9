"""What an image is made of: every file that is read for it counts, and one file is its own bytes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import SimpleITK as sitk

from verimorph.errors import InputError
from verimorph.image import Image
from verimorph.inputs import fingerprint
from verimorph.io import read_image, write_image, write_images
from verimorph.io.images import content_hash, files_of
from verimorph.uncertainty.suite import digest


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr", ".hdr", ".img"])
def test_voxels_beside_their_header_count(tmp_path, random, suffix):
    """The headers of two images of one grid are equal to the byte."""
    told = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        image = Image.from_array(random.integers(0, 99, (5, 6, 7)).astype(np.int16))
        file = write_image(image, tmp_path / name / f"a{suffix}")
        assert {one.name for one in files_of(file)} == {one.name for one in file.parent.iterdir()}
        told.append((content_hash(file), digest(file), fingerprint(read_image(file))["sha256"]))
    assert all(one != other for one, other in zip(*told, strict=True))


@pytest.mark.parametrize("ends", [(".hdr", ".img.gz"), (".hdr.gz", ".img"), (".HDR", ".IMG"), (".HDR", ".img")])
def test_a_pair_counts_whole_however_its_files_are_spelled(tmp_path, ends):
    pair = {tmp_path / f"q{end}" for end in ends}
    for file in (*pair, tmp_path / "q.b.img"):
        file.write_bytes(b"bytes")
    for file in pair:
        assert files_of(file)[0] == file
        assert set(files_of(file)) == pair


def test_a_header_may_name_any_file_and_several(tmp_path, random):
    slices = [random.integers(0, 99, (6, 5)).astype(np.uint8) for _ in range(3)]
    for n, values in enumerate(slices):
        (tmp_path / f"slice = {n}").write_bytes(values.tobytes())
    names = "\n".join(f"slice = {n}" for n in range(3))
    head = "ObjectType = Image\nNDims = 3\nDimSize = 5 6 3\nElementType = MET_UCHAR\nElementDataFile = "
    (tmp_path / "a.mhd").write_text(f"{head}LIST\n{names}\n")
    (tmp_path / "b.mhd").write_text(f"{head}slice = 1\n".replace("5 6 3", "5 6 1"))
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.mhd"))), slices)
    assert [file.name for file in files_of(tmp_path / "a.mhd")] == ["a.mhd", *names.split("\n")]
    assert [file.name for file in files_of(tmp_path / "b.mhd")] == ["b.mhd", "slice = 1"]


def test_one_file_is_its_own_bytes(tmp_path, random):
    for name in ("a.nii.gz", "local.mhd"):  # also where the voxels stand in what is called a header
        (tmp_path / name).write_bytes(random.bytes(20_000))
        assert content_hash(tmp_path / name) == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_images_written_beside_each_other_are_those_written_alone(tmp_path) -> None:
    values = np.random.default_rng(0).standard_normal((9, 8, 7))
    head = Image.from_array(values.astype(np.float32))
    other = Image.from_array((100 * values).astype(np.int16))
    (tmp_path / "both").mkdir()
    write_images({"a.nii.gz": head, "b.mha": other}, tmp_path / "both")
    write_images({}, tmp_path / "none")
    for name, image in (("a.nii.gz", head), ("b.mha", other)):
        write_image(image, tmp_path / name)
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / name).read_bytes()
    with pytest.raises(InputError, match=r"c\.txt"):
        write_images({"c.txt": head, "d.nii.gz": other}, tmp_path / "both")
