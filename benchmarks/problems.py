"""The registry of problems: each named and sized once, shared by the runner, compare, growth and the tests.

A problem is a formula, a criterion and a table. `size` are the generator's arguments when it is timed, `small` those
that give the same structure in milliseconds, for the tests.
"""

from __future__ import annotations

import re
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
    family : str
        "gaussian" for a linear model; "binomial" or "poisson", with the canonical link and Laplace's approximation.
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
    family: str = "gaussian"
    size: Mapping[str, Any] = field(default_factory=dict)
    small: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ("fit",)
    peers: tuple[str, ...] = ()
    note: str = ""

    @property
    def linear(self) -> bool:
        """Whether it is a linear model; the others have no REML criterion."""
        return self.family == "gaussian"

    @property
    def criterion(self) -> str:
        """What is minimised, in a word."""
        return ("REML" if self.reml else "ML") if self.linear else f"{self.family}, Laplace"

    @property
    def pair(self) -> tuple[str, str] | None:
        """Columns of successes and failures, where the response is such a pair."""
        found = re.match(r"cbind\((\w+), (\w+)\) ~", self.formula)
        return None if found is None else (found[1], found[2])

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


def cakes() -> pd.DataFrame:
    """The shipped cake, its temperatures without their order: not all peers take polynomials of it, and a REML
    criterion is one of the columns that it is taken in.
    """
    table = data_set("cake")()
    return table.assign(temperature=table["temperature"].cat.as_unordered())


def herds() -> pd.DataFrame:
    """The shipped cbpp with healthy animals in a column of their own: some peers take two names in ``cbind`` only."""
    table = data_set("cbpp")()
    return table.assign(healthy=table["size"] - table["incidence"])


def aggression() -> pd.DataFrame:
    """The shipped VerbAgg with the answer as 0 or 1: peers without formulas take no factor."""
    table = data_set("VerbAgg")()
    return table.assign(aggressive=(table["r2"] == "Y").astype("int32")).drop(columns=["r2", "resp"])


def generalised(name: str, formula: str, make: Callable[..., pd.DataFrame], family: str, **fields: Any) -> Problem:
    """A generalised problem: by maximum likelihood, tried with the peers that have such models."""
    return Problem(name, formula, make, reml=False, family=family, peers=GENERALISED, **fields)


GENERALISED = ("fastlmm_core", "lme4", "glmmtmb", "glmm", "mixedlm", "gpboost")
CROSSED_LOGISTIC = "y ~ x + (1|subject) + (1|item)"
CROSSED_SMALL = {"n_rows": 400, "n_subjects": 20, "n_items": 8}
RATINGS_866K = {"n_users": 6_040, "n_items": 3_706, "n_rows": 866_000}
RATINGS_10M = {"n_users": 69_878, "n_items": 10_677, "n_rows": 10_000_000, "item_shape": 0.42}
RATINGS_SMALL = {"n_users": 60, "n_items": 40, "n_rows": 600}
EIGHT_TERMS = (
    "yield_ ~ rain + (1|variety) + (1|site) + (1|year) + (1|site:year) + (1|variety:site) + (1|variety:year)"
    " + (1|variety:site:year) + (1|site:year:block)"
)
WIDE = "y ~ {} + (1|g)"

