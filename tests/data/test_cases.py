"""Readers of lists, folders and Learn2Reg files, and what they say when something is missing."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from verimorph.data.cases import read_folder, read_learn2reg, read_pairs
from verimorph.data.source import Source, as_source
from verimorph.errors import InputError, OptionError


def test_pairs_with_splits_cohorts_and_landmarks(tmp_path):
    (tmp_path / "pairs.csv").write_text(
        "case,fixed,moving,fixed_labels,landmarks,split,cohort,units\n"
        "x,a.nii.gz,b.nii.gz,a_lab.nii.gz,points.csv,train,one,voxel\n"
        "y,b.nii.gz,a.nii.gz,,,validation,one,voxel\n"
    )
    found = read_pairs(tmp_path / "pairs.csv")
    assert found.pairs == {"train": (("a", "b"),), "validation": (("b-2", "a-2"),)}
    assert found.case("a").labels.path == tmp_path / "a_lab.nii.gz"
    assert found.case("a").landmarks == f"{tmp_path / 'points.csv'}::fixed"
    with pytest.raises(InputError) as told:
        found.require_files()
    for name in ("a.nii.gz", "b.nii.gz", "a_lab.nii.gz", "points.csv"):
        assert name in str(told.value)
    assert "4 files are missing" in str(told.value)


def test_pairs_without_a_column_are_refused(tmp_path):
    (tmp_path / "pairs.csv").write_text("fixd,moving\na,b\n")
    with pytest.raises(InputError, match="did you mean 'fixd'"):
        read_pairs(tmp_path / "pairs.csv")


def test_bench_case_lists_are_read(tmp_path):
    (tmp_path / "cases.csv").write_text("case,set,fixed,moving,kind\nx.y,x,a.png,b.png,deform\n")
    assert read_pairs(tmp_path / "cases.csv").ids == ("a", "b")


def test_folder_of_channels(tmp_path, write):
    for id in ("p1", "p2"):
        write(tmp_path / id / "t1.nii.gz")
        write(tmp_path / id / "t2.nii.gz")
    write(tmp_path / "p1" / "seg.nii.gz", labels=2)
    found = read_folder(tmp_path, images="{id}/t1.nii.gz+{id}/t2.nii.gz", labels="{id}/seg.nii.gz")
    assert found.ids == ("p1", "p2")
    assert [source.path.name for source in found.case("p2").images] == ["t1.nii.gz", "t2.nii.gz"]
    assert found.case("p1").labels is not None
    assert found.case("p2").labels is None
    with pytest.raises(InputError, match=r"any of its 2 images fits the pattern '\{id\}/sag.nii.gz' of labels"):
        read_folder(tmp_path, images="{id}/t1.nii.gz", labels="{id}/sag.nii.gz")
    (tmp_path / "p2" / "t2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"1 channels are missing: p2"):
        read_folder(tmp_path, images="{id}/t1.nii.gz+{id}/t2.nii.gz")
    with pytest.raises(OptionError, match=r"has no \{id\}"):
        read_folder(tmp_path, images="*.nii.gz")


def test_learn2reg_file(tmp_path, write):
    for n in range(4):
        write(tmp_path / "imagesTr" / f"X_000{n}_0000.nii.gz", seed=n)
        write(tmp_path / "labelsTr" / f"X_000{n}_0000.nii.gz", seed=n, labels=2)
    write(tmp_path / "imagesTs" / "X_0009_0000.nii.gz")
    (tmp_path / "keypointsTr").mkdir()
    np.savetxt(tmp_path / "keypointsTr" / "X_0000_0000.csv", [[1, 2, 3], [4, 5, 6]], delimiter=",")
    file = tmp_path / "X_dataset.json"
    file.write_text(
        json.dumps(
            {
                "name": "X",
                "labels": {"0": {"0": "background", "1": "liver", "2": "spleen"}},
                "training": [{"image": f"./imagesTr/X_000{n}_0000.nii.gz"} for n in range(4)],
                "test": [{"image": "./imagesTs/X_0009_0000.nii.gz"}],
                "registration_val": [
                    {"fixed": "./imagesTr/X_0000_0000.nii.gz", "moving": "./imagesTr/X_0001_0000.nii.gz"}
                ],
            }
        )
    )
    found = read_learn2reg(file)
    assert found.label_names == {1: "liver", 2: "spleen"}
    assert found.splits["train"] == ("X_0002_0000", "X_0003_0000")
    assert found.pairs["validation"] == (("X_0000_0000", "X_0001_0000"),)
    assert found.splits["test"] == ("X_0009_0000",)
    case = found.case("X_0000_0000")
    assert case.subject == "0000"
    assert np.allclose(case.read_points(case.read_images()[0]).coordinates, [[1, 2, 3], [4, 5, 6]])


def test_a_learn2reg_file_with_other_than_paths_is_refused(tmp_path):
    file = tmp_path / "X_dataset.json"
    for content, said in (
        (
            {"registration_val": [{"fixed": "a.nii.gz", "moving": "b.nii.gz"}, {"fixed": 5, "moving": "b"}]},
            "pair 2 is 5",
        ),
        ({"registration_val": [{"fixed": "a.nii.gz", "moving": None}]}, "moving of pair 1 is None; give the path"),
        ({"registration_val": [{"fixed": ["a"], "moving": "b"}]}, r"registration_val: fixed of pair 1 is \['a'\]"),
        ({"training": 5}, "'training' is 5; give a list of images"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match=said):
            read_learn2reg(file)


def test_pickles_make_arrays_and_nothing_else(tmp_path):
    arrays = (np.arange(24.0).reshape(2, 3, 4)[None], np.ones((2, 3, 4), np.uint16))
    (tmp_path / "good.pkl").write_bytes(pickle.dumps(arrays))
    assert np.array_equal(as_source(f"{tmp_path / 'good.pkl'}::1").read().array, arrays[1])
    assert np.array_equal(Source(tmp_path / "good.pkl", 0).read().array, arrays[0][0])

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="only NumPy arrays"):
        Source(tmp_path / "bad.pkl", 0).read()
    assert not (tmp_path / "made").exists()


def test_npz_of_voxelmorph(tmp_path):
    np.savez(tmp_path / "v.npz", vol=np.ones((4, 5, 6)), seg=np.zeros((4, 5, 6), int))
    assert Source(tmp_path / "v.npz").read().array.sum() == 120
    assert as_source(f"{tmp_path / 'v.npz'}::seg").read().array.sum() == 0
    with pytest.raises(InputError, match="no array 'mask'"):
        Source(tmp_path / "v.npz", "mask").read()


def test_label_maps_beside_the_images_are_no_images(tmp_path, write):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.nii.gz")
        write(tmp_path / f"{name}_labels.nii.gz", labels=2)
        write(tmp_path / f"{name}_mask.nii.gz", labels=1)
    found = read_folder(tmp_path, images="{id}.nii.gz", labels="{id}_labels.nii.gz", masks="{id}_mask.nii.gz")
    assert found.ids == ("a", "b")
    assert [str(case.labels) for case in found.cases] == ["a_labels.nii.gz", "b_labels.nii.gz"]
    same = read_folder(tmp_path, images="{id}_mask.nii.gz", masks="{id}_mask.nii.gz")
    assert same.ids == ("a", "b")


def test_unknown_split_names_the_nearest(folder_set):
    found = read_folder(folder_set, images="images/{id}.nii.gz")
    with pytest.raises(OptionError, match="no split 'train'"):
        found.split("train")
    with pytest.raises(OptionError, match="did you mean 's0_"):
        found.case("s0_")
