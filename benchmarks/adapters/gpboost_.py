"""GPBoost, for random intercepts by maximum likelihood (no REML, no correlated slopes).

It has no formula: it gets its arrays ready-made, coding and design left out of its time. The likelihood it reports is
not always that of the parameters it reports (with crossed factors of a generalised model it is an approximation to
Laplace's by iterative methods), so the criterion is this package's, evaluated at its variances; of a linear model the
rest is profiled out, of a generalised one the coefficients are its own too.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.adapters import Call, Outcome
from benchmarks.problems import Problem

LIKELIHOODS = {
    ("gaussian", False): "gaussian",
    ("poisson", False): "poisson",
    ("binomial", False): "bernoulli_logit",
    ("binomial", True): "binomial_logit",
}
"""Its name for a family, without and with trials as weights."""


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

    from fastlmm_core import build_design, glmer, lmer

    weights = None
    if problem.pair is None:
        design = build_design(problem.formula, table, observation_level=not problem.linear)
        y = design.y
    else:
        design = build_design(problem.pair[0] + " ~" + problem.formula.split("~", 1)[1], table)
        weights = design.y + table[problem.pair[1]].to_numpy(float)
        y = design.y / weights
    groups = np.column_stack([term.codes for term in design.random])
    likelihood = LIKELIHOODS[problem.family, weights is not None]

    def run() -> Any:
        model = gpboost.GPModel(group_data=groups, likelihood=likelihood, weights=weights)
        model.fit(y=y, X=design.X)
        return model

    def outcome(model: Any) -> Outcome:
        variances = np.asarray(model.get_cov_pars()).ravel()
        if problem.linear:
            objective = lmer(problem.formula, table, reml=problem.reml, objective_only=True)
            reached = objective(np.sqrt(variances[1:] / variances[0]))
        else:
            deviance = glmer(problem.formula, table, problem.family, objective_only=True)
            reached = deviance(np.concatenate([np.sqrt(variances), np.asarray(model.get_coef()).ravel()]))
        return Outcome(reached, model._get_num_optim_iter(), note="counts iterations")

    return Call(run, outcome)
