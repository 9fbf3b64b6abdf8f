"""The kernels one by one, by pytest-benchmark: `pytest benchmarks/micro`. Dense: InstEval; sparse: schools."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from benchmarks.micro.build import kernels
from benchmarks.problems import problem


@dataclass(frozen=True)
class Model:
    """A problem at every stage of its way to an evaluator."""

    formula: str
    table: Any
    design: Any
    terms: Any
    cross: Any
    objective: Any


MODELS = {
    "dense": ("insteval-3", {}),
    "sparse": ("schools-3m", {"n_students": 200_000}),
}


@cache
def model(engine: str) -> Model:
    """The model whose tail the engine of that name factors."""
    from fastlmm_core import build_design
    from fastlmm_core.core import Control, cross_products
    from fastlmm_core.core.criterion import Objective
    from fastlmm_core.fitting.fit import core_terms

    name, size = MODELS[engine]
    p = problem(name)
    table = p.but(size=size).table()
    design = build_design(p.formula, table)
    terms = core_terms(design)
    cross = cross_products(design.y, design.X, terms)
    return Model(p.formula, table, design, terms, cross, Objective(cross, p.reml, Control(engine=engine)))


@pytest.fixture(params=list(MODELS))
def ready(request: pytest.FixtureRequest) -> Model:
    return model(request.param)


@pytest.fixture
def steps(ready: Model) -> Any:
    """The steps of an evaluation, after one at the start."""
    theta = ready.objective.to_conditioned(0.5 * ready.objective.start)
    ready.objective.evaluator.derivatives(theta)
    return kernels().Steps(ready.objective.evaluator)


def test_formula_to_design(benchmark: Any, ready: Model) -> None:
    from fastlmm_core import build_design

    benchmark(build_design, ready.formula, ready.table)


def test_cross_products(benchmark: Any, ready: Model) -> None:
    from fastlmm_core.core import cross_products

    benchmark(cross_products, ready.design.y, ready.design.X, ready.terms)


def test_sort_rows(benchmark: Any, ready: Model) -> None:
    from fastlmm_core._native.rows.crossprod import sort_rows

    codes = ready.terms[0].codes
    benchmark(sort_rows, codes, ready.terms[0].n_levels)


def test_level_sums(benchmark: Any, ready: Model) -> None:
    from fastlmm_core._native.rows.crossprod import level_sums

    term, values = ready.terms[0], np.ascontiguousarray(np.column_stack([ready.design.X, ready.design.y]))
    out = np.zeros((term.n_levels, values.shape[1]))
    benchmark(level_sums, term.codes, None, None, values, out)


def test_response(benchmark: Any, ready: Model) -> None:
    """What a refit does with the rows."""
    from fastlmm_core.core.crossprod import DesignProducts

    products = DesignProducts(ready.design.X, ready.terms)
    benchmark(products.response, ready.design.y)


def test_plan(benchmark: Any, ready: Model) -> None:
    from fastlmm_core.core import plan

    benchmark(plan, ready.cross, ready.objective.control)


def test_scatter(benchmark: Any, steps: Any) -> None:
    benchmark(steps.scatter)


def test_factor(benchmark: Any, steps: Any) -> None:
    """Potrf of the dense tail; the supernodal factor of the sparse one."""
    steps.scatter()
    benchmark(steps.factor)


def test_inverse(benchmark: Any, steps: Any) -> None:
    """The whole inverse of the dense tail; the selected inverse of the sparse one."""
    steps.scatter()
    # an inverse takes the place of its factor
    benchmark.pedantic(steps.inverse, setup=steps.factor, rounds=20)


def test_gather(benchmark: Any, steps: Any) -> None:
    steps.scatter()
    steps.factor()
    steps.inverse()
    benchmark(steps.gather)


def test_value(benchmark: Any, ready: Model) -> None:
    benchmark(ready.objective, 0.5 * ready.objective.start)


def test_derivatives(benchmark: Any, ready: Model) -> None:
    """Value, gradient and Hessian."""
    benchmark(ready.objective.derivatives, 0.5 * ready.objective.start)
