"""``verimorph explain`` on what ``register --uncertainty`` wrote: the words of the report, for people and programs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from verimorph.image import Image
from verimorph.io import write_image, write_transform
from verimorph.transform import Affine
from verimorph.uncertainty.cohort import cohort
from verimorph.uncertainty.maps import facts_of_result
from verimorph.uncertainty.verdict import WORDS
from verimorph.uncertainty.words import BROKEN, LIMITS, in_words, meaning

FACTS = {
    "verdict": {"verdict": "fail", "reasons": "the images hardly overlap", "probability": 0.98},
    "uncertainty": {
        "level": 0.8,
        "calibration": "general",
        "calibrated_for": "heads, lungs and abdomens",
        "median_mm": 1.23,
        "p95_mm": 4.56,
    },
}


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text(json.dumps({"unit": "mm", **FACTS}))
    write_image(Image.from_array(np.full((4, 5, 6), 2.0, np.float32)), out / "error_mm.nii.gz")
    write_transform(Affine(np.eye(4)), out / "transform.h5")
    return out


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", ["", "error_mm.nii.gz"])
def test_result_is_explained_in_plain_words(verimorph, folder, name):
    outcome = verimorph("explain", folder / name)
    assert outcome.code == 0, outcome.err
    text = words(outcome.out)
    for said in (
        "fail: probably broken; do not use it as it is (the images hardly overlap)",
        "likeness to registrations broken on purpose: 98 %",
        "80 % level; median 1.23 mm, 95th percentile 4.56 mm over the anatomy",
        "At 80 of 100 voxels the true error is at most the bound there, for images like those of the calibration set.",
        "heads, lungs and abdomens",
        f"verimorph explain {folder / 'transform.h5'}",
    ):
        assert said in text, said
    assert words(LIMITS) in text
    assert words(BROKEN) in text
    assert BROKEN not in dict(in_words(FACTS | {"verdict": {"verdict": "review"}})).values()


def test_programs_get_the_same_facts(verimorph, folder):
    assert json.loads(verimorph("explain", folder, "--json").out) == FACTS


@pytest.mark.parametrize("name", ["", "error_mm.nii.gz"])
def test_map_alone_has_sizes_and_no_promise(verimorph, folder, name):
    (folder / "metrics.json").unlink()
    text = words(verimorph("explain", folder / name).out)
    assert "level not known" in text
    assert "median 2 mm" in text
    assert "Meaning" not in text


def test_mistakes_are_one_line(verimorph, folder):
    (folder / "metrics.json").write_text(json.dumps({"unit": "mm"}))
    verimorph("explain", folder).assert_user_error("says nothing about its error", "--uncertainty")
    verimorph("explain", folder, "--from", "itk").assert_user_error("leave them out")
    verimorph("explain", folder / "nowhere" / "error_mm.nii.gz").assert_user_error("no such file")
    (folder / "metrics.json").write_text("[]")
    verimorph("explain", folder).assert_user_error("damaged")
    (folder / "metrics.json").unlink()
    write_image(Image.from_array(np.zeros((4, 5, 6), np.float32)), folder / "error_mm.nii.gz")
    verimorph("explain", folder / "error_mm.nii.gz").assert_user_error("no error bound")


def test_missing_facts_leave_their_lines_out():
    assert in_words({}) == []
    assert in_words({"uncertainty": {"level": 0.9}})[:2] == [("Error bound", "90 % level"), ("Meaning", meaning(0.9))]
    assert in_words({"verdict": {"verdict": "pass"}}) == [("Verdict", "pass: nothing suspicious was found")]


def cohort_of(tmp_path, count):
    for k in range(count):
        facts = dict.fromkeys(WORDS, 0.1 * np.sin(k)) | ({"mirror": 9.0} if k == 4 else {})
        own = {"verdict": {"verdict": "pass", "reasons": "", "probability": 0.1, "facts": facts}}
        out = tmp_path / f"pair{k}"
        out.mkdir()
        (out / "metrics.json").write_text(json.dumps(own | {"uncertainty": FACTS["uncertainty"]}))
    return [tmp_path / f"pair{k}" for k in range(count)]


def test_a_cohort_is_compared_within_itself(verimorph, tmp_path):
    folders = cohort_of(tmp_path, 9)
    outcome = verimorph("explain", *folders, tmp_path / "pair0" / "metrics.json")
    assert outcome.code == 0, outcome.err
    said = words(outcome.out)
    assert "verdicts of 9: 9 pass, 0 review, 0 fail; 1 stand out" in said
    assert "exchanged" in said
    assert "pair5" not in said  # nothing is wrong with it
    found = json.loads(verimorph("explain", *folders, "--json").out)
    assert len(found) == 9
    assert found[0]["name"] == str(folders[4])
    assert found[0]["stands_out"]
    few = words(verimorph("explain", *folders[:3]).out)
    assert "chance" not in few  # sound and broken ones are not equally frequent, so it is none
    assert all(folder.name in few.replace(" ", "") for folder in folders[:3])
    assert "fewer than 8, so none is compared with the others" in few


def test_a_cohort_is_of_results(verimorph, folder, tmp_path):
    verimorph("explain", folder / "transform.h5", folder / "transform.h5").assert_user_error("one at a time")
    beside = tmp_path / "submission"
    beside.mkdir()
    verimorph("explain", folder, beside).assert_user_error("fewer than two")
    verimorph("explain", folder, folder, "--from", "itk").assert_user_error("--from")
    # What a list of pairs writes beside its results is passed over, and so, with a word, is a result that says nothing.
    others = cohort_of(tmp_path, 2)
    outcome = verimorph("explain", folder, *others, beside)
    assert outcome.code == 0, outcome.err
    assert "passed over: submission" in outcome.err
    (beside / "metrics.json").write_text("{}")
    outcome = verimorph("explain", folder, *others, beside)
    assert outcome.code == 0, outcome.err
    assert "registered without --uncertainty, passed over: submission" in words(outcome.err)
    verimorph("explain", folder, beside).assert_user_error("register with --uncertainty")


def test_a_map_of_another_name_is_not_what_metrics_speak_of(folder):
    (folder / "error_mm.nii.gz").rename(folder / "theirs.nii.gz")
    found = facts_of_result(folder / "theirs.nii.gz")
    assert found == {"uncertainty": {"level": None, "median_mm": 2.0, "p95_mm": 2.0}}


def test_a_verdict_without_a_probability_is_compared_and_said():
    facts = {"verdict": {"verdict": "review", "reasons": "holds no verdict", "probability": None}}
    assert [label for label, _ in in_words(facts)] == ["Verdict"]
    assert np.isnan(cohort({"a": facts, "b": FACTS})[-1].probability)


def test_a_result_of_another_recipe_says_how_far_from_the_defaults_it_is():
    facts = {"uncertainty": FACTS["uncertainty"] | {"reference_away_mm": 2.345}}
    assert ("", "of it, the way to a registration by the defaults: median 2.35 mm") in in_words(facts)
