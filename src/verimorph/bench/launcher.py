"""Start one command, wait for it, print what it used as JSON. Run by `process.measure` in a bare interpreter.

A process of its own because Linux counts the memory of whoever forks in the child's peak: started from the harness,
every engine would seem to need at least what the harness holds.

    python -I -S launcher.py LOG SECONDS COMMAND...
"""

import contextlib
import json
import os
import signal
import sys
import time


def main() -> None:
    """Run the command in a process group of its own; end the group when time is up or this process is told to stop."""
    log, limit, command = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
    ended: list[int] = []
    failure, tell = os.pipe()  # closes by itself when the command starts; carries the error number if it cannot
    started, clock = time.time(), time.perf_counter()
    child = os.fork()
    if child == 0:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            os.write(tell, str(error.errno).encode())
            os._exit(127)
    os.close(tell)

    def stop(number: int, frame: object) -> None:
        ended.append(number)
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:  # not its own group yet, or gone
            os.kill(child, signal.SIGKILL)

    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - clock
    signal.setitimer(signal.ITIMER_REAL, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # whatever it left running
    missing = os.read(failure, 16)
    print(
        json.dumps(
            {
                "exit_code": os.waitstatus_to_exitcode(status),
                "expired": signal.SIGALRM in ended,
                "not_started": int(missing) if missing else None,
                "started": started,
                "wall_s": wall,
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "maxrss": usage.ru_maxrss,
            }
        )
    )


if __name__ == "__main__":
    main()
