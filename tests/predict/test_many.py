"""Many pairs: one that cannot be done is listed and the rest goes on; a folder is one run's at a time."""

from __future__ import annotations

import pytest

from verimorph.errors import InputError
from verimorph.io.lock import locked
from verimorph.predict.jobs import PairJob
from verimorph.predict.many import predict_many
from verimorph.predict.registrar import Registrar


@pytest.fixture
def jobs(oblique_pair):
    fixed, moving = oblique_pair()
    return [PairJob(name, lambda: {"fixed": fixed, "moving": moving}, ("f", "m")) for name in ("large", "small")]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_a_pair_too_large_for_memory_is_listed_and_the_rest_goes_on(tiny, preparation, jobs, tmp_path, error):
    network = tiny()
    inner, calls = network.forward, []

    def forward(**sides):
        calls.append(sides)
        if len(calls) == 1:
            raise error
        return inner(**sides)

    network.forward = forward
    done = predict_many(Registrar(network, preparation(), tile=(8, 8, 8)), jobs, tmp_path)
    assert [row["status"] for row in done.rows] == ["failed", "ok"]
    assert done.failures == [("large", done.rows[0]["message"])]
    assert "not enough memory; use smaller tiles" in done.rows[0]["message"]
    assert (tmp_path / "small" / "transform.h5").is_file()


def test_a_mistake_of_ours_is_no_failure_of_a_pair(tiny, preparation, jobs, tmp_path):
    network = tiny()
    network.forward = lambda **_: {}["field"]
    with pytest.raises(KeyError):
        predict_many(Registrar(network, preparation()), jobs, tmp_path)


def test_two_processes_do_not_predict_into_one_folder(tiny, preparation, jobs, tmp_path):
    with locked(tmp_path, doing="predicting"), pytest.raises(InputError, match="another process is predicting there"):
        predict_many(Registrar(tiny(), preparation()), jobs, tmp_path)
    assert not list(tmp_path.iterdir())
