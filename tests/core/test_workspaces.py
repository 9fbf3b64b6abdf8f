"""Workspaces: any number of threads, copies, pickles, and objects whose constructor failed."""

import copy
import inspect
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import problems
from fastlmm_core._native.criterion.callback import Callback
from fastlmm_core._native.criterion.evaluator import Evaluator
from fastlmm_core._native.criterion.level_values import LevelValues
from fastlmm_core._native.criterion.newton import Newton
from fastlmm_core._native.criterion.quadrature import Quadrature
from fastlmm_core._native.criterion.row_forms import row_forms
from fastlmm_core._native.criterion.values import Values
from fastlmm_core._native.rows.refill import RowPlaces
from fastlmm_core._native.rows.responses import ResponseProducts
from fastlmm_core._native.symbolic.supernodes import Supernodes
from fastlmm_core._native.tail.sparse import SparseTail
from fastlmm_core._native.tail.supernodal import SupernodalCholesky
from fastlmm_core._native.tail.tail import DenseTail, EmptyTail
from fastlmm_core.core import Control, Model, Term, cross_products, plan
from fastlmm_core.core.workspaces import Workspaces
from fastlmm_core.errors import InUseError

WORKSPACES = [Evaluator, Newton, DenseTail, EmptyTail, SparseTail, SupernodalCholesky]


def model_of(problem, **control):
    return Model(problem.X, problem.core_terms(), weights=problem.weights, control=Control(**control))


def figures(fit):
    return np.concatenate([fit.theta, fit.beta, [fit.sigma, fit.criterion], *(b.ravel() for b in fit.b)]).tobytes()


@pytest.fixture(scope="module")
def three_sizes():
    """Models of three sizes, responses for each, and what one thread makes of them, to the bit."""
    random = np.random.default_rng(5)
    out = []
    for n, levels, engine in ((120, (12,), "auto"), (600, (40, 25), "dense"), (1200, (60, 50, 9), "sparse")):
        codes = [random.integers(0, q, n) for q in levels]
        X = np.column_stack([np.ones(n), random.normal(size=n)])
        model = Model(X, [Term(c) for c in codes], control=Control(engine=engine))
        Y = [sum(random.normal(size=max(c) + 1)[c] for c in codes) + random.normal(size=n) for _ in range(8)]
        out.append((model, Y, [figures(model.fit(y)) for y in Y]))
    return out


def test_four_threads_of_refits_give_what_one_gives(three_sizes):
    def work(seed):
        order = np.random.default_rng(seed).integers(0, (3, 8), (200, 2))
        return [(size, k, figures(three_sizes[size][0].fit(three_sizes[size][1][k]))) for size, k in order]

    with ThreadPoolExecutor(4) as pool:
        for answers in pool.map(work, range(4)):
            assert all(got == three_sizes[size][2][k] for size, k, got in answers)


def test_many_fits_beside_single_ones(three_sizes):
    model, Y, single = three_sizes[1]
    expected = model.fit_many(Y, start=model.fit(Y[0]).theta)
    with ThreadPoolExecutor(3) as pool:
        many = [pool.submit(model.fit_many, Y, start=model.fit(Y[0]).theta) for _ in range(4)]
        alone = [pool.submit(model.fit, y) for y in Y * 4]
        for future in many:
            np.testing.assert_array_equal(future.result().theta, expected.theta)
        assert [figures(future.result()) for future in alone] == single * 4


def test_an_objective_in_four_threads(three_sizes):
    model, Y, _ = three_sizes[2]
    objective = model.objective(Y[0])
    points = np.random.default_rng(1).uniform(0.2, 2.0, (40, 3))
    expected = [objective.derivatives(at) for at in points]
    with ThreadPoolExecutor(4) as pool:
        for got, right in zip(pool.map(objective.derivatives, points), expected, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(got, right, strict=True))


