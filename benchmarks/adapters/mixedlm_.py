"""mixedlm (PyPI)."""

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
    return "" if task in ("fit", "refit", "bootstrap") else "not timed through mixedlm"


def prepare(problem: Problem, table: pd.DataFrame, task: str) -> Call:
    import mixedlm

    if task == "fit":
        return Call(lambda: mixedlm.lmer(problem.formula, table, REML=problem.reml), outcome)
    fitted = mixedlm.lmer(problem.formula, table, REML=problem.reml)
    if task == "refit":
        new_y = other_response(table[fitted.formula.response].to_numpy())
        return Call(lambda: fitted.refit(new_y), outcome)
    return Call(lambda: mixedlm.bootMer(fitted, nsim=DRAWS, seed=1), lambda _: Outcome(per=DRAWS))


def outcome(result: Any) -> Outcome:
    return Outcome(float(result.deviance), int(result.function_evals), note="" if result.converged else result.message)
