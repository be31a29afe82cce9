"""Case lists say where the mistake is; lists that ship name the sets the issue names."""

from __future__ import annotations

from pathlib import Path

import pytest

from verimorph.bench import command_engine, find_cases, find_engines, read_cases
from verimorph.errors import InputError, OptionError

LISTS = Path(__file__).parents[2] / "bench" / "cases"


def test_paths_start_from_the_data_folder_or_the_list(cases, data):
    assert cases[0].fixed == data / "fixed.nii.gz"
    assert cases[2].region_to_moving == (data / "to_moving.tfm",)
    assert [case.measure for case in cases] == ["dice", "landmark_error", "reference_error"]
    beside = data / "own.csv"
    beside.write_text((data / "lists" / "cases.csv").read_text())
    elsewhere = read_cases(beside, data=data.parent)
    assert elsewhere[0].fixed == data / "fixed.nii.gz"
    assert not elsewhere[0].missing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,set,fixed\na,b,c\n", "no column 'moving'"),
        ("case,set,fixed,moving,labels\na,b,c,d,e\n", "unknown column 'labels'"),
        ("case,set,fixed,moving\n", "holds no case"),
        ("case,set,fixed,moving\na,b,c,d\n", "nothing to score"),
        ("case,set,fixed,moving,fixed_labels\na,b,c,d,e\n", "line 2: only one of the two label maps"),
        ("case,set,fixed,moving,landmarks,kind\na,b,c,d,e,afine\n", "line 2: kind cannot be 'afine'; did you mean"),
        ("case,set,fixed,moving,landmarks,clip\na,b,c,d,e,5\n", "clip is '5'; write two numbers"),
        ("case,set,fixed,moving,landmarks\na,b,c,d,e\na,b,c,d,e\n", "more than once"),
        ("case,set,fixed,moving,landmarks\na,b,,d,e\n", "line 2: 'fixed' is empty"),
    ],
)
def test_a_faulty_list_is_one_clear_line(tmp_path, text, message):
    file = tmp_path / "list.csv"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_cases(file, data=tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_words_name_lists_cases_or_files(data):
    assert [c.name for c in find_cases(["points.a"], data=data, lists=data / "lists")] == ["points.a"]
    assert len(find_cases(["cases", "cases:map.a"], data=data, lists=data / "lists")) == 3
    assert len(find_cases([str(data / "lists" / "cases.csv")], data=data, lists=data / "none")) == 3
    with pytest.raises(OptionError, match=r"did you mean 'points\.a'"):
        find_cases(["point.a"], data=data, lists=data / "lists")


def test_shipped_lists_hold_what_they_promise():
    count = {file.stem: len(read_cases(file, data="/nowhere")) for file in LISTS.glob("*.csv")}
    sets = ("brain", "cardiac", "lung", "abdomen", "multimodal", "hippocampus")
    assert [count[name] for name in sets] == [10, 10, 1, 30, 30, 60]
    assert count["all"] == sum(count[name] for name in sets)
    assert {"quick", "targets", "peers"} <= set(count)
    assert all(case.units == "voxel" for case in read_cases(LISTS / "cardiac.csv", data="/nowhere"))


def test_engines_by_name_group_and_command():
    names = [engine.name for engine in find_engines(["ours", "greedy"], [command_engine("mine=tool {fixed} {out}")])]
    assert names == ["identity", "verimorph-fast", "verimorph-balanced", "verimorph-best", "greedy", "mine"]
    with pytest.raises(OptionError, match="did you mean 'greedy'"):
        find_engines(["greedi"])
    for wrong in ("tool {fixed}", "mine=tool {fixed}", "mine=tool {out} {typo}"):
        with pytest.raises(OptionError):
            command_engine(wrong)


def test_pairs_of_two_contrasts_are_marked(data):
    marked = {case.name for case in read_cases(LISTS / "peers.csv", data=data) if case.contrast == "different"}
    assert marked == {"histology2d.allen019", "multimodal.patient01-T1v1-FLAIRv2"}
