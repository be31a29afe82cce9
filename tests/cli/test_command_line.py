"""The command line as a whole: quick help, one-line errors with the nearest word, exit codes, light imports."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import warnings

import pytest

from verimorph.cli import COMMANDS, load
from verimorph.cli.runtime import run_safely, schedule, set_threads
from verimorph.errors import InputError, OptionError, VerimorphWarning

HEAVY = ("torch", "numpy", "scipy", "numba", "nibabel", "SimpleITK", "matplotlib")


def test_help_answers_in_half_a_second():
    # Processor time of the child: on a free machine that is the wall time, and other tests do not add to it.
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", "verimorph", "--help"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert "register" in done.stdout
    assert min(seconds) < 0.5


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["register", "--help"], ["doctor", "--help"]])
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys\nfrom verimorph.cli import run\n"
        f"code = run({words!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[] 0"


def test_help_lists_every_command(verimorph):
    outcome = verimorph("--help")
    assert outcome.code == 0
    assert all(name in outcome.out for name in COMMANDS)
    assert verimorph().out == outcome.out


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_a_module_and_a_help(verimorph, name):
    assert load(name).name == name
    outcome = verimorph(name, "--help")
    assert outcome.code == 0
    assert f"verimorph {name}" in outcome.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["regster"], "did you mean 'register'"),
        (["register", "--flxed", "a"], "did you mean '--fixed'"),
        (["register", "-f", "a"], "--moving"),
        (["register", "-f", "a", "-m", "b", "-o", "c", "-t", "rigd"], "did you mean 'rigid'"),
        (["register", "-f", "a", "-m", "b", "-o", "c", "-q", "balnced"], "did you mean 'balanced'"),
        (["register", "-f", "a", "-m", "b", "-o", "c", "--stages", "rigid,deform"], "did you mean 'deformable'"),
        (["register", "-f", "a", "-m", "b", "-o", "c", "--levels", "4xtwo"], "--levels"),
        (["register", "-f", "a", "-m", "b", "-o", "c", "--iterations", "-5"], "--iterations"),
        (["register", "-f", "a", "-m", "b", "-o", "c", "--restrict", "0x0x0"], "--restrict"),
        (["register", "-f", "a", "-m", "b", "-o", "c", "--restrict", "2x1x0"], "--restrict"),
        (["register", "-f", "a", "-m", "b", "-o", "c", "--winsorise", "0.9,0.1"], "--winsorise"),
        (["register", "-f", "a", "-m", "b", "-o", "c", "--threads", "0"], "--threads"),
        (["register", "-f", "a", "-m", "b", "-o", "c", "--seed", "x"], "--seed"),
        (["register", "-f", "a", "-m", "b", "-o", "c", "--seed", "-1"], "--seed"),
        (["predict", "a", "-f", "a", "-m", "b", "-o", "c", "--seed", "-1"], "--seed"),
        (["demo", "--seed", "-1"], "--seed"),
        (["calibrate", "a.nii", "-o", "c.json", "--seed", "-1"], "--seed"),
        (["doctor", "--jsn"], "did you mean '--json'"),
    ],
)
def test_wrong_words_name_the_right_ones(verimorph, words, said):
    verimorph(*words).assert_user_error(said)


def test_version(verimorph):
    import verimorph as package

    assert verimorph("--version").out.strip() == f"verimorph {package.__version__}"


def test_exit_codes(capsys):
    def fail(error):
        raise error

    assert run_safely(lambda: None) == 0
    assert run_safely(lambda: 1) == 1
    assert run_safely(lambda: fail(InputError("a.nii: missing"))) == 2
    assert run_safely(lambda: fail(MemoryError())) == 2
    assert run_safely(lambda: fail(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))) == 2
    assert run_safely(lambda: fail(OSError(28, "No space left on device", "out/moved.nii.gz"))) == 2
    assert run_safely(lambda: fail(KeyboardInterrupt())) == 130
    assert run_safely(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 143
    assert "Traceback" not in capsys.readouterr().err
    assert run_safely(lambda: fail(ZeroDivisionError())) == 1
    assert "Traceback" in capsys.readouterr().err


def test_memory_and_disk_errors_say_what_to_do(capsys):
    def fail(error):
        raise error

    for name in ("register", "predict", "train", "explain"):
        run_safely(lambda: fail(MemoryError()), name)
    run_safely(lambda: fail(OSError(28, "No space left on device", "out/moved.nii.gz")))
    memory, predict, train, other, disk = capsys.readouterr().err.splitlines()
    assert "--levels" in memory
    assert "--dry-run" in memory
    assert "--tile" in predict
    assert "--shape" in train
    assert "--" not in other
    assert "out/moved.nii.gz" in disk
    assert "free some space" in disk


def test_signal_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run_safely(lambda: None)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_our_warnings_are_lines_and_others_are_silent(capsys):
    def warn():
        warnings.warn("sform and qform disagree;\nusing the sform", VerimorphWarning, stacklevel=1)
        warnings.warn("something for developers", UserWarning, stacklevel=1)

    run_safely(warn)
    assert capsys.readouterr().err == "warning: sform and qform disagree; using the sform\n"


def test_schedules_are_read_as_the_field_writes_them():
    assert schedule("4x2x1", "--levels") == (4, 2, 1)
    assert schedule("100,70", "--iterations") == (100, 70)
    assert schedule(None, "--levels") is None
    with pytest.raises(OptionError, match="--levels"):
        schedule("", "--levels")


def test_threads_reach_every_library(monkeypatch):
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        monkeypatch.setenv(name, "7")
    for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    assert set_threads(3) == 3
    assert os.environ["OMP_NUM_THREADS"] == os.environ["NUMBA_NUM_THREADS"] == "3"
    assert set_threads(None) == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_allocator_setting_keeps_freed_memory():
    # Without it glibc gives a large block back to the kernel when it is freed: resident memory falls again.
    code = (
        "import sys\nfrom verimorph.cli.runtime import tune_allocator\n"
        "if sys.argv[1] == 'tuned': assert tune_allocator()\n"
        "pages = lambda: int(open('/proc/self/statm').read().split()[1])\n"
        "import numpy\nblock = numpy.ones(30_000_000, numpy.uint8)\nfull = pages()\ndel block\nprint(full - pages())"
    )
    freed = {
        how: int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("plain", "tuned")
    }
    assert freed["plain"] > 5000  # 30 MB are about 7300 pages
    assert freed["tuned"] < 100


def test_what_is_no_number_is_no_zero():
    from verimorph.cli.summary import _number

    assert [_number(value) for value in (None, float("nan"), 1e-12, 0.12345)] == ["-", "-", "0", "0.123"]
