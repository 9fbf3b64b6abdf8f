"""What the figures were taken on, and the environment that bounds the peers' threads."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from pathlib import Path

__all__ = ["available_cpus", "bound_environment", "describe", "pin"]

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
)
ROOT = Path(__file__).parents[1]


def available_cpus() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def bound_environment(threads: int, path: Path | None = None) -> dict[str, str]:
    """This environment with every thread pool bounded; ``path`` is where to import `fastlmm_core` from, if not as here.

    Parameters
    ----------
    threads : int
    path : Path, optional

    Returns
    -------
    dict
    """
    first = [str(path)] if path is not None else []
    inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    search = os.pathsep.join([*first, str(ROOT), *inherited])
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONPATH": search}


def pin(threads: int) -> None:
    """Keep this process on its first ``threads`` processors, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def describe(threads: int) -> dict[str, object]:
    """Processor, memory, system, commit, date and thread bound, for the head of a report."""
    return {
        "date": date.today().isoformat(),
        "cpu": cpu_name(),
        "cpus": available_cpus(),
        "threads": threads,
        "memory_gib": memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": commit(),
    }


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Physical memory."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, AttributeError, OSError):
        return None


def commit() -> str | None:
    """The commit of this working tree, "+" where sources differ from it; None outside git."""
    try:
        head, changes = (
            subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (
                ("rev-parse", "--short", "HEAD"),
                ("status", "--porcelain", "-uno", "--", "src", "python", "benchmarks"),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changes else "")
