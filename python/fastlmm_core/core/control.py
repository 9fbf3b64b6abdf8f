"""Options of a fit and what the machine offers."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from numbers import Integral

from fastlmm_core.core.arguments import checked_count, is_real
from fastlmm_core.core.machine import available_memory, default_threads
from fastlmm_core.errors import ModelError, no_such

__all__ = ["ENGINES", "MAX_PROBES", "Control", "checked_control"]

ENGINES = ("auto", "dense", "sparse", "cholmod", "iterative")

MAX_EVALUATIONS = 100_000
"""The log has room for all of them from the start."""

MAX_THREADS = 256
"""More than this many are not asked of the system, which ends the process when it cannot start them."""

MAX_PROBES = 128
"""Of the iterative engine: the error falls with their square root."""


@dataclass(frozen=True)
class Control:
    """Options of the solver and the optimiser.

    Parameters
    ----------
    engine : {"auto", "dense", "sparse", "cholmod", "iterative"}
        How the random effects that remain after the leading factor is eliminated are factored: as one matrix, or by
        supernodes of a sparse one. "auto" compares the predicted times. "cholmod" eliminates nothing beforehand and
        gives the whole system to CHOLMOD's simplicial factor: the textbook path, to compare with. "iterative" makes no
        factor: its time and memory grow with the rows only, and the variance parameters (of generalised models all)
        have a Monte Carlo error, which is reported. "auto" takes it where no other engine is within reach. With one
        grouping factor nothing remains: its levels go one by one, whatever is asked for but "cholmod".
    max_evaluations : int
        Evaluations of the criterion before the optimiser gives up, the iterative engine after 60 at the latest. Where
        a generalised model's search gives up after more than 16 it begins again elsewhere, three times at most.
    tol : float
        Stop when the next step is expected to bring the criterion this near its minimum.
    threads : int or None
        Threads of the kernels, at most 256; None takes every processor this process may use, by its affinity and by
        its container's quota. A forked child runs on one thread whatever is asked for.
    memory_limit : int or None
        Bytes a factor may take, or the iterative engine's rows and vectors; None takes what the machine and the
        container have free. A larger prediction is refused.
    check_levels : bool
        Refuse a grouping factor with as many levels as rows, whose variance the residuals' hides. Where known weights
        differ they tell the two apart, as in a meta-analysis: False then fits it.
    weights : {"observed", "expected"}
        Curvature of a generalised model's rows in Laplace's approximation: of the log-likelihood itself, which is the
        approximation proper, or its expectation, which lme4 uses and which differs for links that are not canonical.
    seed, probes : int
        Of the iterative engine's probes; the same seed gives the same bits, whatever the number of threads. Probes to
        begin with, rounded up to eights.
    mc_error : float
        Monte Carlo error of these parameters to reach there, in their standard errors; probes are added, up to 128.

    Raises
    ------
    ModelError
        A value that makes no sense.
    """

    engine: str = "auto"
    max_evaluations: int = 200
    tol: float = 1e-10
    threads: int | None = None
    memory_limit: int | None = None
    check_levels: bool = True
    weights: str = "observed"
    seed: int = 0
    probes: int = 8
    mc_error: float = 0.01

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ModelError(no_such("engine", self.engine, ENGINES))
        if self.weights not in ("observed", "expected"):
            raise ModelError(f"weights {self.weights!r} do not exist: use 'observed' or 'expected'")
        checked_count(self.max_evaluations, "max_evaluations", MAX_EVALUATIONS)
        if not (is_real(self.tol) and 0 < float(self.tol) < inf):
            raise ModelError(f"tol must be positive and finite, not {self.tol!r}")
        if self.threads is not None:
            checked_count(self.threads, "threads", MAX_THREADS)
        checked_count(self.probes, "probes", MAX_PROBES)
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral) or self.seed < 0:
            raise ModelError(f"seed must be a whole number from 0, not {self.seed!r}")
        if not (is_real(self.mc_error) and 0 < float(self.mc_error) < inf):
            raise ModelError(f"mc_error must be positive and finite, not {self.mc_error!r}")
        limit = self.memory_limit
        if limit is not None and not (is_real(limit) and 1 <= float(limit) < inf):
            raise ModelError(f"memory_limit must be a positive number of bytes, not {limit!r}")

    @property
    def n_threads(self) -> int:
        """Threads to use."""
        return self.threads if self.threads is not None else default_threads()

    @property
    def n_bytes(self) -> int:
        """Bytes an engine may take."""
        return int(self.memory_limit) if self.memory_limit is not None else available_memory()


DEFAULT = Control()


def checked_control(control: Control | None) -> Control:
    """The options given, or the defaults.

    Raises
    ------
    ModelError
        Not a `Control`.
    """
    if control is None:
        return DEFAULT
    if not isinstance(control, Control):
        raise ModelError(f"control must be a Control, such as Control(engine='dense'), not {type(control).__name__}")
    return control
