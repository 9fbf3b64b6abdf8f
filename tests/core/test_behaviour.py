"""Manners: arguments stay as they were, threads do not meet, Ctrl-C is heard, and importing loads little."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import problems
from fastlmm_core.core import Control, Term, fit
from problems import Problem, ProblemTerm


def same_fit(one, two):
    assert one.criterion == two.criterion
    for field in ("theta", "beta", "cov_beta", "fitted"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    for a, b in zip(one.b, two.b, strict=True):
        np.testing.assert_array_equal(a, b)


def large(n=60_000, levels=(1500, 900), seed=3):
    """A crossed model whose fit takes long enough to be interrupted."""
    rng = np.random.default_rng(seed)
    terms = tuple(ProblemTerm(problems.all_levels(rng, n, q)) for q in levels)
    X = problems.fixed(rng, n, 3)
    return Problem(problems.simulate(rng, X, terms, None), X, terms)


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_arguments_are_not_written_to(engine):
    problem = problems.build("mixed_weights")
    arrays = [problem.y, problem.X, problem.weights, problem.offset]
    arrays += [a for t in problem.terms for a in (t.codes, t.z) if a is not None]
    copies = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    problem.fit(engine=engine).cond_var()
    objective = problem.objective(engine=engine)
    theta = np.ones(problem.n_theta)
    theta.flags.writeable = False
    objective(theta)
    objective.gradient(theta)
    objective.hessian(theta)
    for a, b in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(a, b)


def test_results_do_not_alias_the_arguments_or_each_other():
    problem = problems.build("mixed_weights")
    objective = problem.objective()
    theta = problems.thetas(problem)["ordinary"]
    g, H = objective.gradient(theta), objective.hessian(theta)
    kept = g.copy(), H.copy()
    objective.gradient(2 * theta)
    objective.hessian(2 * theta)
    np.testing.assert_array_equal(g, kept[0])
    np.testing.assert_array_equal(H, kept[1])


def test_layouts_and_types_of_arguments_do_not_matter():
    problem = problems.build("mixed_weights")
    expected = problem.fit()
    strided = [replace(t, codes=np.repeat(t.codes, 2)[::2].astype(np.int64)) for t in problem.terms]
    fortran = problem.but(
        X=np.asfortranarray(problem.X),
        y=np.repeat(problem.y, 2)[::2],
        terms=tuple(t if t.z is None else replace(t, z=np.asfortranarray(t.z)) for t in strided),
    )
    same_fit(fortran.fit(), expected)
    terms = [Term(t.codes.tolist(), None if t.z is None else t.z.tolist(), t.cov) for t in problem.terms]
    lists = fit(
        problem.y.tolist(),
        problem.X.tolist(),
        terms,
        weights=problem.weights.tolist(),
        offset=problem.offset.tolist(),
        control=Control(engine="auto"),
    )
    same_fit(lists, expected)


def test_one_covariate_may_be_a_vector():
    rng = np.random.default_rng(0)
    codes, x = problems.all_levels(rng, 50, 6), rng.normal(size=50)
    X, y = problems.fixed(rng, 50, 2), rng.normal(size=50)
    same_fit(fit(y, X, [Term(codes, x)]), fit(y, X, [Term(codes, x[:, None])]))


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_a_fit_repeats_itself_to_the_last_bit(engine):
    problem = problems.build("mixed")
    same_fit(problem.fit(engine=engine), problem.fit(engine=engine))


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_fits_in_two_threads_are_the_fits_of_one(engine):
    cases = [problems.build(name) for name in ("mixed", "mixed_weights", "crossed_three", "slope")]
    alone = [p.fit(engine=engine, threads=1) for p in cases]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            together = list(pool.map(lambda p: p.fit(engine=engine, threads=1), cases))
            for one, two in zip(alone, together, strict=True):
                same_fit(one, two)


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_one_objective_each_in_two_threads(engine):
    """Two objectives of one model are two workspaces."""
    problem = problems.build("mixed")
    points = [np.random.default_rng(k).normal(size=problem.n_theta) for k in range(20)]
    expected = [problem.objective(engine=engine, threads=1)(t) for t in points]

    def values(_):
        objective = problem.objective(engine=engine, threads=1)
        return [objective(t) for t in points]

    with ThreadPoolExecutor(2) as pool:
        assert all(found == expected for found in pool.map(values, range(4)))


def test_number_of_threads_does_not_change_the_answer():
    problem = large(4000, (300, 200))
    one, two = problem.fit(threads=1), problem.fit(threads=2)
    np.testing.assert_allclose(one.criterion, two.criterion, rtol=1e-12)
    np.testing.assert_allclose(one.theta, two.theta, rtol=1e-6)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are delivered differently there")
@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_ctrl_c_is_heard_and_leaves_nothing_half_done(engine, ctrl_c):
    problem = large()
    control = {"engine": engine, "threads": 1}
    objective = problem.objective(**control)
    begin = time.perf_counter()
    objective.gradient(objective.start)
    one_evaluation = time.perf_counter() - begin

    timer = threading.Timer(0.05, ctrl_c)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - whichever of the fits is running
        timer.start()
        begin = time.perf_counter()
        while time.perf_counter() - begin < 60:
            problem.fit(**control)
    heard_after = time.perf_counter() - begin
    timer.join()
    # between evaluations: a handful of them at most may pass (set-up included) before it is heard
    assert heard_after < 0.05 + 10 * one_evaluation + 1.0

    small = problems.build("mixed")
    same_fit(small.fit(**control), small.fit(**control))
    assert problem.fit(**control).converged


def test_importing_the_core_loads_neither_pandas_nor_formulaic():
    code = "import sys, fastlmm_core.core; print(sorted({'pandas', 'formulaic', 'narwhals'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_fit_prints_nothing(capfd):
    problems.build("slope").fit()
    assert capfd.readouterr() == ("", "")
