"""What this process may use of the machine: processors and memory, a container's limits among them.

Linux groups processes into control groups, a tree whose limits bind everybody below. Version 2 has one tree, version 1
one a resource; both are read, up to the root, since a container's own group may say nothing while the one above does.
Which groups have limits is looked up once: the files are many, and nearly all say that there is none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from math import ceil
from pathlib import Path

from fastlmm_core.core.threads import FORKED
from fastlmm_core.errors import MemoryLimitError

__all__ = ["available_memory", "default_threads", "require_memory"]

NOTICED = 1 << 28
"""Arrays below this many bytes are made without a question."""

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")


def default_threads() -> int:
    """Processors this process may keep busy: by affinity, and by its container's quota. One in a forked child."""
    if FORKED:
        return 1  # OpenMP's threads did not come along
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        count = os.cpu_count() or 1
    return max(1, min([count, *map(ceil, processor_quotas())]))


def available_memory() -> int:
    """Bytes that can still be had: by the kernel's own estimate where there is one, and by the container's limits."""
    return max(1, min([machine_memory(), *group_memory()]))


def require_memory(n_bytes: int, what: str) -> None:
    """Refuse arrays that the machine cannot hold, before they are asked for.

    Raises
    ------
    MemoryLimitError
    """
    if n_bytes > NOTICED and n_bytes > (available := available_memory()):
        raise MemoryLimitError(f"{what} would take {n_bytes / 2**30:.1f} GiB, but {available / 2**30:.1f} GiB are free")


def machine_memory() -> int:
    """Bytes the machine can still give out."""
    try:
        for line in (PROC / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, AttributeError, OSError):
        return 2**62


def groups(controller: str) -> Iterator[tuple[int, Path]]:
    """Version and folder of each control group this process is in, from its own up to the root."""
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        hierarchy, names, path = [*line.split(":", 2), "", ""][:3]
        if hierarchy == "0" and not names:
            version, root = 2, GROUPS
        elif controller in names.split(","):
            together = GROUPS / names  # such as cpu,cpuacct
            version, root = 1, together if together.is_dir() else GROUPS / controller
        else:
            continue
        # in a container the path may be the host's, and what is mounted the container's own group
        folder = root / path.lstrip("/")
        yield from ((version, place) for place in [folder, *folder.parents] if place.is_relative_to(root))


def number(path: Path) -> float | None:
    """The first number in a file; None where there is no file, or no limit in it."""
    try:
        return float(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


@cache
def processor_quotas() -> tuple[float, ...]:
    """Processors' worth of time that each group above this process may use, where it is bounded."""
    quotas = []
    for version, folder in groups("cpu"):
        if version == 2:
            try:
                words = (folder / "cpu.max").read_text().split()
                quota, period = float(words[0]), float(words[1])
            except (OSError, ValueError, IndexError):  # no such file, or "max"
                continue
        else:
            found = number(folder / "cpu.cfs_quota_us"), number(folder / "cpu.cfs_period_us")
            if found[0] is None or found[1] is None:
                continue
            quota, period = found[0], found[1]
        if quota > 0 and period > 0:
            quotas.append(quota / period)
    return tuple(quotas)


@cache
def memory_limits() -> tuple[tuple[float, Path, Path], ...]:
    """Limit in bytes, file that says what is used, and folder of each group above this process that has a limit."""
    limits = []
    for version, folder in groups("memory"):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit = number(folder / names[0])
        if limit is not None and limit < 2**60:  # version 1 writes no limit as a huge one
            limits.append((limit, folder / names[1], folder))
    return tuple(limits)


def group_memory() -> Iterator[int]:
    """Bytes that each group above this process has left; files it has cached can be had back and do not count."""
    for limit, used, folder in memory_limits():
        yield max(0, int(limit - max(0.0, (number(used) or 0.0) - cached_files(folder))))


def cached_files(folder: Path) -> float:
    """Bytes of cached files that a group can drop."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0.0
    found = dict(line.split()[:2] for line in lines if len(line.split()) >= 2)
    for name in ("total_inactive_file", "inactive_file"):
        if name in found:
            return float(found[name])
    return 0.0
