"""statsmodels' MixedLM, for models with one grouping factor (its variance components on crossed ones are dense)."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pandas as pd

from benchmarks.adapters import Call, Outcome
from benchmarks.problems import Problem


def versions() -> dict[str, str]:
    import statsmodels.formula.api  # noqa: F401

    return {"statsmodels": version("statsmodels")}


def unfit(problem: Problem, task: str) -> str:
    from fastlmm_core import parse_formula

    if task != "fit":
        return "not timed through statsmodels"
    if not problem.linear:
        return "no generalised models by Laplace's approximation"
    if len(parse_formula(problem.formula).random) > 1:
        return "MixedLM has one grouping factor"
    return ""


def prepare(problem: Problem, table: pd.DataFrame, task: str) -> Call:
    import statsmodels.formula.api as smf

    from fastlmm_core import parse_formula

    parsed = parse_formula(problem.formula)
    (term,) = parsed.random

    def run() -> Any:
        model = smf.mixedlm(
            f"{parsed.response} ~ {parsed.fixed}", table, groups=term.group[0], re_formula=f"~{term.expr}"
        )
        return model.fit(reml=problem.reml)

    return Call(run, lambda result: Outcome(-2.0 * float(result.llf), note="" if result.converged else "not converged"))
