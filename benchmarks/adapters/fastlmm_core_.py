"""This package."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pandas as pd

from benchmarks.adapters import Call, Outcome, other_response
from benchmarks.problems import Problem

DRAWS = 10_000
"""Bootstrap fits a call."""


def versions() -> dict[str, str]:
    import fastlmm_core
    import fastlmm_core.core

    return {"fastlmm_core": fastlmm_core.__version__, "numpy": version("numpy"), "scipy": version("scipy")}


def unfit(problem: Problem, task: str) -> str:
    from fastlmm_core import LmerResult

    if task == "factorise":
        return "a task of the plain Cholesky adapter"
    if not problem.linear and task != "fit":
        return "timed for linear problems only"
    if task in ("refit", "bootstrap", "coef_table") and not hasattr(LmerResult, task):
        return f"this version has no {task}()"
    return ""


def prepare(problem: Problem, table: pd.DataFrame, task: str) -> Call:
    return prepared(problem, table, task)


def prepared(problem: Problem, table: pd.DataFrame, task: str, **options: Any) -> Call:
    """A task with `lmer` or `glmer`, ``options`` passed on."""
    from fastlmm_core import lmer

    if not problem.linear:
        from fastlmm_core import glmer  # not in versions that this one is compared with

        return Call(lambda: glmer(problem.formula, table, problem.family, **options), outcome)

    if task == "fit":
        return Call(lambda: lmer(problem.formula, table, reml=problem.reml, **options), outcome)
    if task == "satterthwaite":
        return Call(lambda: tested(lmer(problem.formula, table, reml=problem.reml, **options), "coef_arrays"), outcome)
    if task == "coef_table":
        return Call(lambda: tested(lmer(problem.formula, table, reml=problem.reml, **options), "coef_table"), outcome)
    fitted = lmer(problem.formula, table, reml=problem.reml, **options)
    if task == "refit":
        new_y = other_response(fitted.design.y)
        return Call(lambda: fitted.refit(new_y), outcome)
    if task == "bootstrap":
        return Call(
            lambda: fitted.bootstrap(DRAWS, kind="parametric", seed=1, progress=False), lambda _: Outcome(per=DRAWS)
        )
    objective = lmer(problem.formula, table, reml=problem.reml, objective_only=True, **options)
    theta = fitted.core.theta
    if task == "evaluate":
        return Call(lambda: objective(theta), lambda value: Outcome(value, 1))
    return Call(lambda: objective.derivatives(theta), lambda parts: Outcome(parts[0], 1))


def tested(result: Any, method: str) -> Any:
    """The result, the tests of its coefficients made: `coef_arrays` or `coef_table`."""
    getattr(result, method, result.coef_table)(ddf="satterthwaite")  # a version to compare with may lack the first
    return result


def outcome(result: Any) -> Outcome:
    note = "" if result.core.converged else result.core.message
    return Outcome(result.core.criterion, len(result.core.log), note=note)