def test_figures_of_one_fit_asked_for_by_four_threads(three_sizes):
    model, Y, _ = three_sizes[1]
    right = model.fit(Y[0]).complete()
    for _ in range(20):
        fit = model.fit(Y[0])
        ask = [lambda fit=fit: fit.fitted, lambda fit=fit: fit.cond_var()[0], fit.complete, lambda fit=fit: fit.b[0]]
        with ThreadPoolExecutor(4) as pool:
            found = [future.result() for future in [pool.submit(f) for f in ask]]
        np.testing.assert_array_equal(found[0], right.fitted)
        np.testing.assert_array_equal(found[1], right.cond_var()[0])
        np.testing.assert_array_equal(found[3], right.b[0])


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_evaluators_of_one_plan_do_not_answer_from_each_others_factor(engine):
    problem = problems.build("crossed")
    cross = cross_products(problem.y, problem.X, problem.core_terms())
    made = plan(cross, Control(engine))
    here, there = np.array([0.7, 1.1]), np.array([2.0, 0.1])

    def loaded(reml):
        evaluator = made.evaluator(reml)
        made.load(evaluator, cross)
        return evaluator

    one, two = loaded(True), loaded(False)
    right = [loaded(True).modes(here), loaded(False).modes(there)]
    one.value(here)
    two.value(there)  # the tail holds this factor now
    for evaluator, theta, expected in ((one, here, right[0]), (two, there, right[1])):
        for a, b in zip(evaluator.modes(theta), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_workspace_refuses_a_second_caller():
    problem = problems.build("crossed")
    objective = model_of(problem).objective(problem.y)
    refused = []

    def report(*row):
        for call in (objective.evaluator.value, objective.evaluator.modes, objective.newton.minimise):
            with pytest.raises(InUseError, match="is at work in another call"):
                call(np.ones(2))
            refused.append(call)

    theta, _, status = objective.newton.minimise(np.ones(2), report)
    assert status == 0
    assert refused
    objective.evaluator.value(theta)  # and is free again


def test_what_cond_var_left_is_not_read_once_it_is_gone():
    problem = problems.build("crossed")
    evaluator = model_of(problem).objective(problem.y).evaluator
    h, _ = evaluator.cond_var(np.ones(2))
    q = len(h)
    rows = np.zeros(1, np.int64), np.ones((1, 1)), np.zeros((1, 1), np.int64), np.ones((1, 1))
    ptr = np.concatenate([[0], np.ones(q + 1, np.int64)])
    assert np.isfinite(row_forms(evaluator, h, ptr, *rows)).all()
    evaluator.value(np.ones(2))
    with pytest.raises(ValueError, match="call cond_var first"):
        row_forms(evaluator, h, ptr, *rows)


def test_models_objectives_plans_and_terms_pickle_and_copy():
    problem = problems.build("mixed_weights")
    model = model_of(problem)
    fit = model.fit(problem.y)
    objective = model.objective(problem.y)
    value = objective(fit.theta)
    for again in (lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy, copy.copy):
        assert figures(again(model).fit(problem.y)) == figures(fit)
        assert again(objective)(fit.theta) == value
        made = again(objective.plan)
        evaluator = made.evaluator(True)
        made.load(evaluator, objective.cross)
        assert evaluator.value(objective.to_conditioned(fit.theta)) == value
        assert np.array_equal(again(model.products.terms[0]).codes, model.products.terms[0].codes)
        kept = again(fit)
        assert figures(kept) == figures(fit)
        assert np.array_equal(kept.cond_var()[0], fit.cond_var()[0])


@pytest.mark.parametrize("kind", WORKSPACES, ids=lambda kind: kind.__name__)
def test_workspaces_say_that_they_do_not_pickle(kind):
    problem = problems.build("crossed")
    dense, sparse = (model_of(problem, engine=engine).objective(problem.y) for engine in ("dense", "sparse"))
    tree = Supernodes(np.array([1, -1]), np.array([2, 1]))
    found = {
        Evaluator: dense.evaluator,
        Newton: dense.newton,
        DenseTail: dense.plan.tail,
        SparseTail: sparse.plan.tail,
        EmptyTail: EmptyTail(),
        SupernodalCholesky: SupernodalCholesky(np.array([0, 1, 3]), np.array([0, 0, 1]), 1, tree),
    }[kind]
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="is a workspace: pickle or copy the model"):
            attempt(found)
    assert kind.__name__ in repr(found)


def test_supernodes_and_responses_pickle():
    tree = Supernodes(np.array([1, -1]), np.array([2, 1]))
    for again in (pickle.loads(pickle.dumps(tree)), copy.deepcopy(tree), copy.copy(tree)):
        np.testing.assert_array_equal(again.starts, tree.starts)
    rows = Model(np.ones((6, 1)), [Term([0, 0, 1, 1, 2, 2])]).products.rows
    Y = np.arange(6.0)[:, None]
    for again in (pickle.loads(pickle.dumps(rows)), copy.deepcopy(rows), copy.copy(rows)):
        np.testing.assert_array_equal(again(Y)[0], rows(Y)[0])


