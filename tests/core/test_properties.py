"""Identities that hold for every model, on models drawn at random: hypothesis draws the seed and the engine."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import oracle
import problems
from problems import Problem, ProblemTerm

# derandomised: a failure in one run is a failure in the next
settings.register_profile("core", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("core")

seeds = st.integers(0, 10_000)
engines = st.sampled_from(["dense", "sparse"])
criteria = st.booleans()
places = st.sampled_from(["identity", "ordinary", "zero", "term_zero", "singular", "first_zero"])


def drawn(seed, place):
    problem = problems.random_problem(seed)
    return problem, problems.thetas(problem, seed)[place], np.random.default_rng(seed + 1)


def near(value, expected, rtol=1e-10):
    assert abs(value - expected) <= rtol * max(1.0, abs(expected)), (value, expected)


def blocks(problem, theta):
    """theta cut into the terms' parts."""
    ends = np.cumsum([len(oracle.entries(t)) for t in problem.terms])
    return np.split(theta, ends[:-1])


def invertible(rng, k):
    """A (k, k) matrix with singular values between 1/2 and 2."""
    u, v = (np.linalg.qr(rng.normal(size=(k, k)))[0] for _ in range(2))
    return u * rng.uniform(0.5, 2.0, k) @ v


@given(seeds, engines, criteria, places)
def test_order_of_rows(seed, engine, reml, place):
    problem, theta, rng = drawn(seed, place)
    shuffled = problem.rows(rng.permutation(len(problem.y)))
    near(shuffled.objective(reml, engine)(theta), problem.objective(reml, engine)(theta))


@given(seeds, engines, criteria, places)
def test_names_of_levels(seed, engine, reml, place):
    problem, theta, rng = drawn(seed, place)
    terms = []
    for t in problem.terms:
        q = oracle.term_levels(t)
        terms.append(replace(t, codes=rng.permutation(q)[t.codes].astype(np.int32), n_levels=q))
    renamed = problem.but(terms=tuple(terms))
    near(renamed.objective(reml, engine)(theta), problem.objective(reml, engine)(theta))


@given(seeds, engines, criteria, places)
def test_order_of_terms(seed, engine, reml, place):
    problem, theta, rng = drawn(seed, place)
    order = rng.permutation(len(problem.terms))
    parts = blocks(problem, theta)
    reordered = problem.but(terms=tuple(problem.terms[k] for k in order))
    moved = np.concatenate([parts[k] for k in order])
    one, two = problem.objective(reml, engine), reordered.objective(reml, engine)
    near(two(moved), one(theta))
    slopes = blocks(problem, one.gradient(theta))
    expected = np.concatenate([slopes[k] for k in order])
    np.testing.assert_allclose(two.gradient(moved), expected, rtol=1e-8, atol=1e-8 * max(1, np.abs(expected).max()))


@given(seeds, engines, criteria, places, st.floats(-100, 100), st.sampled_from([-3.0, 0.01, 1.0, 250.0]))
def test_affine_change_of_y(seed, engine, reml, place, a, b):
    """`y -> a + b y` shifts the criterion by `2 nu log|b|` (every drawn X has an intercept)."""
    problem, theta, _ = drawn(seed, place)
    offset = None if problem.offset is None else b * problem.offset
    changed = problem.but(y=a + b * problem.y, offset=offset)
    nu = len(problem.y) - (len(oracle.independent_columns(problem.X)) if reml else 0)
    shift = 2 * nu * np.log(abs(b))
    near(changed.objective(reml, engine)(theta), problem.objective(reml, engine)(theta) + shift)


@given(seeds, engines, criteria, places)
def test_offset_is_subtracted(seed, engine, reml, place):
    problem, theta, rng = drawn(seed, place)
    offset = rng.normal(size=len(problem.y))
    changed = problem.but(y=problem.y + offset, offset=offset if problem.offset is None else problem.offset + offset)
    near(changed.objective(reml, engine)(theta), problem.objective(reml, engine)(theta))


@given(seeds, engines, criteria, places)
def test_reparametrised_X(seed, engine, reml, place):
    """`X -> X A` leaves ML alone and adds `2 log|det A|` to REML."""
    problem, theta, rng = drawn(seed, place)
    X = problem.X[:, oracle.independent_columns(problem.X)]
    A = invertible(rng, X.shape[1])
    one, two = (problem.but(X=np.ascontiguousarray(x)).objective(reml, engine) for x in (X, X @ A))
    near(two(theta), one(theta) + (2 * np.linalg.slogdet(A)[1] if reml else 0.0))


@given(seeds, engines, criteria, places)
def test_reparametrised_z(seed, engine, reml, place):
    """`z -> z T` in an unstructured term is `Sigma -> T^-1 Sigma T^-T`."""
    problem, theta, rng = drawn(seed, place)
    terms, moved = [], []
    for term, L in zip(problem.terms, oracle.theta_to_factors(problem.terms, theta), strict=True):
        if term.cov == "us":
            T = invertible(rng, L.shape[0])
            term = replace(term, z=oracle.term_z(term) @ T)
            L = np.linalg.qr(np.linalg.solve(T, L).T, mode="r").T
        terms.append(term)
        moved += [L[i, j] for i, j in oracle.entries(term)]
    changed = problem.but(terms=tuple(terms))
    near(changed.objective(reml, engine)(np.array(moved)), problem.objective(reml, engine)(theta))


