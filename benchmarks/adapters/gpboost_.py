"""GPBoost, for random intercepts by maximum likelihood (no REML, no correlated slopes).

It has no formula: it gets its arrays ready-made, coding and design left out of its time. The likelihood it reports is
not always that of the parameters it reports, so the criterion is evaluated at its variances, the rest profiled out.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.adapters import Call, Outcome
from benchmarks.problems import Problem


def versions() -> dict[str, str]:
    import gpboost  # noqa: F401

    return {"gpboost": version("gpboost")}


def unfit(problem: Problem, task: str) -> str:
    from fastlmm_core import parse_formula

    if task != "fit":
        return "not timed through gpboost"
    if problem.reml:
        return "no REML"
    if any(term.expr != "1" for term in parse_formula(problem.formula).random):
        return "no correlated slopes"
    return ""


def prepare(problem: Problem, table: pd.DataFrame, task: str) -> Call:
    import gpboost

    from fastlmm_core import build_design, lmer

    design = build_design(problem.formula, table)
    groups = np.column_stack([term.codes for term in design.random])

    def run() -> Any:
        model = gpboost.GPModel(group_data=groups, likelihood="gaussian")
        model.fit(y=design.y, X=design.X)
        return model

    def outcome(model: Any) -> Outcome:
        variances = np.asarray(model.get_cov_pars()).ravel()
        objective = lmer(problem.formula, table, reml=problem.reml, objective_only=True)
        reached = objective(np.sqrt(variances[1:] / variances[0]))
        return Outcome(reached, model._get_num_optim_iter(), note="counts iterations")

    return Call(run, outcome)
