"""Streams of pairs: what meets what, and the same whoever asks and when."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from verimorph.data.cases import Case
from verimorph.data.pairs import InterSubject, Listed, PairStream, atlas_pairs, intra_subject_pairs, make_sampler
from verimorph.data.source import Source
from verimorph.errors import OptionError


def cases(count: int = 8, cohorts: int = 2) -> list[Case]:
    return [
        Case(f"c{n}", (Source(Path("x")),), subject=f"s{n // 2}", cohort=f"k{n // 2 % cohorts}") for n in range(count)
    ]


def test_a_resumed_stream_draws_the_same_pairs():
    one, other = (PairStream(InterSubject.of(cases()), seed=3, bidirectional=True) for _ in range(2))
    whole = [one(n) for n in range(40)]
    assert [other(n) for n in (39, 20, 7)] == [whole[39], whole[20], whole[7]]
    assert [other(n) for n in range(20, 40)] == whole[20:]
    assert whole != [PairStream(InterSubject.of(cases()), seed=4)(n) for n in range(40)]


def test_between_subjects_each_is_moving_once_an_epoch_and_never_meets_itself():
    stream = PairStream(InterSubject.of(cases()), seed=0)
    for epoch in range(5):
        pairs = [stream(n) for n in range(8 * epoch, 8 * epoch + 8)]
        assert Counter(moving for _, moving in pairs) == {f"c{n}": 1 for n in range(8)}
        for fixed, moving in pairs:
            a, b = int(fixed[1:]) // 2, int(moving[1:]) // 2
            assert a != b
            assert a % 2 == b % 2
    partners = {fixed for fixed, moving in (stream(n) for n in range(400)) if moving == "c0"}
    assert partners == {"c4", "c5"}


def test_itself_only_if_asked():
    alone = [Case(f"c{n}", (Source(Path("x")),)) for n in range(3)]
    drawn = [PairStream(InterSubject.of(alone, itself=True), seed=1)(n) for n in range(60)]
    assert any(fixed == moving for fixed, moving in drawn)
    drawn = [PairStream(InterSubject.of(alone), seed=1)(n) for n in range(60)]
    assert not any(fixed == moving for fixed, moving in drawn)


def test_lonely_cases_are_refused():
    with pytest.raises(OptionError, match="no partner for c0, c1"):
        InterSubject.of(cases(4))
    assert InterSubject.of(cases(4), within_cohort=False).size == 4


def test_both_directions_come_about_equally_often():
    stream = PairStream(Listed((("a", "b"),)), seed=5, bidirectional=True)
    share = sum(stream(n) == ("a", "b") for n in range(400)) / 400
    assert 0.4 < share < 0.6


def test_atlas_is_moving_and_subjects_meet_themselves():
    assert atlas_pairs(["a", "t", "b"], "t").pairs == (("a", "t"), ("b", "t"))
    assert set(intra_subject_pairs(cases(4)).pairs) == {("c0", "c1"), ("c1", "c0"), ("c2", "c3"), ("c3", "c2")}
    with pytest.raises(OptionError, match="no subject"):
        intra_subject_pairs([Case("a", ()), Case("b", ())])
    with pytest.raises(OptionError, match="did you mean 'inter'"):
        make_sampler("inters", cases())
