"""What users get wrong, each answered by one line, exit code 2, and an output folder as it was before."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

SHAPE = (24, 24, 20)


@pytest.fixture
def align(verimorph, pair, tmp_path):
    """Run ``verimorph register`` on the good pair with some words replaced; the output folder is ``tmp_path/out``."""

    def invoke(*more: object, fixed: object = None, moving: object = None, output: object = None):
        return verimorph(
            *("register", "-f", fixed or pair[0], "-m", moving or pair[1], "-o", output or tmp_path / "out"),
            *("-t", "affine", "-q", "fast", "--no-report", "-j", 1),
            *more,
        )

    yield invoke
    assert not (tmp_path / "out").exists(), f"left behind: {sorted((tmp_path / 'out').rglob('*'))}"


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(voxels, np.diag([1.5, 1.5, 2.0, 1.0]) if affine is None else affine), path)
    return path


def dicom_series(folder: Path, uid: str, voxels: np.ndarray) -> None:
    """Write four slices of one DICOM series."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(4):
        image = sitk.GetImageFromArray(voxels[:, :, number + 8].T.astype(np.int16))
        image = sitk.JoinSeries(image)
        for tag, value in {
            "0008|0060": "MR",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000e": uid,
            "0008|0018": f"{uid}.{number}",
            "0020|0013": str(number),
            "0020|0032": f"0\\0\\{3 * number}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}-{number}.dcm"))
        writer.Execute(image)


# Files that cannot be read --------------------------------------------------------------------------------------------


def test_missing_file(align, tmp_path):
    align(moving=tmp_path / "nowhere.nii.gz").assert_user_error("nowhere.nii.gz")


def test_folder_without_dicom(align, tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "readme.txt").write_text("nothing here")
    align(fixed=tmp_path / "scans").assert_user_error("scans", "DICOM")


def test_two_series_in_one_folder(align, bright, tmp_path):
    for uid in ("1.2.826.0.1.3680043.2.1125.7", "1.2.826.0.1.3680043.2.1125.8"):
        dicom_series(tmp_path / "scans", uid, bright)
    align(fixed=tmp_path / "scans").assert_user_error("scans", "series", "2")


def test_not_an_image(align, tmp_path):
    (tmp_path / "notes.nii.gz").write_text("not an image")
    align(fixed=tmp_path / "notes.nii.gz").assert_user_error("notes.nii.gz")
    (tmp_path / "notes.xyz").write_text("not an image")
    align(fixed=tmp_path / "notes.xyz").assert_user_error("notes.xyz")


def test_truncated_gzip(align, pair, tmp_path):
    whole = pair[1].read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    align(moving=tmp_path / "cut.nii.gz").assert_user_error("cut.nii.gz")


def test_truncated_without_compression(align, pair, tmp_path):
    whole = gzip.decompress(pair[1].read_bytes())
    (tmp_path / "cut.nii").write_bytes(whole[: len(whole) // 2])
    align(moving=tmp_path / "cut.nii").assert_user_error("cut.nii")


# Voxels that cannot be used -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite(align, bright, tmp_path, value):
    voxels = bright
    voxels[3, 4, 5] = value
    align(fixed=save(tmp_path / "bad.nii.gz", voxels)).assert_user_error("bad.nii.gz", "(3, 4, 5)", "--nan-value")


def test_nan_value_lets_them_pass_with_a_warning(align, bright, tmp_path):
    bright[3, 4, 5] = np.nan
    outcome = align("--nan-value", "0", "--dry-run", fixed=save(tmp_path / "bad.nii.gz", bright))
    assert outcome.code == 0, outcome.err
    assert "replaced by 0" in outcome.err


def test_constant_image(align, tmp_path):
    align(moving=save(tmp_path / "flat.nii.gz", np.full(SHAPE, 7.0, np.float32))).assert_user_error("flat.nii.gz")


def test_four_dimensional_image(align, bright, tmp_path):
    series = save(tmp_path / "series.nii.gz", np.stack([bright] * 3, -1))
    align(fixed=series).assert_user_error("series.nii.gz", "--volume")
    align("--fixed-volume", 3, fixed=series).assert_user_error("series.nii.gz", "3")


def test_colour_image(align, tmp_path):
    colours = np.zeros((24, 24, 20), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    align(fixed=save(tmp_path / "colour.nii.gz", colours)).assert_user_error("colour.nii.gz", "RGB")
    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(picture, isVector=True), str(tmp_path / "colour.png"))
    align(fixed=tmp_path / "colour.png", moving=tmp_path / "colour.png").assert_user_error("colour.png", "RGB")


def test_two_dimensions_against_three(align, bright, tmp_path):
    slice_ = bright[:, :, 10]
    sitk.WriteImage(sitk.GetImageFromArray(slice_.T.astype(np.uint8)), str(tmp_path / "slice.png"))
    align(moving=tmp_path / "slice.png").assert_user_error("slice.png", "2-D", "3-D")


# Headers that cannot be used ------------------------------------------------------------------------------------------


def test_singular_affine(align, bright, tmp_path):
    image = nib.Nifti1Image(bright, np.eye(4))
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]
    image.to_filename(tmp_path / "good.nii")
    raw = bytearray((tmp_path / "good.nii").read_bytes())
    raw[280:328] = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]], "<f4").tobytes()
    (tmp_path / "singular.nii").write_bytes(raw)
    align(fixed=tmp_path / "singular.nii").assert_user_error("singular.nii", "singular")


