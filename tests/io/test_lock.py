"""Folders for one process: a second one is refused, and what a killed one left is no hindrance."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from verimorph.errors import InputError
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
    own = TemporaryFolder("verimorph-test-")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    words = [sys.executable, "-c", _HOLDING, str(tmp_path / "run")]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as other:
        place = other.stdout.readline().strip()
        sweep("verimorph-test-")
        assert os.listdir(place), "its process lives"
        with pytest.raises(InputError, match="another process"), locked(tmp_path / "run", doing="training"):
            pass
        other.send_signal(signal.SIGKILL)
    assert os.path.isfile(os.path.join(place, "image.npy"))
    with locked(tmp_path / "run", doing="training"):
        another = TemporaryFolder("verimorph-test-")
    assert not os.path.exists(place)
    assert own.path.is_dir()
    assert another.path.is_dir()
    gone = another.path
    del another
    assert not gone.exists()
