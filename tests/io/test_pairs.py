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
    """A list beside one image, whose other image lies in the folder of the data."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.nii.gz").touch()
    (tmp_path / "b.nii.gz").touch()
    file = tmp_path / "list.csv"
    file.write_text("case, fixed,moving,split,units\np,a.nii.gz,b.nii.gz,,voxel\nq,b.nii.gz,a.nii.gz,validation,\n")
    return file


def test_names_start_in_the_same_places_for_all_that_read_a_list(listing):
    data = listing.parent / "data"
    wanted = [data / "a.nii.gz", listing.parent / "b.nii.gz"]
    trained = read_pairs(listing, data=data)
    assert [trained.case(id).images[0].path for id in trained.pairs["train"][0]] == wanted
    scored = read_task(listing, data=data).cases[0]
    assert [scored.fixed, scored.moving] == wanted
    assert list(jobs_of_table(listing, data=data)[0].inputs.values()) == wanted


def test_a_line_that_names_no_split_is_to_train_on(listing):
    assert set(read_pairs(listing).pairs) == {"train", "validation"}
    for split, name in (("train", "p"), ("val", "q")):
        assert [job.name for job in jobs_of_table(listing, split=split)] == [name]
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


@pytest.mark.parametrize("read", [read_learn2reg, read_task])
def test_a_learn2reg_pair_is_of_two_paths(tmp_path, read):
    file = tmp_path / "X_dataset.json"
    file.write_text(json.dumps({"registration_val": [{"fixed": "a.nii.gz", "moving": 5}]}))
    with pytest.raises(InputError, match="registration_val: moving of pair 1 is 5; give the path of an image"):
        read(file)