def test_missing_affine(align, tmp_path, pair):
    image = nib.load(pair[0])
    header = image.header.copy()
    header.set_sform(None, 0)
    header.set_qform(None, 0)
    bare = nib.Nifti1Image(np.asanyarray(image.dataobj), None, header)
    bare.header["sform_code"] = bare.header["qform_code"] = 0
    nib.save(bare, tmp_path / "bare.nii.gz")
    outcome = align("--dry-run", fixed=tmp_path / "bare.nii.gz")
    if outcome.code == 0:  # used by its voxel sizes alone, and said so
        assert "warning: " in outcome.err
        assert "bare.nii.gz" in outcome.err
    else:
        outcome.assert_user_error("bare.nii.gz")


def test_forms_that_disagree_are_a_warning_that_says_which_is_used(align, tmp_path, pair):
    image = nib.load(pair[0])
    turned = image.affine.copy()
    turned[:3, 3] += 40
    image.set_sform(image.affine, 1)
    image.set_qform(turned, 1)
    nib.save(image, tmp_path / "torn.nii.gz")
    outcome = align("--dry-run", fixed=tmp_path / "torn.nii.gz")
    assert outcome.code == 0, outcome.err
    assert "warning: " in outcome.err
    assert "sform" in outcome.err
    assert "qform" in outcome.err


@pytest.mark.parametrize("size", [0.0, -1.5])
def test_spacing_that_is_not_positive(align, bright, tmp_path, size):
    save(tmp_path / "good.nii", bright)
    raw = bytearray((tmp_path / "good.nii").read_bytes())
    raw[76 + 8 : 76 + 12] = np.array([size], "<f4").tobytes()  # pixdim[2]
    raw[252:256] = np.array([1, 0], "<i2").tobytes()  # only the qform counts
    (tmp_path / "spacing.nii").write_bytes(raw)
    align(fixed=tmp_path / "spacing.nii").assert_user_error("spacing.nii", "spacing")


# What comes with the images -------------------------------------------------------------------------------------------


def test_empty_mask(align, tmp_path, pair):
    mask = save(tmp_path / "mask.nii.gz", np.zeros(SHAPE, np.uint8), nib.load(pair[0]).affine)
    align("--fixed-mask", mask).assert_user_error("mask.nii.gz", "empty")


@pytest.mark.parametrize("option", ["--fixed-mask", "--moving-mask", "--fixed-labels", "--moving-labels"])
def test_company_on_another_grid(align, tmp_path, pair, option):
    other = save(tmp_path / "other.nii.gz", np.ones((12, 12, 10), np.uint8), nib.load(pair[0]).affine)
    words = [option, other]
    if "labels" in option:  # both label maps, the other one good
        partner = "moving" if "fixed" in option else "fixed"
        words += [f"--{partner}-labels", tmp_path / f"{partner}_labels.nii.gz"]
    align(*words).assert_user_error("other.nii.gz", "grid")


def test_labels_of_one_image_only(align, tmp_path):
    outcome = align("--fixed-labels", tmp_path / "fixed_labels.nii.gz", "--dry-run")
    assert outcome.code in (0, 2)
    assert "Traceback" not in outcome.err