ABUSE = """
import copy, pickle, sys
import numpy as np
import fastlmm_core.core
from importlib import import_module
module, name = sys.argv[1].rsplit(".", 1)
kind = getattr(import_module(module), name)
x, xx = np.ones(2), np.ones((2, 2))
calls = [(), (None,), (x,), (xx,), (x[:0],), (x, xx, xx), (None, None, None), (x, x, x, 0.0)]
def attempt(f, *given):
    try:
        f(*given)
    except Exception:
        pass
made = []
wrong = [(), (None,), (None, None), ({}, None, 1, 1, True, 0.0, 1), ((), 1), (None, 1), (None, 5, 1e-8), (None,) * 10]
for given in wrong:
    for make in (kind.__new__, kind):
        try:
            made.append(make(kind, *given) if make is kind.__new__ else kind(*given))
        except Exception:
            pass
reduced = lambda t: t.__reduce__(), lambda t: t.__reduce_ex__(2)
for thing in made:
    for f in (repr, str, hash, pickle.dumps, copy.copy, copy.deepcopy, *reduced):
        attempt(f, thing)
    for attribute in dir(thing):
        if attribute.startswith("__") and attribute != "__call__":
            continue
        try:
            found = getattr(thing, attribute)
        except Exception:
            continue
        if callable(found):
            for given in calls:
                attempt(found, *given)
print("alive")
"""


OTHERS = [Quadrature, LevelValues, Callback, Values, RowPlaces, ResponseProducts, Supernodes]


@pytest.mark.parametrize("kind", [*WORKSPACES, *OTHERS], ids=lambda kind: kind.__name__)
def test_no_misuse_ends_the_interpreter(kind):
    """Objects without __init__, or whose __init__ failed, given anything: errors, but the process lives."""
    name = f"{kind.__module__}.{kind.__name__}"
    command = [sys.executable, "-c", ABUSE, name]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr[-500:]
    assert found.stdout.strip() == "alive"


def test_idle_workspaces_are_bounded(monkeypatch):
    problem = problems.build("crossed")
    cross = cross_products(problem.y, problem.X, problem.core_terms())
    pool = Workspaces(True, Control())
    with pool.lent(cross) as one:
        assert one is not None
    with pool.lent(cross) as again, pool.lent(cross) as other:
        assert again is one
        assert other is not one
    monkeypatch.setattr(inspect.getmodule(Workspaces), "KEPT_BYTES", 0)
    with pool.lent(cross), pool.lent(cross), pool.lent(cross) as third:
        assert threading.active_count() >= 1
    with pool.lent(cross), pool.lent(cross), pool.lent(cross) as another:
        assert another is not third


def small(seed, levels=(12, 7)):
    """A model and a response; every seed has the same rows and levels, and other numbers."""
    n, pattern, random = 90, np.random.default_rng(0), np.random.default_rng(seed)
    codes = [pattern.integers(0, q, n) for q in levels]
    X = np.column_stack([np.ones(n), random.normal(size=n)])
    y = sum(random.normal(size=max(c) + 1)[c] for c in codes) + random.normal(size=n)
    return lambda reml=True: Model(X, [Term(c) for c in codes], reml=reml).fit(y)


def workspace_of(fit):
    with fit.workspace() as model:
        return model


@pytest.mark.parametrize("levels", [(12,), (12, 7)])
def test_a_workspace_that_nobody_has_serves_the_next_model_of_its_pattern(levels):
    alone = [small(seed, levels)() for seed in (1, 2)]  # both live: each has its own
    assert workspace_of(alone[0]) is not workspace_of(alone[1])
    expected = [figures(fit) for fit in alone]
    del alone
    first = small(1, levels)()
    model = workspace_of(first)
    assert figures(first) == expected[0]
    first.complete()
    del first
    second = small(2, levels)()
    assert workspace_of(second) is model
    assert figures(second) == expected[1]
    third = small(1, levels)()
    assert workspace_of(third) is not model
    assert figures(third) == expected[0]
    assert workspace_of(small(1, levels)(reml=False)) is not model


def test_a_workspace_is_of_its_pattern_alone():
    """As many levels and rows, met otherwise."""
    fit = small(1)()
    expected = figures(fit)
    del fit
    n, random = 90, np.random.default_rng(4)
    codes = [random.permutation(np.arange(n) % q) for q in (12, 7)]
    y = random.normal(size=n)
    other = Model(np.ones((n, 2)) * [1.0, 0.0] + np.outer(y, [0.0, 1.0]) ** 2, [Term(c) for c in codes]).fit(y)
    assert other.converged
    assert figures(small(1)()) == expected
