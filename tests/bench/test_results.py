"""The page and the figure say what the records say."""

from __future__ import annotations

import pytest

from verimorph.bench import Record
from verimorph.bench.figure import draw
from verimorph.bench.table import newest, page, summarise
from verimorph.errors import InputError


def record(engine: str, case: str, value: float | None, wall: float = 1.0, **more) -> Record:
    measure = more.pop("measure", "dice")
    return Record(
        engine=engine,
        case=case,
        set=more.pop("set", "brain"),
        measure=measure,
        threads=more.pop("threads", 2),
        ok=value is not None,
        exit_code=0 if value is not None else 3,
        problem="" if value is not None else "it | broke",
        scores={} if value is None else {measure: value},
        wall_s=wall,
        cpu_s=2 * wall,
        peak_mb=100.0,
        when="2026-01-01T00:00:00+00:00",
        **more,
    )


RECORDS = [
    record("identity", "a", 0.30, 0.0),
    record("identity", "b", 0.40, 0.0),
    record("ours", "a", 0.60, 10),
    record("ours", "b", 0.70, 30),
    record("peer", "a", 0.80, 5),
    record("peer", "b", None),
    record("poor", "a", 0.20, 1),
    record("poor", "b", 0.56, 1),
    record("ours", "c", 1.5, 3, set="lung", measure="landmark_error"),
    record("peer", "c", 2.5, 3, set="lung", measure="landmark_error"),
    record("identity", "c", 35.0, 0.0, set="lung", measure="landmark_error"),
]


def test_means_medians_and_what_lost_to_identity():
    rows = {row.engine: row for row in summarise([r for r in RECORDS if r.set == "brain"])}
    assert list(rows) == ["peer", "ours", "poor", "identity"]
    assert rows["ours"].mean == pytest.approx(0.65)
    assert rows["ours"].worst == 0.60
    assert rows["ours"].wall_s == 20
    assert rows["ours"].cpu_s == 40
    assert (rows["peer"].cases, rows["peer"].failed) == (1, 1)
    assert (rows["poor"].below_identity, rows["ours"].below_identity) == (1, 0)


def test_seconds_of_a_busy_machine_do_not_count_but_accuracy_does():
    busy = [record("ours", "a", 0.6, 10), record("ours", "b", 0.7, 99, others_share=0.4)]
    (row,) = summarise(busy)
    assert (row.wall_s, row.cases, row.mean) == (10, 2, pytest.approx(0.65))
    assert "99" not in page(busy, command="c", date="d", machine="m")


def test_smaller_is_better_for_errors():
    assert [row.engine for row in summarise([r for r in RECORDS if r.set == "lung"])] == ["ours", "peer", "identity"]


def test_the_latest_of_equal_runs_counts():
    later = record("ours", "a", 0.9, settings="new")
    assert [r.figure for r in newest([RECORDS[2], later])] == [0.9]


def test_page_holds_tables_failures_settings_and_provenance():
    text = page(
        RECORDS, command="verimorph bench run", date="2026-01-02", machine="a processor, 2 cores", figure="f.svg"
    )
    assert "`verimorph bench run` on 2026-01-02" in text
    assert "a processor, 2 cores" in text
    assert "(f.svg)" in text
    assert "| peer | 0.800 | 0.800 | 0 | 1 (1 failed) | 5.0 |" in text
    assert "| a | 0.800 (5.0 s) | 0.600 (10.0 s) | 0.200 (1.0 s) | 0.300 |" in text
    assert "| peer | b | 3 | it / broke |" in text
    assert "## lung: landmark error, mm" in text
    assert "lower is better" in text
    for line in text.splitlines():
        if line.startswith("| ours") and "lung" not in line:
            assert line.endswith("|")


def test_figure_has_a_point_an_engine_and_a_panel_a_set(tmp_path):
    text = draw(RECORDS, tmp_path / "figure.svg").read_text()
    for word in ("ours", "peer", "poor", "brain (2 threads)", "lung (2 threads)", "seconds, whole command"):
        assert word in text
    assert draw(RECORDS, tmp_path / "again.svg").read_bytes() == (tmp_path / "figure.svg").read_bytes()
    with pytest.raises(InputError, match="nothing to draw"):
        draw([record("peer", "a", None)], tmp_path / "none.svg")