def landmarks(path: Path, points: np.ndarray, header: str = "x_ras_mm,y_ras_mm,z_ras_mm") -> Path:
    path.write_text("\n".join([header, *(",".join(f"{value:.3f}" for value in point) for point in points)]) + "\n")
    return path


def test_landmark_lists_of_different_length(align, tmp_path):
    points = np.array([[-5.0, 25.0, 20.0], [-3, 28, 25], [0, 25, 22]])
    fixed = landmarks(tmp_path / "f.csv", points)
    moving = landmarks(tmp_path / "m.csv", points[:2])
    outcome = align("--fixed-landmarks", fixed, "--moving-landmarks", moving)
    outcome.assert_user_error("f.csv", "m.csv", "3", "2")


def test_landmarks_that_all_lie_elsewhere(align, tmp_path):
    points = np.array([[-500.0, 2500.0, 20.0], [-300, 280, 2500]])
    fixed, moving = landmarks(tmp_path / "f.csv", points), landmarks(tmp_path / "m.csv", points)
    align("--fixed-landmarks", fixed, "--moving-landmarks", moving).assert_user_error("f.csv", "outside")


def test_landmarks_without_a_frame(align, tmp_path):
    fixed = landmarks(tmp_path / "f.csv", np.ones((2, 3)), header="x,y,z")
    align("--fixed-landmarks", fixed, "--moving-landmarks", fixed).assert_user_error("f.csv", "x_ras_mm")


def test_initial_transform_that_is_not_one(align, tmp_path):
    align("--initial", tmp_path / "nowhere.h5").assert_user_error("nowhere.h5")
    align("--initial", "momnts").assert_user_error("did you mean 'moments'")
    (tmp_path / "notes.h5").write_text("not a transform")
    align("--initial", tmp_path / "notes.h5").assert_user_error("notes.h5")


def test_initial_landmarks_on_one_line(align, tmp_path):
    points = landmarks(tmp_path / "p.csv", np.array([-5.0, 25.0, 20.0]) + np.arange(4)[:, None])
    outcome = align("--initial", "landmarks", "--fixed-landmarks", points, "--moving-landmarks", points)
    outcome.assert_user_error("landmarks", "rotation", "line")


def test_initial_landmarks_without_landmarks(align):
    align("--initial", "landmarks").assert_user_error("landmarks")


# Options --------------------------------------------------------------------------------------------------------------


def test_unknown_term_and_unknown_key_name_the_nearest(align):
    align("--similarity", "lnc").assert_user_error("did you mean 'lncc'")
    align("--similarity", "lncc:radus=4").assert_user_error("radius")


def test_schedules_of_different_length(align):
    align("--levels", "4x2x1", "--iterations", "100x50").assert_user_error("iterations", "levels")


def test_device_that_is_not_there(align):
    align("--device", "cuda:99").assert_user_error("cuda")
    align("--device", "gpu").assert_user_error("gpu")


# The machine ----------------------------------------------------------------------------------------------------------


def test_output_that_cannot_be_made(align, tmp_path):
    (tmp_path / "file").write_text("in the way")
    align(output=tmp_path / "file" / "out").assert_user_error("file")
    assert (tmp_path / "file").read_text() == "in the way"


def test_output_without_permission(align, tmp_path, monkeypatch):
    # As the operating system refuses; a folder without permission would not stop the superuser, who runs many tests.
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    align().assert_user_error("out", "permission denied")


def test_full_disk(align, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    align().assert_user_error("out", "disk", "free")


def test_disk_that_fills_while_writing(align, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_filename", refuse)
    monkeypatch.setattr(nib, "save", refuse)
    align().assert_user_error("disk", "full")


def test_not_enough_memory(align, monkeypatch):
    monkeypatch.setattr("verimorph.planning.memory", lambda: {"total": 10_000_000, "available": 100_000})
    align("-t", "deformable").assert_user_error("memory", "GB", "--levels")


def test_missing_extra_names_its_install(align, tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *rest, **more):
        if name.split(".")[0] == "nitransforms":
            raise ImportError(f"No module named '{name}'", name="nitransforms")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "start.x5").write_text("never read")
    align("--initial", tmp_path / "start.x5").assert_user_error("pip install 'verimorph[formats]'")
