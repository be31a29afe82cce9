"""How much memory there is, and whether an error says that it was not enough. Light: it imports nothing large."""

from __future__ import annotations

import os
from pathlib import Path


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether the machine ran out of memory; torch says so with a plain ``RuntimeError`` on the CPU.

    >>> is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    True
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def memory() -> dict[str, int | None]:
    """Return total and available memory of this machine in bytes; a container's limit counts.

    >>> memory()["total"] is None or memory()["total"] > 0
    True
    """
    total = available = None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        total, available = values.get("MemTotal"), values.get("MemAvailable")
    except (OSError, ValueError, IndexError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = _control_group()
    if limit is not None and (total is None or limit < total):
        total = limit
        left = max(limit - (used or 0), 0)
        available = left if available is None else min(available, left)
    return {"total": total, "available": available}


def _control_group() -> tuple[int | None, int | None]:
    """Memory limit and use of the container this process runs in (Linux control groups, version 2 then 1), bytes."""
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            limit = int(Path(limit_file).read_text(encoding="ascii"))
            return limit, int(Path(used_file).read_text(encoding="ascii"))
        except (OSError, ValueError):  # absent, or "max": no limit
            continue
    return None, None


__all__ = ["is_out_of_memory", "memory"]
