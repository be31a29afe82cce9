"""A row says what the table of a prediction says, and traces to one model."""

import math

import pytest

from verimorph.errors import InputError
from verimorph.methods.card import Card, TrainingData
from verimorph.methods.results import Row, read_results, record, scores_of

OURS = Card(method="modet", training_data=TrainingData(name="scans"), weights_sha256="1234" * 16)


def test_means_are_of_whole_pairs_and_single_labels_are_left_out(tmp_path):
    (tmp_path / "pairs.csv").write_text(
        "case,status,model,dice_before,dice,dice_1,seconds\na,ok,123412341234,0.2,0.5,0.9,1\n"
        "b,ok,123412341234,0.4,0.7,,3\n"
    )
    scores, pairs = scores_of(tmp_path, OURS)
    assert pairs == 2
    assert scores == pytest.approx({"dice_before": 0.3, "dice": 0.6, "seconds": 2.0})


def test_a_pair_that_failed_is_not_left_out_of_a_mean(tmp_path):
    (tmp_path / "pairs.csv").write_text("case,status,dice,message\na,ok,0.5,\nb,failed,,no labels\n")
    with pytest.raises(InputError, match="b was not predicted"):
        scores_of(tmp_path, OURS)


def test_a_measure_that_is_no_number_is_null(tmp_path):
    row = Row("modet", "scans", {"dice": math.nan})
    record(row, tmp_path / "results.json")
    assert '"dice": null' in (tmp_path / "results.json").read_text()


@pytest.mark.parametrize("column", ["", "000000000000"])
def test_figures_of_another_model_are_refused(tmp_path, column):
    (tmp_path / "pairs.csv").write_text(f"case,status,model,dice\na,ok,123412341234,0.5\nb,ok,{column},0.7\n")
    with pytest.raises(
        InputError, match=r"pairs\.csv: b is not known to be by the model of these weights \(123412341234\)"
    ):
        scores_of(tmp_path, OURS)


def test_a_row_takes_the_place_of_its_like(tmp_path):
    table = tmp_path / "results.json"
    for value in (0.5, 0.6):
        record(Row("a", "data", {"dice": value}, title="x"), table)
    record(Row("a", "data", {"dice": 0.7}, title="y"), table)
    assert [(row.title, row.measures["dice"]) for row in read_results(table)] == [("x", 0.6), ("y", 0.7)]
