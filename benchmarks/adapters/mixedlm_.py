"""mixedlm (PyPI).

It has no ``cbind``: of pairs it gets proportions with trials as weights. Of a generalised model its
`deviance` is the sum of deviance residuals: the criterion is made of its log-likelihood, which has all constants.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pandas as pd

from benchmarks.adapters import Call, Outcome, other_response
from benchmarks.problems import Problem

DRAWS = 100


def versions() -> dict[str, str]:
    import mixedlm  # noqa: F401

    return {"mixedlm": version("mixedlm")}


def unfit(problem: Problem, task: str) -> str:
    if not problem.linear and task != "fit":
        return "timed for linear problems only"
    return "" if task in ("fit", "refit", "bootstrap") else "not timed through mixedlm"


def prepare(problem: Problem, table: pd.DataFrame, task: str) -> Call:
    import mixedlm

    if not problem.linear:
        return generalised(problem, table)
    if task == "fit":
        return Call(lambda: mixedlm.lmer(problem.formula, table, REML=problem.reml), outcome)
    fitted = mixedlm.lmer(problem.formula, table, REML=problem.reml)
    if task == "refit":
        new_y = other_response(table[fitted.formula.response].to_numpy())
        return Call(lambda: fitted.refit(new_y), outcome)
    return Call(lambda: mixedlm.bootMer(fitted, nsim=DRAWS, seed=1), lambda _: Outcome(per=DRAWS))


def generalised(problem: Problem, table: pd.DataFrame) -> Call:
    """A fit with `glmer`."""
    import mixedlm

    families = {"binomial": mixedlm.families.Binomial, "poisson": mixedlm.families.Poisson}
    formula, weights, family = problem.formula, None, families[problem.family]()
    if problem.pair is not None:
        successes, failures = (table[name].to_numpy(float) for name in problem.pair)
        weights = successes + failures
        table = table.assign(proportion=successes / weights)
        formula = "proportion ~" + formula.split("~", 1)[1]

    def reached(result: Any) -> Outcome:
        note = "counts iterations" if result.converged else result.message
        return Outcome(-2.0 * float(result.logLik().value), int(result.n_iter), note=note)

    return Call(lambda: mixedlm.glmer(formula, table, family=family, weights=weights), reached)


def outcome(result: Any) -> Outcome:
    return Outcome(float(result.deviance), int(result.function_evals), note="" if result.converged else result.message)
