"""ITK transform files against SimpleITK itself, and ANTs' ``.mat`` against its definition."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import io as scipy_io

from verimorph.errors import InputError
from verimorph.image import Image
from verimorph.io import read_transform, write_transform
from verimorph.transform import Affine, Composite, VelocityField

both_sizes = pytest.mark.parametrize("ndim", [2, 3])


@both_sizes
def test_simpleitk_reads_our_composite(result, points, by_simpleitk, tmp_path):
    path = write_transform(result, tmp_path / "transform.h5")
    oracle = sitk.ReadTransform(str(path))
    assert oracle.GetName() == "CompositeTransform"
    np.testing.assert_allclose(by_simpleitk(oracle, points), result.map_points(points), atol=1e-3)


@both_sizes
def test_round_trip(result, points, tmp_path):
    back = read_transform(write_transform(result, tmp_path / "transform.h5"))
    assert [part.kind for part in back.parts] == ["displacement", "similarity"]
    assert back.parts[0].grid.is_close(result.parts[0].grid, tolerance_mm=1e-6)
    np.testing.assert_allclose(back.parts[0].displacement, result.parts[0].displacement, atol=1e-5)
    np.testing.assert_allclose(back.map_points(points), result.map_points(points), atol=1e-4)


@both_sizes
def test_known_shift_on_an_oblique_anisotropic_grid(shift, world_shift, fixed, by_simpleitk, tmp_path):
    path = write_transform(shift, tmp_path / "shift.h5")
    middle = fixed.centre[None]
    np.testing.assert_allclose(
        by_simpleitk(sitk.ReadTransform(str(path)), middle)[0], middle[0] + world_shift, atol=1e-4
    )
    np.testing.assert_allclose(read_transform(path).map_points(middle)[0], middle[0] + world_shift, atol=1e-4)


@both_sizes
def test_last_part_of_the_file_acts_first(ndim, fixed, points, by_simpleitk, tmp_path):
    """A composite SimpleITK made: a turn added first, a shift added last. Read in the wrong order it must not agree."""
    turn, shift = sitk.AffineTransform(ndim), sitk.TranslationTransform(ndim, [30.0, 0.0, 0.0][:ndim])
    turn.Rotate(0, 1, 0.7)
    queue = sitk.CompositeTransform(ndim)
    queue.AddTransform(turn)
    queue.AddTransform(shift)
    sitk.WriteTransform(queue, str(tmp_path / "queue.h5"))
    found = read_transform(tmp_path / "queue.h5")
    expected = by_simpleitk(queue, points)
    np.testing.assert_allclose(found.map_points(points), expected, atol=1e-6)
    sitk.WriteTransform(turn, str(tmp_path / "turn.tfm"))
    sitk.WriteTransform(shift, str(tmp_path / "shift.tfm"))
    parts = [read_transform(tmp_path / "shift.tfm"), read_transform(tmp_path / "turn.tfm")]
    np.testing.assert_allclose(Composite(parts).map_points(points), expected, atol=1e-6)
    assert np.abs(Composite(parts[::-1]).map_points(points) - expected).max() > 5


def test_our_queue_has_the_field_last(result, tmp_path):
    with h5py.File(write_transform(result, tmp_path / "transform.h5")) as file:
        kinds = [file[f"TransformGroup/{n}/TransformType"][0].decode().split("_")[0] for n in range(3)]
    assert kinds == ["CompositeTransform", "AffineTransform", "DisplacementFieldTransform"]


def test_inverse_file_has_the_matrix_first_and_the_field_on_the_fixed_grid(
    linear, spline, fixed, points, by_simpleitk, tmp_path
):
    from verimorph.transform import DisplacementField

    smooth = DisplacementField(fixed, spline.displacement_on(fixed) * 0.3)
    forward = Composite([smooth, linear])
    inverse = forward.inverse()
    path = write_transform(inverse, tmp_path / "inverse.h5")
    back = read_transform(path)
    assert [part.kind for part in back.parts] == ["similarity", "displacement"]
    assert back.parts[1].grid.is_close(fixed)
    mapped = forward.map_points(points)
    np.testing.assert_allclose(
        by_simpleitk(sitk.ReadTransform(str(path)), mapped), inverse.map_points(mapped), atol=1e-3
    )


@pytest.mark.parametrize("suffix", [".h5", ".tfm", ".txt", ".mat", ".xfm"])
def test_matrices_in_every_suffix(linear, points, by_simpleitk, tmp_path, suffix):
    path = tmp_path / f"affine{suffix}"
    if suffix == ".xfm":
        oracle = sitk.AffineTransform(3)
        oracle.Rotate(0, 2, 0.3)
        sitk.WriteTransform(oracle, str(path))
        np.testing.assert_allclose(read_transform(path).map_points(points), by_simpleitk(oracle, points), atol=1e-4)
        return
    write_transform(linear, path)
    np.testing.assert_allclose(
        by_simpleitk(sitk.ReadTransform(str(path)), points), linear.map_points(points), atol=1e-9
    )
    np.testing.assert_allclose(read_transform(path).matrix, linear.matrix, atol=1e-9)


def linear_oracles() -> list[sitk.Transform]:
    centre, shift = [5.0, -7.0, 11.0], [1.0, 2.0, -3.0]
    versor = [0.1, -0.2, 0.05, 0.97339]  # of unit length: (x, y, z, cosine of half the angle)
    zyx = sitk.Euler3DTransform(centre, 0.1, 0.2, 0.3, shift)
    zyx.SetComputeZYX(True)
    skewed = sitk.AffineTransform(3)
    skewed.SetCenter(centre)
    skewed.SetTranslation(shift)
    skewed.Shear(0, 1, 0.2)
    skewed.Scale([1.1, 0.9, 1.2])
    return [
        sitk.TranslationTransform(3, shift),
        sitk.Euler3DTransform(centre, 0.1, 0.2, 0.3, shift),
        zyx,
        sitk.VersorRigid3DTransform(versor, shift, centre),
        sitk.Similarity3DTransform(1.2, versor, shift, centre),
        sitk.ScaleTransform(3, [1.1, 0.8, 1.3]),
        skewed,
        sitk.Euler2DTransform(centre[:2], 0.4, shift[:2]),
        sitk.Similarity2DTransform(0.9, 0.4, shift[:2], centre[:2]),
        sitk.Transform(3, sitk.sitkIdentity),
    ]


@pytest.mark.parametrize("oracle", linear_oracles(), ids=lambda t: f"{t.GetName()}{t.GetDimension()}")
def test_every_linear_class_of_itk(oracle, random, by_simpleitk, tmp_path):
    sitk.WriteTransform(oracle, str(tmp_path / "t.tfm"))
    points = random.normal(size=(100, oracle.GetDimension())) * 80
    np.testing.assert_allclose(
        read_transform(tmp_path / "t.tfm").map_points(points), by_simpleitk(oracle, points), atol=1e-9
    )


def test_mat_of_ants_is_read_by_its_definition(random, tmp_path):
    """``y = A (x - c) + c + t`` in LPS, stored as 12 numbers row by row and the centre c, MATLAB version 4."""
    matrix, translation, centre = (
        np.eye(3) + random.normal(size=(3, 3)) / 10,
        random.normal(size=3),
        random.normal(size=3),
    )
    stored = {
        "AffineTransform_double_3_3": np.concatenate([matrix.ravel(), translation])[:, None],
        "fixed": centre[:, None],
    }
    scipy_io.savemat(tmp_path / "0GenericAffine.mat", stored, format="4")
    points, flip = random.normal(size=(50, 3)) * 60, np.array([-1, -1, 1.0])
    expected = (((points * flip) - centre) @ matrix.T + centre + translation) * flip
    np.testing.assert_allclose(read_transform(tmp_path / "0GenericAffine.mat").map_points(points), expected, atol=1e-9)


def test_mat_that_we_write_is_matlab_version_4_with_the_key_of_ants(linear, tmp_path):
    path = write_transform(linear, tmp_path / "0GenericAffine.mat")
    stored = scipy_io.loadmat(path)
    flip = np.diag([-1, -1, 1.0])
    numbers, centre = stored["AffineTransform_double_3_3"].ravel(), stored["fixed"].ravel()
    matrix = numbers[:9].reshape(3, 3)
    np.testing.assert_allclose(flip @ matrix @ flip, linear.linear, atol=1e-12)
    np.testing.assert_allclose(flip @ (numbers[9:] + centre - matrix @ centre), linear.translation, atol=1e-9)


def test_old_spelling_and_single_precision_are_read(result, points, tmp_path):
    """Files of ITK 4 say ``TranformParameters``; ANTs in single precision says ``_float_`` and stores float32."""
    path = write_transform(result, tmp_path / "transform.h5")
    with h5py.File(path) as source, h5py.File(tmp_path / "old.h5", "w") as old:
        for name in ("ITKVersion", "HDFVersion", "OSName", "OSVersion"):
            source.copy(name, old)
        for number, group in source["TransformGroup"].items():
            made = old.create_group(f"TransformGroup/{number}")
            kind = group["TransformType"][0].decode().replace("double", "float")
            made.create_dataset(
                "TransformType", data=np.array([kind.encode()], dtype=object), dtype=h5py.string_dtype("ascii")
            )
            if "TransformParameters" in group:
                made["TranformParameters"] = group["TransformParameters"][()].astype(np.float32)
                made["TranformFixedParameters"] = group["TransformFixedParameters"][()].astype(np.float32)
    np.testing.assert_allclose(
        read_transform(tmp_path / "old.h5").map_points(points), result.map_points(points), atol=1e-3
    )


@both_sizes
@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
def test_spline_stays_a_spline(spline, points, by_simpleitk, tmp_path, suffix):
    path = write_transform(spline, tmp_path / f"spline{suffix}")
    back = read_transform(path)
    assert back.kind == "spline"
    expected = spline.map_points(points)
    np.testing.assert_allclose(back.map_points(points), expected, atol=1e-6)
    np.testing.assert_allclose(by_simpleitk(sitk.ReadTransform(str(path)), points), expected, atol=1e-5)


def test_velocity_is_written_as_the_displacement_of_its_flow(shift, fixed, by_simpleitk, tmp_path):
    flow = VelocityField(fixed, shift.displacement * 0.3)
    path = write_transform(flow, tmp_path / "flow.h5")
    middle = fixed.centre[None]
    np.testing.assert_allclose(by_simpleitk(sitk.ReadTransform(str(path)), middle), flow.map_points(middle), atol=1e-3)


def test_numerical_inverse_is_sampled(spline, fixed, tmp_path):
    inverse = spline.inverse()
    back = read_transform(write_transform(inverse, tmp_path / "inverse.h5", fixed=fixed))
    assert back.kind == "displacement"
    np.testing.assert_allclose(back.map_points(fixed.centre[None]), inverse.map_points(fixed.centre[None]), atol=0.05)
    with pytest.raises(InputError, match="--fixed"):
        write_transform(inverse, tmp_path / "inverse.h5")


@both_sizes
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_simpleitk_resampling_through_our_file_equals_ours(result, fixed, moving, random, tmp_path, interpolation):
    path = write_transform(result, tmp_path / "transform.h5")
    d = fixed.ndim
    image = Image.from_array(random.normal(size=moving.shape).astype(np.float32), moving)

    def as_sitk(array, grid):
        made = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
        flip = np.diag([-1.0, -1, 1][:d])
        made.SetOrigin((flip @ grid.origin).tolist())
        made.SetSpacing(grid.spacing.tolist())
        made.SetDirection((flip @ grid.direction).ravel().tolist())
        return made

    interpolator = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor}[interpolation]
    theirs = sitk.Resample(
        as_sitk(image.array, moving), as_sitk(np.zeros(fixed.shape, np.float32), fixed), sitk.ReadTransform(str(path)),
        interpolator, -3.0,
    )  # fmt: skip
    theirs = sitk.GetArrayFromImage(theirs).T
    ours = result.resample(image, fixed, interpolation=interpolation, background=-3.0).array
    assert 0.02 < (ours == -3).mean() < 0.9
    different = np.abs(ours - theirs) > 2e-3
    # A coordinate within rounding of a tie (nearest) or of the rim may fall on either side of it.
    assert different.mean() <= (0.002 if interpolation == "nearest" else 0.0005)


def test_what_a_suffix_cannot_hold_is_refused(result, rough_field, tmp_path):
    with pytest.raises(InputError, match="linear transforms only"):
        write_transform(result, tmp_path / "t.mat")
    with pytest.raises(InputError, match="dense field"):
        write_transform(rough_field, tmp_path / "t.tfm")
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_say_so(tmp_path, result):
    whole = write_transform(result, tmp_path / "transform.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "not.tfm").write_text("hello")
    for name in ("cut.h5", "not.tfm"):
        with pytest.raises(InputError, match=name):
            read_transform(tmp_path / name)


def test_empty_composite_is_refused(tmp_path):
    from verimorph.io.transforms.itk import from_simpleitk

    with pytest.raises(InputError, match="empty"):
        from_simpleitk(sitk.CompositeTransform(3))


def test_peak_memory_of_writing_is_a_few_fields(tmp_path):
    """ITK holds float64: the file of a field of N bytes in float32 must not cost more than about seven times N."""
    import subprocess
    import sys
    import textwrap

    script = f"""
    import resource, torch, numpy as np
    from verimorph.grid import Grid
    from verimorph.io import write_transform
    from verimorph.transform import Affine, Composite, DisplacementField, rigid
    import SimpleITK
    grid = Grid((128, 128, 128))
    transform = Composite([DisplacementField(grid, torch.zeros(1, 3, *grid.shape)), rigid(translation=[1.0, 2, 3])])
    write_transform(Affine(np.eye(4)), {str(tmp_path / "warm.h5")!r})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_transform(transform, {str(tmp_path / "t.h5")!r})
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (12 * grid.size))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=120
    )
    assert float(ran.stdout) < 7


def test_singular_affine_is_written_and_read(tmp_path):
    """A file may hold what has no inverse; only inverting it is refused."""
    flat = Affine(np.diag([1.0, 1.0, 0.0, 1.0]))
    np.testing.assert_allclose(read_transform(write_transform(flat, tmp_path / "flat.h5")).matrix, flat.matrix)
