"""What every command shares: memory and thread settings of the process, the terminal, and how a command ends.

These settings belong to the process, so they are made here, at the command-line entry, never by ``import verimorph``.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from verimorph.errors import OptionError, VerimorphError, VerimorphWarning, nearest
from verimorph.memory import is_out_of_memory

if TYPE_CHECKING:
    from rich.console import Console

USER_ERROR = 2
"""Exit code of a mistake in the input or the request."""
VERDICT_FAIL = 3
"""Exit code of a finished registration whose verdict is ``fail``, where ``--strict`` asks for it."""

LEVEL, CALIBRATION = 0.9, "general"
"""Of a bound that nothing else is asked of."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def tune_allocator() -> bool:
    """Keep freed memory in the process instead of returning it to the kernel; tell whether that was possible.

    glibc maps every large temporary anew, and the page faults then cost more than the arithmetic: a diffusion step on
    a full-size brain takes half the time with these two thresholds raised. The price is that memory once used stays
    with the process until it ends, which is right for a command and wrong for a library. Linux with glibc only.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has no mallopt
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def available_threads() -> int:
    """Return the number of processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _asked_threads() -> int:
    """What ``OMP_NUM_THREADS`` asks for, 0 where it asks for nothing: a number, or (``2,1``) one for each nesting."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def set_threads(threads: int | None) -> int:
    """Limit every numerical library loaded after this call to ``threads`` (default: all cores of this process).

    Raises
    ------
    OptionError
        If ``threads`` is less than one.
    """
    if threads is not None and threads < 1:
        raise OptionError(f"--threads is {threads}; give 1 or more, or leave it out to use all {available_threads()}")
    count = threads or _asked_threads() or available_threads()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = str(count)
    # NumPy and SciPy see only matrices of a dozen unknowns here; waking threads for those costs more than the sums.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(count)
    return count


_error_console: Console | None = None


def error_console() -> Console:
    """Return the console on standard error: warnings, errors and progress go there, results to standard output."""
    global _error_console
    from rich.console import Console

    if _error_console is None or _error_console.file is not sys.stderr:
        _error_console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    return _error_console


def say(kind: str, message: object) -> None:
    """Print one line ``kind: message`` on standard error, above a running progress bar if there is one."""
    from rich.text import Text

    colour = {"error": "bold red", "warning": "yellow"}.get(kind, "bold")
    error_console().print(Text.assemble((f"{kind}: ", colour), " ".join(str(message).split())))


def counted(count: int, what: str) -> str:
    """Return a number with what it counts, whose plural is given.

    >>> counted(1, "pairs"), counted(2000, "steps")
    ('1 pair', '2,000 steps')
    """
    return f"{count:,} {what.removesuffix('s') if count == 1 else what}"


def choose(value: str, known: Iterable[str], option: str) -> str:
    """Return ``value`` if it is one of ``known``; otherwise say which known one is nearest.

    >>> choose("affine", ["rigid", "affine"], "--transform")
    'affine'
    """
    names = list(known)
    if value not in names:
        raise OptionError(f"{option} cannot be '{value}'{nearest(value, names)}")
    return value


def refuse(given: Mapping[str, object], why: str) -> None:
    """Refuse options that would be passed over in silence; ``why`` says what they are for."""
    names = [name for name, value in given.items() if value]
    if names:
        raise OptionError(f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} {why}")


def refuse_uncertainty_options(*, strict: bool, level: float | None, calibration: str | None) -> None:
    """What says something about an uncertainty that is not asked for."""
    given = {"--strict": strict, "--level": level is not None, "--calibration": calibration is not None}
    refuse(given, "about the uncertainty; give --uncertainty too")


def schedule(text: str | None, option: str, *, least: int = 0) -> tuple[int, ...] | None:
    """Read numbers written the way the field writes them, coarse level first; refuse those below ``least``.

    >>> schedule("100x70x50", "--iterations")
    (100, 70, 50)
    """
    if text is None:
        return None
    parts = text.lower().replace(",", "x").split("x")
    if not all(part.strip().isdigit() for part in parts):
        raise OptionError(f"{option} is '{text}'; write whole numbers with x between them, coarse first: 4x2x1")
    numbers = tuple(int(part) for part in parts)
    if min(numbers) < least:
        raise OptionError(f"{option} is '{text}'; give numbers of {least} or more")
    return numbers


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    """Print our warnings as one line; other libraries' warnings are for developers (``PYTHONWARNINGS``), not users."""
    if issubclass(category, VerimorphWarning):
        say("warning", message)


