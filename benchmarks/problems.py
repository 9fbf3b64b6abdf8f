"""The registry of problems: each named and sized once, shared by the runner, compare, growth and the tests.

A problem is a formula, a criterion and a table. `size` are the generator's arguments when it is timed, `small` those
that give the same structure in milliseconds, for the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from benchmarks import generators

__all__ = ["PROBLEMS", "SHORT", "Problem", "problem"]


@dataclass(frozen=True)
class Problem:
    """One model on one table.

    Attributes
    ----------
    name : str
    formula : str
        lme4's notation, which every adapter starts from.
    reml : bool
        REML criterion, or maximum likelihood.
    make : callable
        Arguments of `size` (or `small`) to a DataFrame.
    size, small : mapping
        Arguments of ``make`` for timing and for tests; empty for a data set, which has one size.
    tasks : tuple of str
        What is timed; see `benchmarks.adapters.TASKS`.
    peers : tuple of str
        Adapters that are tried unless others are asked for; empty for all.
    note : str
        What the problem stands for.
    """

    name: str
    formula: str
    make: Callable[..., pd.DataFrame]
    reml: bool = True
    size: Mapping[str, Any] = field(default_factory=dict)
    small: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ("fit",)
    peers: tuple[str, ...] = ()
    note: str = ""

    def table(self) -> pd.DataFrame:
        """The rows that are timed; the same every time."""
        return self.make(**self.size)

    def small_table(self) -> pd.DataFrame:
        """The same structure with few rows."""
        return self.make(**self.small)

    def but(self, **changes: Any) -> Problem:
        """A copy with some fields replaced."""
        return replace(self, **changes)


def data_set(name: str) -> Callable[[], pd.DataFrame]:
    """Maker of a shipped data set."""

    def make() -> pd.DataFrame:
        from fastlmm_core.datasets import load_dataset

        return load_dataset(name)

    return make


RATINGS_866K = {"n_users": 6_040, "n_items": 3_706, "n_rows": 866_000}
RATINGS_10M = {"n_users": 69_878, "n_items": 10_677, "n_rows": 10_000_000, "item_shape": 0.42}
RATINGS_SMALL = {"n_users": 60, "n_items": 40, "n_rows": 600}
EIGHT_TERMS = (
    "yield_ ~ rain + (1|variety) + (1|site) + (1|year) + (1|site:year) + (1|variety:site) + (1|variety:year)"
    " + (1|variety:site:year) + (1|site:year:block)"
)
WIDE = "y ~ {} + (1|g)"

_ALL = (
    Problem("dyestuff", "Yield ~ 1 + (1|Batch)", data_set("Dyestuff"), note="30 rows, one intercept"),
    Problem(
        "sleepstudy",
        "Reaction ~ Days + (Days|Subject)",
        data_set("sleepstudy"),
        tasks=("fit", "refit", "bootstrap"),
        note="180 rows, correlated slopes",
    ),
    Problem(
        "penicillin",
        "diameter ~ 1 + (1|plate) + (1|sample)",
        data_set("Penicillin"),
        reml=False,
        note="144 rows, two crossed factors",
    ),
    Problem(
        "pastes",
        "strength ~ 1 + (1|batch/cask)",
        data_set("Pastes"),
        reml=False,
        note="60 rows, nested factors",
    ),
    Problem(
        "insteval-2",
        "y ~ service + (1|s) + (1|d)",
        data_set("InstEval"),
        reml=False,
        note="73,421 rows, 2,972 x 1,128 levels",
    ),
    Problem(
        "insteval-3",
        "y ~ service + (1|s) + (1|d) + (1|dept:service)",
        data_set("InstEval"),
        reml=False,
        tasks=("fit", "evaluate", "derivatives"),
        note="three variance parameters",
    ),
    Problem(
        "insteval-4",
        "y ~ service + (1|s) + (1|d) + (1|dept) + (1|dept:service)",
        data_set("InstEval"),
        reml=False,
        note="four variance parameters",
    ),
    Problem(
        "insteval-slope",
        "y ~ service + (service|dept) + (1|s) + (1|d)",
        data_set("InstEval"),
        reml=False,
        note="five covariance parameters, near singular",
    ),
    Problem(
        "ratings-866k",
        "rating ~ 1 + (1|user) + (1|item)",
        generators.ratings,
        size=RATINGS_866K,
        small=RATINGS_SMALL,
        tasks=("fit", "evaluate", "derivatives", "factorise"),
        note="heavy-tailed, 6,040 x 3,706 levels",
    ),
    Problem(
        "ratings-300k",
        "rating ~ 1 + (1|user) + (1|item)",
        generators.ratings,
        size={"n_users": 30_000, "n_items": 6_000, "n_rows": 300_000, "item_shape": 0.42},
        small=RATINGS_SMALL,
        tasks=("fit", "evaluate", "derivatives"),
        note="most items rarely rated, 30,000 x 6,000 levels",
    ),
    Problem(
        "ratings-10m",
        "rating ~ 1 + (1|user) + (1|item)",
        generators.ratings,
        size=RATINGS_10M,
        small=RATINGS_SMALL,
        peers=("fastlmm_core",),  # the others run out of memory, or of a day
        note="heavy-tailed, 69,878 x 10,677 levels",
    ),
    Problem(
        "schools-3m",
        "score ~ ses + (1|district/school/class_)",
        generators.schools,
        size={"n_students": 3_000_000},
        small={"n_students": 1_200, "per_class": 10, "per_school": 4, "per_district": 5},
        tasks=("fit", "read"),
        note="120,000 classes in 10,000 schools in 500 districts",
    ),
    Problem(
        "eight-terms",
        EIGHT_TERMS,
        generators.trials,
        size={"n_varieties": 160, "n_sites": 12, "n_years": 8},
        small={"n_varieties": 12, "n_sites": 4, "n_years": 4},
        note="field trials, three factors with all interactions and blocks",
    ),
    Problem(
        "slopes-50k",
        "y ~ x + (x|g)",
        generators.slopes,
        size={"n_groups": 50_000, "per_group": 10},
        small={"n_groups": 40, "per_group": 10},
        note="500,000 rows, 50,000 groups with correlated slopes",
    ),
    Problem(
        "wide-500",
        WIDE.format(" + ".join(f"x{j}" for j in range(500))),
        generators.wide,
        size={"n_rows": 20_000, "n_columns": 500, "n_groups": 400},
        small={"n_rows": 700, "n_columns": 500, "n_groups": 20},
        note="20,000 rows, 500 covariates",
    ),
)

PROBLEMS: dict[str, Problem] = {p.name: p for p in _ALL}

SHORT: dict[str, tuple[str, ...]] = {
    "dyestuff": (),
    "sleepstudy": (),
    "penicillin": (),
    "pastes": (),
    "schools-3m": ("fastlmm_core/fit", "pandas/read"),
    "ratings-866k": ("fastlmm_core/fit", "fastlmm_core/evaluate", "fastlmm_core/derivatives", "cholmod/factorise"),
    "insteval-3": (),
    "eight-terms": ("fastlmm_core/fit", "lme4/fit"),
    "insteval-slope": ("fastlmm_core/fit", "lme4/fit"),
}
"""What `make bench` times: the problems, and which adapter/task of each where not all of them (peers take too long)."""


def problem(name: str) -> Problem:
    """The registered problem of that name.

    Raises
    ------
    KeyError
        No such problem; the message lists the names.
    """
    try:
        return PROBLEMS[name]
    except KeyError:
        raise KeyError(f"no problem is called {name!r}; there are {', '.join(PROBLEMS)}") from None
