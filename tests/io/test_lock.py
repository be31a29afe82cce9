"""Folders for one process: a second one is refused, and what a killed one left is no hindrance."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from verimorph.errors import InputError
from verimorph.io import lock
from verimorph.io.lock import LOCK, TemporaryFolder, locked, sweep

pytestmark = pytest.mark.skipif(os.name == "nt", reason="temporary folders are swept where the system has flock")

_HOLDING = """
import sys, time
from verimorph.io.lock import TemporaryFolder, locked
with locked(sys.argv[1], doing="training"):
    held = TemporaryFolder("verimorph-test-")
    (held.path / "image.npy").write_bytes(b"0")
    print(held.path, flush=True)
    time.sleep(60)
"""


def test_a_folder_is_had_by_one_and_left_as_it_was(tmp_path):
    with locked(tmp_path / "a" / "run", doing="training"):
        with (
            pytest.raises(InputError, match="another process is training there"),
            locked(tmp_path / "a/run", doing="training"),
        ):
            pass
        assert (tmp_path / "a" / "run" / LOCK).is_file()
    assert not list(tmp_path.iterdir())
    (tmp_path / "kept").mkdir()
    with locked(tmp_path / "kept", doing="training"):
        pass
    assert (tmp_path / "kept").is_dir()


def test_what_a_killed_process_left_is_taken_and_swept(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sweep("verimorph-test-")  # nothing is there
    own = TemporaryFolder("verimorph-test-")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    words = [sys.executable, "-c", _HOLDING, str(tmp_path / "run")]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as other:
        place = other.stdout.readline().strip()
        monkeypatch.setattr(lock, "YOUNG", -1.0)
        sweep("verimorph-test-")
        assert os.listdir(place), "its process lives"
        with pytest.raises(InputError, match="another process"), locked(tmp_path / "run", doing="training"):
            pass
        other.send_signal(signal.SIGKILL)
    assert os.path.isfile(os.path.join(place, "image.npy"))
    monkeypatch.setattr(lock, "YOUNG", 60.0)
    sweep("verimorph-test-")
    assert os.path.isdir(place), "it may be one that is about to be locked"
    monkeypatch.setattr(lock, "YOUNG", -1.0)
    with locked(tmp_path / "run", doing="training"):
        another = TemporaryFolder("verimorph-test-")
    assert not os.path.exists(place)
    assert own.path.is_dir()
    assert another.path.is_dir()
    gone = another.path
    del another
    assert not gone.exists()


def test_a_lock_that_cannot_be_had_is_one_line(tmp_path):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(InputError, match="cannot be had"), locked(tmp_path, doing="training"):
        pass
