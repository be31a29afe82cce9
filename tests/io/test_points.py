"""Landmarks: the file says its frame, RAS comes out; what does not say it is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verimorph.errors import InputError
from verimorph.io import Points, as_points, read_points, write_points

RAS = np.array([[1.5, -2.25, 3.0], [-40.0, 50.5, -60.125]])
LPS = RAS * [-1, -1, 1]


def refused(path, says: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        read_points(path, **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def csv_file(path, header: str, points: np.ndarray):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in points)]) + "\n")
    return path


@given(
    points=st.lists(st.tuples(*[st.floats(-1e4, 1e4, allow_nan=False)] * 3), min_size=1, max_size=5),
    suffix=st.sampled_from([".csv", ".fcsv", ".mrk.json"]),
    frame=st.sampled_from(["ras", "lps"]),
)
def test_points_come_back_bit_by_bit_from_every_format(tmp_path_factory, points, suffix, frame):
    path = tmp_path_factory.mktemp("points") / f"a{suffix}"
    names = tuple(f"left, {i}" for i in range(len(points)))
    again = read_points(write_points(Points(np.array(points), names), path, frame=frame))
    np.testing.assert_array_equal(again.coordinates, np.array(points))
    assert again.names == names


def test_points_of_a_picture_have_two_coordinates(tmp_path):
    path = write_points(Points(RAS[:, :2]), tmp_path / "a.csv", frame="lps")
    assert path.read_text().splitlines()[0] == "name,x_lps_mm,y_lps_mm"
    np.testing.assert_array_equal(read_points(path).coordinates, RAS[:, :2])
    with pytest.raises(InputError, match="holds 3-D points"):
        write_points(Points(RAS[:, :2]), tmp_path / "a.fcsv")
    assert not (tmp_path / "a.fcsv").exists()


@pytest.mark.parametrize(("frame", "points"), [("ras", RAS), ("lps", LPS), ("LPS", LPS)])
def test_the_columns_of_a_csv_say_the_frame(tmp_path, frame, points):
    path = csv_file(tmp_path / "a.csv", ",".join(f"{axis}_{frame}_mm" for axis in "xyz"), points)
    found = read_points(path)
    np.testing.assert_array_equal(found.coordinates, RAS)
    assert found.names == ("1", "2")


def test_order_and_further_columns_of_a_csv_do_not_matter(tmp_path):
    rows = [["tip", *RAS[0, [2, 0, 1]], 7], ["base", *RAS[1, [2, 0, 1]], 8]]
    path = csv_file(tmp_path / "a.csv", "Name, z_ras_mm, x_ras_mm, y_ras_mm, quality", rows)
    np.testing.assert_array_equal(read_points(path).coordinates, RAS)
    assert read_points(path).names == ("tip", "base")


def test_a_table_of_both_lists_gives_the_one_asked_for(tmp_path):
    header = ",".join(f"{role}_{axis}_lps_mm" for role in ("fixed", "moving") for axis in "xyz")
    path = csv_file(tmp_path / "both.csv", header, np.c_[LPS, LPS + 1])
    np.testing.assert_array_equal(read_points(f"{path}::fixed").coordinates, RAS)
    np.testing.assert_array_equal(read_points(path, columns="moving").coordinates, RAS + [-1, -1, 1])
    np.testing.assert_array_equal(as_points(path, columns="fixed").coordinates, RAS)
    refused(path, "choose one as both.csv::fixed or both.csv::moving")
    refused(path, "has no columns left_x", columns="left")
    plain = csv_file(tmp_path / "plain.csv", "x_ras_mm,y_ras_mm,z_ras_mm", RAS)
    np.testing.assert_array_equal(as_points(plain, columns="fixed").coordinates, RAS)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("x,y,z\n1,2,3\n", "names no frame; name the columns x_ras_mm"),
        ("1,2,3\n4,5,6\n", "names no frame"),
        ("x_vox,y_vox,z_vox\n1,2,3\n", "names no frame"),
        ("x_ras_mm,y_ras_mm\n", "holds no points"),
        ("x_ras_mm,z_ras_mm\n1,2\n", "has only the columns x_ras_mm, z_ras_mm"),
        ("x_ras_mm,y_lps_mm,z_ras_mm\n1,2,3\n", "in RAS and in LPS"),
        ("x_ras_mm,x_ras_mm,y_ras_mm\n1,2,3\n", "two columns are called x_ras_mm"),
        ("x_ras_mm,y_ras_mm,z_ras_mm\n1,2,3\n1,two,3\n", "line 3 has no number"),
        ("x_ras_mm,y_ras_mm,z_ras_mm\n1,2\n", "line 2 has no number"),
        ("x_ras_mm,y_ras_mm,z_ras_mm\n1,nan,3\n", "line 2 has a coordinate that is not finite"),
        ("", "names no frame"),
    ],
)
def test_a_csv_that_does_not_say_where_its_points_are_is_refused(tmp_path, content, says):
    (tmp_path / "a.csv").write_text(content)
    refused(tmp_path / "a.csv", says)


@pytest.mark.parametrize(("system", "points"), [("RAS", RAS), ("0", RAS), ("LPS", LPS), ("1", LPS)])
def test_slicer_fiducials_of_every_version(tmp_path, system, points):
    rows = "\n".join(f"vtkMRML_{i},{x},{y},{z},0,0,0,1,1,1,0,F-{i},,vtkX" for i, (x, y, z) in enumerate(points))
    (tmp_path / "a.fcsv").write_text(
        f"# Markups fiducial file version = 4.10\n# CoordinateSystem = {system}\n"
        f"# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n{rows}\n"
    )
    found = read_points(tmp_path / "a.fcsv")
    np.testing.assert_array_equal(found.coordinates, RAS)
    assert found.names == ("F-0", "F-1")


@pytest.mark.parametrize("system", ["IJK", "2"])
def test_slicer_fiducials_in_voxels_or_without_frame_are_refused(tmp_path, system):
    (tmp_path / "a.fcsv").write_text(f"# CoordinateSystem = {system}\n1,1,2,3\n")
    refused(tmp_path / "a.fcsv", "export it from Slicer as RAS or LPS")
    (tmp_path / "b.fcsv").write_text("1,1,2,3\n")
    refused(tmp_path / "b.fcsv", "CoordinateSystem is missing")


def markups(**changes) -> dict:
    points = [
        {"id": str(i), "label": f"F-{i}", "position": list(point), "positionStatus": "defined"}
        for i, point in enumerate(LPS)
    ]
    points.append({"id": "9", "label": "F-9", "position": [0, 0, 0], "positionStatus": "undefined"})
    return {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": points} | changes


def test_slicer_markups_skip_points_that_are_not_placed(tmp_path):
    path = tmp_path / "a.mrk.json"
    path.write_text(json.dumps({"markups": [markups()]}))
    np.testing.assert_array_equal(read_points(path).coordinates, RAS)
    path.write_text(json.dumps({"markups": [markups(coordinateSystem="RAS", coordinateUnits="cm")]}))
    np.testing.assert_array_equal(read_points(path).coordinates, LPS * 10)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not a 3D Slicer markups file"),
        ('{"markups": []}', "not a 3D Slicer markups file"),
        ('["a"]', "not a 3D Slicer markups file"),
        (json.dumps({"markups": [markups(), markups()]}), "holds 2 point lists"),
        (json.dumps({"markups": [markups(coordinateSystem="IJK")]}), "coordinateSystem is IJK"),
        (json.dumps({"markups": [markups(coordinateUnits="inch")]}), "coordinateUnits are inch"),
        (json.dumps({"markups": [markups(controlPoints=[])]}), "holds no points"),
        (json.dumps({"markups": [markups(controlPoints=[{"id": "1"}])]}), "control point 1"),
    ],
)
def test_slicer_markups_that_cannot_be_used_are_refused(tmp_path, content, says):
    (tmp_path / "a.mrk.json").write_text(content)
    refused(tmp_path / "a.mrk.json", says)


def test_other_files_are_refused(tmp_path):
    refused(tmp_path / "none.csv", "no such landmark file")
    (tmp_path / "a.txt").write_text("1 2 3")
    refused(tmp_path / "a.txt", "unknown landmark suffix")
    (tmp_path / "a.csv").write_bytes(bytes(range(128, 256)))
    refused(tmp_path / "a.csv", "not a readable text file")


def test_arrays_are_points_and_other_things_are_not():
    np.testing.assert_array_equal(as_points(RAS).coordinates, RAS)
    np.testing.assert_array_equal(as_points(RAS.tolist()).coordinates, RAS)
    assert as_points(Points(RAS)).names == ("1", "2")
    for thing in (3, RAS[0], np.zeros((2, 5)), [["a", "b", "c"]], np.full((2, 3), np.nan)):
        with pytest.raises(InputError):
            as_points(thing)
    with pytest.raises(InputError, match="2 points but 1 names"):
        Points(RAS, ("one",))


def test_real_landmarks_of_a_pair(data_folder):
    table = data_folder / "lung_ct_pair" / "landmarks_dev.csv"
    fixed, moving = (as_points(table, columns=role) for role in ("fixed", "moving"))
    assert len(fixed) == len(moving) == 26
    from verimorph.io import read_image

    grid = read_image(data_folder / "lung_ct_pair" / "fixed_baseline.nii.gz").grid
    assert grid.contains(fixed.coordinates).all()
