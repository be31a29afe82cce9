"""Progress bars: what they say on a terminal, and that they are silent elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from verimorph.cli import progress
from verimorph.solve.progress import Event
from verimorph.train.options import Progress


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def console(request, monkeypatch):
    made = Console(file=io.StringIO(), force_terminal=request.param, color_system=None, width=120)
    monkeypatch.setattr(progress, "error_console", lambda: made)
    return made


def shown(bar, *arguments) -> str:
    with bar:
        bar(*arguments)
        if bar._progress is not None:
            bar._progress.refresh()
    return progress.error_console().file.getvalue()


@pytest.mark.parametrize(
    ("bar", "arguments", "words"),
    [
        (progress.CountBar(), ("case7", 3, 10), ("case7", "3/10")),
        (progress.TrainingBar(), (Progress("pretrain", 20, 80, 0.5, 2.0, 0.7),), ("pretrain", "20/80", "best 0.7")),
    ],
)
def test_bar_is_drawn_on_a_terminal_alone(console, bar, arguments, words):
    text = shown(bar, *arguments)
    assert all(word in text for word in words) if console.is_terminal else text == ""


def test_solver_bar_shows_the_share_of_the_whole(console):
    event = Event(stage="deformable", level=2, iteration=50, iterations=50, value=0.125, fraction=0.25)
    text = shown(progress.ProgressBar(), event)
    assert ("25 %" in text and "iteration 50/50" in text) if console.is_terminal else text == ""
    assert "value 0.125" in shown(progress.ProgressBar(verbose=True), event)


def test_lines_stand_in_for_the_bar_where_there_is_no_terminal(console):
    text = shown(progress.CountBar(lines=True), "case7", 3, 10)
    assert ("4 of 10: case7" in text) is not console.is_terminal
