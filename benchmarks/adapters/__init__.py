"""One file a peer. What an adapter module offers, and the names of all.

An adapter is a module with

    versions() -> dict            of the peer and what it stands on; ImportError (or `Absent`) if it is not here
    unfit(problem, task) -> str   why the peer has no such model or task; "" if it has
    prepare(problem, table, task) -> Call

`prepare` does all that is not timed; the `Call` it returns is timed and gives an opaque result, and `outcome(result)`
reads the figures off it, untimed again. A peer that is not Python has `command()` instead of `prepare`: the program
that speaks the worker's protocol (see `benchmarks.worker`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ADAPTERS", "TASKS", "Absent", "Call", "Outcome", "adapter", "other_response"]

ADAPTERS = (
    "fastlmm_core",
    "textbook",
    "iterative",
    "lme4",
    "glmmtmb",
    "glmm",
    "mixedlm",
    "gpboost",
    "statsmodels",
    "cholmod",
    "pandas",
)
"""Names in the order of the table; this package is the first, and ratios are to it."""

TASKS = {
    "fit": "from a DataFrame to a fitted model",
    "satterthwaite": "a fit and Satterthwaite's degrees of freedom of its coefficients",
    "coef_table": "the same and its table of coefficients as a DataFrame",
    "refit": "the fitted model's refit to a new response",
    "bootstrap": "parametric bootstrap, one draw and its fit",
    "evaluate": "one value of the criterion, everything prepared",
    "derivatives": "one value with its gradient and Hessian, everything prepared",
    "read": "rows from a Parquet file, grouping factors coded",
    "factorise": "one factorisation of the whole system by a plain sparse Cholesky",
}
"""What can be timed."""


def other_response(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The response of the refits, made alike in every language: ``y`` and a fifth of its deviation in sine waves."""
    return y + np.std(y, ddof=1) / 5.0 * np.sin(np.arange(1, len(y) + 1))


class Absent(ImportError):
    """The peer is not installed; the message says what is missing."""


@dataclass(frozen=True)
class Outcome:
    """Figures of one result.

    Attributes
    ----------
    criterion : float or None
        Minus twice the log-likelihood, all constants included, or the REML criterion, in lme4's definition.
    evaluations : int or None
        Of the criterion, as the peer counts them; where it counts only iterations, those.
    per : int
        Parts of one call (bootstrap draws): its seconds are divided by this.
    note : str
        What else the reader must know of this result.
    """

    criterion: float | None = None
    evaluations: int | None = None
    per: int = 1
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Call:
    """A prepared measurement: ``run`` is timed, ``outcome`` reads its result."""

    run: Callable[[], Any]
    outcome: Callable[[Any], Outcome] = field(default=lambda result: Outcome())


def adapter(name: str) -> ModuleType:
    """The adapter module of that name; importing it does not import the peer.

    Raises
    ------
    KeyError
        No such adapter; the message lists the names.
    """
    if name not in ADAPTERS:
        raise KeyError(f"no adapter is called {name!r}; there are {', '.join(ADAPTERS)}")
    return import_module(f"benchmarks.adapters.{name}_")
