"""This package without a factorisation: Control(engine="iterative"), for linear models of two factors and more.

Its criterion has a Monte Carlo error, so what is compared is the criterion at its theta, by the exact engine.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from benchmarks.adapters import Call, Outcome
from benchmarks.adapters.fastlmm_core_ import versions
from benchmarks.problems import Problem

__all__ = ["prepare", "unfit", "versions"]


def unfit(problem: Problem, task: str) -> str:
    from fastlmm_core import parse_formula

    if task != "fit":
        return "not timed without a factor"
    if not problem.linear:
        return "linear models only"
    if len({term.group for term in parse_formula(problem.formula).random}) < 2:
        return "nothing is left to iterate over"
    return ""


def prepare(problem: Problem, table: pd.DataFrame, task: str) -> Call:
    from fastlmm_core import Control, lmer

    def outcome(result: Any) -> Outcome:
        objective = lmer(problem.formula, table, reml=problem.reml, objective_only=True)
        errors = result.monte_carlo
        note = f"Monte Carlo error {errors.max_relative:.1g} SE of theta, {errors.criterion_se:.1g} of the criterion"
        return Outcome(float(objective(result.core.theta)), errors.evaluations, note=note)

    control = Control(engine="iterative")
    return Call(lambda: lmer(problem.formula, table, reml=problem.reml, control=control), outcome)
