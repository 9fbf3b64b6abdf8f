"""glmm (PyPI, 0.6): linear models by REML or maximum likelihood, generalised ones by Laplace's approximation.

A plain fit leaves out what it would add for its tests: degrees of freedom, and the refits for a table of terms. It has
standard errors, fitted values and modes in every fit, and with degrees of freedom the F tests of terms, which this
package makes when they are asked for. Its
`deviance` is lme4's sum of deviance residuals, not minus twice the log-likelihood, so that is made of its ``loglik``,
which has all constants; of a REML fit it is the REML criterion. Evaluations are its count of values.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pandas as pd

from benchmarks.adapters import Call, Outcome
from benchmarks.problems import Problem


def versions() -> dict[str, str]:
    import glmm  # noqa: F401

    return {"glmm": version("glmm")}


def unfit(problem: Problem, task: str) -> str:
    if task == "satterthwaite" and not problem.linear:
        return "Satterthwaite's degrees of freedom are of linear models"
    return "" if task in ("fit", "satterthwaite") else "not timed through glmm"


def prepare(problem: Problem, table: pd.DataFrame, task: str) -> Call:
    import glmm

    options: dict[str, Any] = {"satterthwaite": task == "satterthwaite", "anova_test": "Wald"}
    if problem.linear:
        options["reml"] = problem.reml
    return Call(lambda: glmm.fit(table, problem.formula, family=problem.family, **options), outcome)


def outcome(result: Any) -> Outcome:
    note = "" if result.diagnostics["converged"] else f"not converged: {result.outer_stop}"
    return Outcome(-2.0 * float(result.loglik), int(result.n_eval), note=note)
