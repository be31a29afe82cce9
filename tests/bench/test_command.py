"""`verimorph bench` from the outside."""

from __future__ import annotations

import pytest

from verimorph.cli import run


@pytest.fixture
def words(data, tmp_path):
    """Return the options that keep a run inside the test's folder."""
    return [
        *("--data", str(data), "--lists", str(data / "lists"), "--environments", str(tmp_path / "environments")),
        *("--records", str(tmp_path / "runs" / "r.jsonl"), "--results", str(tmp_path / "RESULTS.md")),
    ]


def test_run_writes_records_page_and_figure(words, fake, tmp_path, capsys):
    engine = fake()
    command = ["bench", "run", "--cases", "cases", "--engines", "identity", "--threads", "1", *words]
    assert run([*command, "--command", f"right={engine.command}"]) == 0
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| right |" in text
    assert "| identity |" in text
    assert str(tmp_path) not in text.split("## Settings")[0]
    assert (tmp_path / "accuracy-seconds.svg").exists()
    assert "overlap.a" in capsys.readouterr().out
    (tmp_path / "RESULTS.md").unlink()
    assert (
        run(["bench", "table", "--records", str(tmp_path / "runs" / "r.jsonl"), "--results", str(tmp_path / "T.md")])
        == 0
    )
    assert "| right |" in (tmp_path / "T.md").read_text()


def test_dry_run_runs_nothing(words, tmp_path, capsys):
    assert run(["bench", "run", "--cases", "cases", "--engines", "greedy", "--dry-run", *words]) == 0
    shown = capsys.readouterr().out
    assert "verimorph bench setup greedy" in shown
    assert "map.a" in shown
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--cases", "cased"], "did you mean 'cases'"),
        (["--cases", "cases", "--engines", "eastix"], "did you mean 'elastix'"),
        (["--cases", "cases", "--threads", "0"], "--threads is 0"),
        (["--cases", "cases", "--data", "/no/such/folder"], "no such folder of images"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words, extra, message, capsys):
    assert run(["bench", "run", *words, *extra]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_setup_without_names_lists_and_unknown_is_named(words, tmp_path, capsys):
    assert run(["bench", "setup", "--environments", str(tmp_path)]) == 0
    assert "picsl_greedy" in capsys.readouterr().out
    assert run(["bench", "setup", "elastic", "--environments", str(tmp_path)]) == 2
    assert "did you mean 'elastix'" in capsys.readouterr().err