_ALL = (
    Problem(
        "dyestuff",
        "Yield ~ 1 + (1|Batch)",
        data_set("Dyestuff"),
        tasks=("fit", "satterthwaite"),
        note="30 rows, one intercept",
    ),
    Problem(
        "dyestuff2",
        "Yield ~ 1 + (1|Batch)",
        data_set("Dyestuff2"),
        tasks=("fit", "satterthwaite"),
        note="30 rows, a variance of zero",
    ),
    Problem(
        "sleepstudy",
        "Reaction ~ Days + (Days|Subject)",
        data_set("sleepstudy"),
        tasks=("fit", "satterthwaite", "refit", "bootstrap"),
        note="180 rows, correlated slopes",
    ),
    Problem(
        "penicillin",
        "diameter ~ 1 + (1|plate) + (1|sample)",
        data_set("Penicillin"),
        reml=False,
        tasks=("fit", "satterthwaite"),
        note="144 rows, two crossed factors",
    ),
    Problem(
        "pastes",
        "strength ~ 1 + (1|batch/cask)",
        data_set("Pastes"),
        reml=False,
        tasks=("fit", "satterthwaite"),
        note="60 rows, nested factors",
    ),
    Problem(
        "cake",
        "angle ~ recipe * temperature + (1|recipe:replicate)",
        cakes,
        tasks=("fit", "satterthwaite"),
        note="270 rows, 18 coefficients, one factor",
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
        "ratings-1m",
        "rating ~ 1 + (1|user) + (1|item)",
        generators.ratings,
        reml=False,
        size={"n_users": 6_000, "n_items": 4_000, "n_rows": 1_000_000},
        small=RATINGS_SMALL,
        peers=("fastlmm_core", "iterative", "gpboost"),
        note="by maximum likelihood, 6,000 x 4,000 levels",
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
    Problem(
        "slopes-1k",
        "y ~ x + (x|g)",
        generators.slopes,
        size={"n_groups": 1_000, "per_group": 20},
        small={"n_groups": 40, "per_group": 10},
        tasks=("fit", "satterthwaite"),
        note="20,000 rows, 1,000 groups with correlated slopes",
    ),
    generalised(
        "cbpp", "cbind(incidence, healthy) ~ period + (1|herd)", herds, "binomial", note="56 rows of trials, 15 herds"
    ),
    generalised(
        "epilepsy",
        "seizures ~ base*treated + age + last + (1|patient)",
        generators.epilepsy,
        "poisson",
        size={"n_patients": 59},
        small={"n_patients": 59},
        note="236 counts, 59 patients, simulated",
    ),
    generalised(
        "bacteria",
        "present ~ treatment + late + (1|child)",
        generators.bacteria,
        "binomial",
        size={"n_children": 50},
        small={"n_children": 50},
        note="about 220 binary rows, 50 children, simulated",
    ),
    generalised(
        "grouseticks",
        "TICKS ~ YEAR + cHEIGHT + (1|BROOD) + (1|INDEX) + (1|LOCATION)",
        data_set("grouseticks"),
        "poisson",
        note="403 counts, an effect of each row beside broods and locations",
    ),
    generalised(
        "contraception",
        "use ~ age + age2 + urban + children + (urban|district)",
        generators.contraception,
        "binomial",
        size={"n_women": 1_934, "n_districts": 60},
        small={"n_women": 1_934, "n_districts": 60},
        note="1,934 binary rows, 60 districts with correlated slopes, simulated",
    ),
    generalised(
        "children",
        "immunised ~ older + rural + education + (1|mother) + (1|community)",
        generators.children,
        "binomial",
        size={"n_mothers": 1_595, "n_communities": 161},
        small={"n_mothers": 300, "n_communities": 30},
        note="about 2,150 binary rows, 1,595 mothers in 161 communities, simulated",
    ),
    generalised(
        "verbagg",
        "aggressive ~ Anger + Gender + btype + situ + (1|id) + (1|item)",
        aggression,
        "binomial",
        note="7,584 binary rows, 316 persons x 24 items",
    ),
    generalised(
        "logistic-10k",
        CROSSED_LOGISTIC,
        generators.crossed_logistic,
        "binomial",
        size={"n_rows": 10_000, "n_subjects": 500, "n_items": 50},
        small=CROSSED_SMALL,
        note="10,000 binary rows, 500 x 50 levels crossed",
    ),
    generalised(
        "logistic-100k",
        CROSSED_LOGISTIC,
        generators.crossed_logistic,
        "binomial",
        size={"n_rows": 100_000, "n_subjects": 5_000, "n_items": 500},
        small=CROSSED_SMALL,
        note="100,000 binary rows, 5,000 x 500 levels crossed",
    ),
    generalised(
        "logistic-1m",
        CROSSED_LOGISTIC,
        generators.crossed_logistic,
        "binomial",
        size={"n_rows": 1_000_000, "n_subjects": 50_000, "n_items": 5_000},
        small=CROSSED_SMALL,
        note="a million binary rows, 50,000 x 5,000 levels crossed",
    ),
)

PROBLEMS: dict[str, Problem] = {p.name: p for p in _ALL}

ALIKE = tuple(f"{peer}/{task}" for peer in ("fastlmm_core", "lme4", "glmm") for task in ("fit", "satterthwaite"))
"""Small models next to the peers that give the same answers, with degrees of freedom and without."""

SHORT: dict[str, tuple[str, ...]] = {
    "dyestuff": (),
    "dyestuff2": ALIKE,
    "sleepstudy": (),
    "penicillin": (),
    "pastes": (),
    "cake": ALIKE,
    "slopes-1k": ALIKE,
    "schools-3m": ("fastlmm_core/fit", "pandas/read"),
    "ratings-866k": ("fastlmm_core/fit", "fastlmm_core/evaluate", "fastlmm_core/derivatives", "cholmod/factorise"),
    "insteval-3": (),
    "eight-terms": ("fastlmm_core/fit", "lme4/fit"),
    "insteval-slope": ("fastlmm_core/fit", "lme4/fit"),
    "cbpp": (),
    "bacteria": ("fastlmm_core/fit", "lme4/fit", "glmm/fit"),
    "epilepsy": ("fastlmm_core/fit", "lme4/fit", "glmm/fit"),
    "grouseticks": (),
    "contraception": (),
    "logistic-10k": ("fastlmm_core/fit", "lme4/fit", "glmmtmb/fit", "glmm/fit"),
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
