"""One reader of lists of pairs: what trains, predicts and scores takes the same files and refuses the same mistakes."""

from __future__ import annotations

import json

import pytest

from verimorph.data.cases import read_learn2reg, read_pairs
from verimorph.errors import InputError, OptionError
from verimorph.evaluate.cases import read_task
from verimorph.io.pairs import read_rows
from verimorph.predict.jobs import jobs_of_table


@pytest.fixture
def listing(tmp_path):
    """A list of images in the folder of the data, which lie beside it, too."""
    (tmp_path / "data").mkdir()
    for folder in (tmp_path, tmp_path / "data"):
        for name in ("a.nii.gz", "b.nii.gz"):
            (folder / name).touch()
    file = tmp_path / "list.csv"
    file.write_text("case, fixed,moving,split,units\np,a.nii.gz,b.nii.gz,,voxel\nq,b.nii.gz,a.nii.gz,validation,\n")
    return file


def test_names_start_in_the_same_places_for_all_that_read_a_list(listing):
    data = listing.parent / "data"
    wanted = [data / "a.nii.gz", data / "b.nii.gz"]
    trained = read_pairs(listing, data=data)
    assert [trained.case(id).images[0].path for id in trained.pairs["train"][0]] == wanted
    scored = read_task(listing, data=data).cases[0]
    assert [scored.fixed, scored.moving] == wanted
    assert list(jobs_of_table(listing, data=data)[0].inputs.values()) == wanted


def test_the_files_of_a_line_lie_in_one_folder(listing):
    """What is not in the folder of the data may lie beside the list, but never half of a pair."""
    here, data = listing.parent, listing.parent / "data"
    (here / "points.csv").touch()
    (here / "a_labels.nii.gz").touch()
    head = "fixed,moving,fixed_labels,fixed_landmarks\n"
    own, other = "a.nii.gz,b.nii.gz,,\n", "a.nii.gz,b.nii.gz,a_labels.nii.gz,points.csv::fixed\n"
    listing.write_text(head + own + other)
    first, second = read_rows(listing, data=data)[0]
    assert (first.fixed, first.moving) == (data / "a.nii.gz", data / "b.nii.gz")
    assert (second.fixed, second.fixed_labels) == (here / "a.nii.gz", here / "a_labels.nii.gz")
    assert second.fixed_landmarks == f"{here / 'points.csv'}::fixed"
    listing.write_text(head + other)  # of no line the files are there: it is the wrong folder
    (wrong,) = read_rows(listing, data=data)[0]
    assert (wrong.fixed, wrong.fixed_labels) == (data / "a.nii.gz", data / "a_labels.nii.gz")


def test_a_list_may_lie_elsewhere_and_data_is_a_folder(listing, tmp_path):
    table = tmp_path / "X_dataset.json"
    table.write_text(json.dumps({"registration_val": [{"fixed": "a.nii.gz", "moving": "b.nii.gz"}]}))
    for file, read in ((listing, read_pairs), (listing, read_task), (table, read_learn2reg), (table, read_task)):
        with pytest.raises(InputError, match=f"nope: no such folder; give the one that the names in .*{file.name}"):
            read(file, data=tmp_path / "nope")


def test_lines_keep_their_columns_and_numbers(listing):
    listing.write_text("name,name,fixed,moving\nx,y,f.nii,m.nii\n")
    with pytest.raises(InputError, match=r"list.csv: two columns are called 'name'; rename or remove one"):
        read_rows(listing)
    listing.write_text("name, fixed,moving,,\n\nx,f.nii,m.nii,,\n\ny,,m.nii\n")  # columns without a name are no columns
    rows = read_rows(listing)[0]
    assert [(row.line, row.name, row.moving) for row in rows] == [
        (3, "x", listing.parent / "m.nii"),
        (5, "y", listing.parent / "m.nii"),
    ]
    with pytest.raises(InputError, match="line 5 has no fixed image"):
        read_pairs(listing)


def test_a_line_that_names_no_split_is_to_train_on(listing):
    assert set(read_pairs(listing).pairs) == {"train", "validation"}
    for split, name in (("train", "p"), ("val", "q")):
        assert [job.name for job in jobs_of_table(listing, split=split)] == [name]
        assert [case.name for case in read_task(listing, split=split).cases] == [name]
    assert [case.name for case in read_task(listing, split="validation").cases] == ["q"]
    with pytest.raises(InputError, match="no pair is of the split 'test'"):
        jobs_of_table(listing, split="test")
    listing.write_text("fixed,moving\na.nii.gz,b.nii.gz\n")
    with pytest.raises(OptionError, match="has no column 'split', and pairs of the split 'val' are asked for"):
        jobs_of_table(listing, split="val")


@pytest.mark.parametrize("read", [read_pairs, read_task, jobs_of_table])
def test_units_are_mm_or_voxel(listing, read):
    assert [row.unit for row in read_rows(listing)[0]] == ["voxel", "mm"]
    listing.write_text(listing.read_text().replace("voxel", "voxels"))
    with pytest.raises(OptionError, match="line 2 has units 'voxels'; did you mean 'voxel'"):
        read(listing)


def test_only_what_is_chosen_is_looked_at(listing):
    listing.write_text(listing.read_text().replace("voxel", "voxels"))
    assert [case.name for case in read_task(listing, split="val").cases] == ["q"]
    table = listing.with_suffix(".json")
    pair = {"fixed": "X_0001_0000.nii.gz", "moving": "X_0002_0000.nii.gz"}
    table.write_text(json.dumps({"training_paired_images": [{"fixed": 5, "moving": 6}], "registration_val": [pair]}))
    for split in ("val", "registration_val", None):
        assert [case.name for case in read_task(table, split=split).cases] == ["0001_0000-0002_0000"]
    with pytest.raises(InputError, match="training_paired_images: fixed of pair 1 is 5"):
        read_task(table, split="train")


@pytest.mark.parametrize("read", [read_learn2reg, read_task])
def test_a_learn2reg_pair_is_of_two_paths(tmp_path, read):
    file = tmp_path / "X_dataset.json"
    file.write_text(json.dumps({"registration_val": [{"fixed": "a.nii.gz", "moving": 5}]}))
    with pytest.raises(InputError, match="registration_val: moving of pair 1 is 5; give the path of an image"):
        read(file)