class _Signals:
    """Turns the signals that end a process into ``KeyboardInterrupt``, so that every ``with`` block cleans up.

    Remembers which signal came: the exit code is 128 + its number, as shells expect (130 for Ctrl-C, 143 for SIGTERM).
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        try:
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._before[number] = signal.signal(number, self._stop)
        except ValueError:  # not in the main thread: whoever runs us there handles signals
            pass
        return self

    def _stop(self, number: int, _frame: object) -> None:
        if self.received is None:  # a second one must not interrupt the cleaning up
            self.received = number
            raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


_LESS_MEMORY = {
    "register": (
        "use coarser levels (--levels 8x4x2), --quality fast, fewer threads, or close other programs; "
        "'verimorph register ... --dry-run' says how much is needed"
    ),
    "predict": "use smaller pieces (--tile 96x96x96), fewer threads, or close other programs",
    "train": "use a smaller grid (--shape) or crop (--set 'data.crop=[96, 96, 96]'), or close other programs",
}


def _report(error: BaseException, name: str = "") -> int:
    """Print what a user needs to know about ``error`` of the command ``name`` and return the exit code."""
    if isinstance(error, VerimorphError):
        say("error", error)
        return USER_ERROR
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # the command line itself was wrong
        say("error", _usage_message(error))
        return USER_ERROR
    if is_out_of_memory(error):
        say("error", f"not enough memory; {_LESS_MEMORY.get(name, 'use smaller images, or close other programs')}")
        return USER_ERROR
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" at {error.filename}" if error.filename else ""
        say("error", f"the disk is full{where}; free some space or choose another folder with -o")
        return USER_ERROR
    if isinstance(error, PermissionError):
        say("error", f"no permission for {error.filename}; change its permissions or choose another place")
        return USER_ERROR
    traceback.print_exception(error)
    say("error", f"{type(error).__name__}: this is a mistake in Verimorph, not yours; please report the lines above")
    return 1


def _usage_message(error: Any) -> str:
    """Return one line for a wrong command line, naming the nearest option that exists."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "verimorph"
    option = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption" and option and context is not None:
        known = [name for parameter in context.command.get_params(context) for name in parameter.opts]
        known += [name for parameter in context.command.get_params(context) for name in parameter.secondary_opts]
        message = f"unknown option {option}{nearest(option, [name for name in known if name.startswith('--')])}"
    else:
        message = error.format_message().rstrip(".")
        message = message[:1].lower() + message[1:]
    return f"{message} (see '{path} --help')"


def run_safely(command: Callable[[], Any], name: str = "") -> int:
    """Run ``command`` and return the exit code of the process, whatever happens in it.

    ``name``: what the user called it; remedies fit it.

    0 done, 1 a mistake of ours, 2 a mistake in the input or the request, 128 + n ended by signal n; or what the command
    returned, if that is a number. A command that was interrupted has cleaned up behind itself when this returns.
    """
    with _Signals() as signals, warnings.catch_warnings():
        warnings.simplefilter("always", VerimorphWarning)
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            code = command()
            sys.stdout.flush()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(bool(error.code))
        except BrokenPipeError:  # `verimorph explain x | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 128 + signal.SIGPIPE
        except KeyboardInterrupt:
            code = 128 + (signals.received or signal.SIGINT)
        except BaseException as error:  # anything at all: the user gets a line and a code
            code = 128 + signals.received if signals.received else _report(error, name)
        if signals.received:
            code = 128 + signals.received
            say("stopped", "interrupted; nothing half-written was left behind")
    return code if isinstance(code, int) else 0