@given(seeds, engines, criteria, places)
def test_weights_are_scaled_rows(seed, engine, reml, place):
    """Weights w are rows scaled by sqrt(w), up to `sum log w`: Var(eps_i) = sigma^2 / w_i."""
    problem, theta, rng = drawn(seed, place)
    w = rng.integers(1, 6, len(problem.y)).astype(float) if seed % 2 else rng.uniform(0.1, 4, len(problem.y))
    root = np.sqrt(w)
    y = problem.y if problem.offset is None else problem.y - problem.offset
    scaled = Problem(
        y * root,
        problem.X * root[:, None],
        tuple(replace(t, z=oracle.term_z(t) * root[:, None]) for t in problem.terms),
    )
    expected = scaled.objective(reml, engine)(theta) - np.log(w).sum()
    near(problem.but(weights=w).objective(reml, engine)(theta), expected)


@given(seeds, engines, criteria, places)
def test_unit_weights_are_no_weights(seed, engine, reml, place):
    problem, theta, _ = drawn(seed, place)
    one = problem.but(weights=np.ones(len(problem.y))).objective(reml, engine)(theta)
    near(one, problem.but(weights=None).objective(reml, engine)(theta))


@given(seeds, engines, criteria, places)
def test_unobserved_levels_change_nothing(seed, engine, reml, place):
    problem, theta, _ = drawn(seed, place)
    terms = tuple(replace(t, n_levels=int(t.codes.max()) + 3) for t in problem.terms)
    tight = tuple(replace(t, n_levels=int(t.codes.max()) + 1) for t in problem.terms)
    one, two = (problem.but(terms=t).objective(reml, engine) for t in (terms, tight))
    near(one(theta), two(theta))


@given(seeds, engines)
def test_a_copy_of_the_codes_is_the_same_term(seed, engine):
    """Terms may share one codes array; that is an opportunity, never a difference."""
    rng = np.random.default_rng(seed)
    problem = problems.build("shared_codes")
    copied = problem.but(terms=tuple(replace(t, codes=t.codes.copy()) for t in problem.terms))
    theta = rng.normal(size=problem.n_theta)
    near(copied.objective(True, engine)(theta), problem.objective(True, engine)(theta))


@given(seeds, engines)
def test_shared_diagonal_terms_are_one_diagonal_term(seed, engine):
    """`(1 | g) + (0 + x | g)` is `(x || g)`."""
    rng = np.random.default_rng(seed)
    n = 60
    codes, z = problems.all_levels(rng, n, 8), problems.covariates(rng, n, 2)
    X = problems.fixed(rng, n, 2)
    one = Problem(rng.normal(size=n), X, (ProblemTerm(codes, z, "diag"),))
    two = one.but(terms=(ProblemTerm(codes), ProblemTerm(codes, z[:, 1:])))
    theta = rng.normal(size=2)
    near(one.objective(True, engine)(theta), two.objective(True, engine)(theta))


# ------------------------------------------------------------------------------------------------- whole fits


@settings(max_examples=10)
@given(seeds)
def test_a_fit_of_shuffled_rows_levels_and_terms(seed):
    problem = problems.random_problem(seed)
    # with as many effects as rows the residual variance can go to zero, and the criterion has no minimum
    effects = sum(oracle.term_levels(t) * (1 if t.z is None else t.z.shape[1]) for t in problem.terms)
    assume(len(problem.y) > problem.X.shape[1] + effects)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(problem.y))
    changed = problem.rows(rows)
    order = rng.permutation(len(problem.terms))
    names = [rng.permutation(oracle.term_levels(t)) for t in problem.terms]
    terms = [replace(t, codes=new[t.codes].astype(np.int32)) for t, new in zip(changed.terms, names, strict=True)]
    fit, moved = problem.fit(), changed.but(terms=tuple(terms[k] for k in order)).fit()
    near(moved.criterion, fit.criterion, 1e-9)
    spread = fit.sigma
    np.testing.assert_allclose(moved.beta, fit.beta, rtol=1e-4, atol=1e-4 * spread)
    np.testing.assert_allclose(moved.fitted, fit.fitted[rows], rtol=1e-4, atol=1e-4 * spread)
    if any(np.array_equal(a.codes, b.codes) for a, b in combinations(problem.terms, 2)):
        return  # two intercepts on one factor share their variance in any proportion: L is not determined
    for place, k in enumerate(order):
        np.testing.assert_allclose(moved.L[place], fit.L[k], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(moved.b[place][names[k]], fit.b[k], rtol=1e-3, atol=1e-3 * spread)


@settings(max_examples=10)
@given(seeds)
def test_a_pickled_fit_is_the_same_fit(seed):
    fit = problems.random_problem(seed).fit()
    again = pickle.loads(pickle.dumps(fit))
    for field in ("theta", "beta", "cov_beta", "fitted"):
        np.testing.assert_array_equal(getattr(again, field), getattr(fit, field))
    for field in ("sigma", "criterion", "reml", "n", "rank", "is_singular", "converged", "message"):
        assert getattr(again, field) == getattr(fit, field)
    for field in ("L", "b"):
        for one, two in zip(getattr(again, field), getattr(fit, field), strict=True):
            np.testing.assert_array_equal(one, two)
    for one, two in zip(again.cond_var(), fit.cond_var(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-300)
    np.testing.assert_array_equal(again.log.theta, fit.log.theta)
    np.testing.assert_array_equal(again.log.criterion, fit.log.criterion)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8])
def test_any_integer_type_of_codes(dtype):
    problem = problems.build("crossed")
    changed = problem.but(terms=tuple(replace(t, codes=t.codes.astype(dtype)) for t in problem.terms))
    assert changed.objective()(np.ones(2)) == problem.objective()(np.ones(2))
