"""Where the time of one fit goes: rows, design, cross-products, plan, optimisation. Each step is a public function."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from statistics import median
from typing import Any, TypeVar

import pandas as pd

from benchmarks.problems import Problem

__all__ = ["Phases", "phases"]

T = TypeVar("T")


@dataclass(frozen=True)
class Phases:
    """Seconds of each step, in the order in which they run.

    Attributes
    ----------
    design : float
        Formula and table to arrays: factors coded.
    cross_products : float
        The one pass over the rows, conditioning included.
    plan : float
        Ordering, engine, index structures.
    optimise : float
        All evaluations.
    estimates : float
        Everything after the optimum, per-row fitted values included.
    """

    design: float
    cross_products: float
    plan: float
    optimise: float
    estimates: float

    @property
    def total(self) -> float:
        return sum(astuple(self))


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """Seconds and result of a call."""
    gc.collect()
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def once(problem: Problem, table: pd.DataFrame, control: Any = None) -> tuple[Phases, int]:
    """Phases of one fit, and its evaluations."""
    from fastlmm_core import build_design
    from fastlmm_core.core.criterion import Objective
    from fastlmm_core.core.crossprod import DesignProducts
    from fastlmm_core.core.estimates import estimates, minimise
    from fastlmm_core.core.threads import one_blas_thread
    from fastlmm_core.core.workspaces import Workspaces
    from fastlmm_core.fitting.fit import core_terms

    design_seconds, design = timed(lambda: build_design(problem.formula, table))
    terms = core_terms(design)
    products_seconds, products = timed(lambda: DesignProducts(design.X, terms))
    response_seconds, found = timed(lambda: products.response(design.y))
    plan_seconds, model = timed(lambda: Objective(products.complete(found), problem.reml, control))
    with one_blas_thread():
        optimise_seconds, reached = timed(lambda: minimise(model))
        pool = Workspaces(model.reml, model.control)
        estimate_seconds, fit = timed(lambda: estimates(model, *reached, products, found, pool).complete())
    cross_seconds = products_seconds + response_seconds
    return Phases(design_seconds, cross_seconds, plan_seconds, optimise_seconds, estimate_seconds), len(fit.log)


def phases(problem: Problem, table: pd.DataFrame, rounds: int = 3, control: Any = None) -> tuple[Phases, int]:
    """Median of each phase over ``rounds`` fits, and the evaluations of one."""
    found = [once(problem, table, control) for _ in range(rounds)]
    middle = [median(getattr(p, f.name) for p, _ in found) for f in fields(Phases)]
    return Phases(*middle), found[0][1]
