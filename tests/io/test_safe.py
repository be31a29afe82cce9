"""Writing leaves the whole result or nothing, whatever ends the work."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from verimorph.errors import InputError, ResourceError
from verimorph.io import safe
from verimorph.io.safe import replacing, require_free_space, require_writable, writing_folder


def everything(folder: Path) -> list[str]:
    """All files and folders below, hidden ones too."""
    return sorted(str(item.relative_to(folder)) for item in folder.rglob("*"))


def test_a_file_appears_when_the_block_ends_and_not_before(tmp_path):
    target = tmp_path / "new" / "image.nii.gz"
    with replacing(target) as beside:
        assert beside.name == target.name
        beside.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert everything(tmp_path) == ["new", "new/image.nii.gz"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path, stop):
    target = tmp_path / "result.txt"
    target.write_text("old")
    with pytest.raises(stop), replacing(target) as beside:  # noqa: PT012
        beside.write_text("half")
        raise stop
    assert target.read_text() == "old"
    assert everything(tmp_path) == ["result.txt"]


def test_files_that_belong_together_move_together(tmp_path):
    with replacing(tmp_path / "a.mhd") as beside:
        beside.write_text("ElementDataFile = a.raw")
        beside.with_suffix(".raw").write_text("voxels")
    assert everything(tmp_path) == ["a.mhd", "a.raw"]


def test_a_folder_is_filled_at_the_end_and_keeps_what_was_there(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "moved.txt").write_text("old")
    with writing_folder(out) as folder:
        (folder / "moved.txt").write_text("new")
        (folder / "parts").mkdir()
        (folder / "parts" / "one.txt").write_text("1")
        assert (out / "moved.txt").read_text() == "old"
    assert everything(out) == ["moved.txt", "notes.txt", "parts", "parts/one.txt"]
    assert (out / "moved.txt").read_text() == "new"


def test_a_failed_folder_is_removed_with_the_parents_made_for_it(tmp_path):
    with pytest.raises(ValueError, match="no"), writing_folder(tmp_path / "a" / "b") as folder:  # noqa: PT012
        (folder / "half.txt").write_text("half")
        raise ValueError("no")
    assert everything(tmp_path) == []


def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_moves(tmp_path):
    (tmp_path / "z.txt").mkdir()
    with pytest.raises(InputError, match=r"z\.txt: a folder stands"), writing_folder(tmp_path) as folder:  # noqa: PT012
        (folder / "a.txt").write_text("a")
        (folder / "z.txt").write_text("z")
    assert everything(tmp_path) == ["z.txt"]
    with pytest.raises(InputError, match="is a folder, a file name is needed"), replacing(tmp_path / "z.txt"):
        pass


def test_a_full_disk_is_one_clear_line(tmp_path):
    with pytest.raises(ResourceError, match="disk is full"), replacing(tmp_path / "a.txt") as beside:  # noqa: PT012
        beside.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert everything(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_error_of_a_really_full_device_is_recognised(tmp_path):
    with pytest.raises(ResourceError, match="disk is full"), replacing(tmp_path / "a.txt"):  # noqa: SIM117
        with open("/dev/full", "w") as device:
            device.write("x" * 100_000)
    assert everything(tmp_path) == []


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("a file")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="choose another output"):
            require_writable(place)
        with pytest.raises(InputError, match="choose another output"), writing_folder(place):
            pass
    with pytest.raises(InputError, match="choose another output"), replacing(tmp_path / ("n" * 300)) as beside:
        beside.write_text("x")
    assert everything(tmp_path) == ["file"]


def test_permission_denied_is_one_clear_line(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "out"))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(permission denied\)"), writing_folder(tmp_path / "out"):
        pass
    with pytest.raises(InputError, match="permission denied"):
        require_writable(tmp_path)


def test_an_error_about_another_file_passes_through(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.txt"):
        (tmp_path / "missing").read_text()
    with pytest.raises(PermissionError), replacing(tmp_path / "a.txt"):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/input.nii")


def test_writable_is_told_without_leaving_a_trace(tmp_path):
    require_writable(tmp_path / "a" / "b")
    assert everything(tmp_path) == []


def test_too_little_space_is_told_before_the_work(tmp_path):
    require_free_space(tmp_path / "out", 1)
    with pytest.raises(ResourceError, match="needs about"):
        require_free_space(tmp_path / "out", safe.free_space(tmp_path) + 10**12)


def test_sigterm_leaves_nothing_behind(tmp_path):
    script = (
        "import sys, time\n"
        "from verimorph.cli.runtime import run_safely\n"
        "from verimorph.io.safe import writing_folder\n"
        "def work():\n"
        "    with writing_folder(sys.argv[1]) as folder:\n"
        "        (folder / 'half.txt').write_text('half')\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "sys.exit(run_safely(work))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out")], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().strip() == b"ready"
        assert (tmp_path / "out").exists()
        process.terminate()
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert everything(tmp_path) == []
