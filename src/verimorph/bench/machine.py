"""What the figures were measured on, without naming the machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor() -> str:
    """Return the processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Hardware") and value.strip():
                return " ".join(value.split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def memory_gb() -> float | None:
    """Return the machine's memory in GB, None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (AttributeError, ValueError, OSError):
        return None


def describe() -> str:
    """Return one line: processor, cores, memory, system."""
    memory = memory_gb()
    parts = [processor(), f"{cores()} cores"]
    if memory:
        parts.append(f"{memory:.0f} GB")
    return ", ".join([*parts, f"{platform.system()}, Python {platform.python_version()}"])


def busy_seconds() -> float | None:
    """Return the seconds that all cores together have worked since the start of the machine; None where unknown.

    Time that a hypervisor took away counts as work of others.
    """
    try:
        words = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _wait, interrupts, soft, steal = (int(word) for word in words[1:9])
    return (user + nice + system + interrupts + soft + steal) / os.sysconf("SC_CLK_TCK")
