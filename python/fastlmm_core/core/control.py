"""Options of a fit and what the machine offers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fastlmm_core.errors import ModelError

__all__ = ["ENGINES", "Control", "available_memory", "checked_control", "default_threads"]

ENGINES = ("auto", "dense", "sparse")


@dataclass(frozen=True)
class Control:
    """Options of the solver and the optimiser.

    Parameters
    ----------
    engine : {"auto", "dense", "sparse"}
        How the random effects that remain after the leading factor is eliminated are factored: as one matrix, or by
        supernodes of a sparse one. "auto" compares the predicted times.
    max_evaluations : int
        Evaluations of the criterion before the optimiser gives up.
    tol : float
        Stop when the next step is expected to bring the criterion this near its minimum.
    threads : int or None
        Threads of the kernels and of BLAS; None takes every processor this process may use.
    memory_limit : int or None
        Bytes a factor may take; None takes what the machine has free. A larger prediction is refused.
    check_levels : bool
        Refuse a grouping factor with as many levels as rows, whose variance the residuals' hides. Where known weights
        differ they tell the two apart, as in a meta-analysis: False then fits it.
    """

    engine: str = "auto"
    max_evaluations: int = 200
    tol: float = 1e-10
    threads: int | None = None
    memory_limit: int | None = None
    check_levels: bool = True

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ModelError(f"engine {self.engine!r} does not exist: use one of {', '.join(map(repr, ENGINES))}")
        if self.max_evaluations < 1:
            raise ModelError(f"max_evaluations must be at least 1, not {self.max_evaluations}")
        if not self.tol > 0:
            raise ModelError(f"tol must be positive, not {self.tol}")
        if self.threads is not None and self.threads < 1:
            raise ModelError(f"threads must be at least 1, not {self.threads}")
        if self.memory_limit is not None and self.memory_limit < 1:
            raise ModelError(f"memory_limit must be a positive number of bytes, not {self.memory_limit}")

    @property
    def n_threads(self) -> int:
        """Threads to use."""
        return self.threads if self.threads is not None else default_threads()

    @property
    def n_bytes(self) -> int:
        """Bytes a factor may take."""
        return self.memory_limit if self.memory_limit is not None else available_memory()


def checked_control(control: Control | None) -> Control:
    """The options given, or the defaults.

    Raises
    ------
    ModelError
        Not a `Control`.
    """
    if control is None:
        return Control()
    if not isinstance(control, Control):
        raise ModelError(f"control must be a Control, such as Control(engine='dense'), not {type(control).__name__}")
    return control


def default_threads() -> int:
    """Processors this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def available_memory() -> int:
    """Bytes the machine can still give out, by the kernel's own estimate where there is one."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, AttributeError, OSError):
        return 2**62
