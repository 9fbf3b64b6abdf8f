"""The solver's second level: its matrix, its aggregates, and what it is for."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from fastlmm_core.core import Control, Term, iterative, objective
from fastlmm_core.core.crossprod import DesignProducts
from fastlmm_core.core.iterative import system as systems
from fastlmm_core.core.iterative.log_determinant import log_determinant
from fastlmm_core.core.iterative.problem import crossed_problem
from fastlmm_core.core.iterative.second_level import aggregates, inverse_and_log_det, neighbours
from fastlmm_core.core.iterative.system import System, block_roots
from fastlmm_core.errors import NumericalError


def ring(n=40_000, q=400, m=600, slopes=False, third=0):
    """Levels of two factors around a circle, which meet only where they are near; and a few that group the second's."""
    rng = np.random.default_rng(7)
    place = rng.random(q)
    lead = rng.integers(0, q, n)
    tail = ((place[lead] + 0.01 * rng.normal(size=n)) % 1.0 * m).astype(int)
    x = rng.normal(size=n)
    X = np.column_stack([np.ones(n), x])
    terms = [Term(lead, np.column_stack([X, x**2]), n_levels=q), Term(tail, X if slopes else None, n_levels=m)]
    if third:
        terms.append(Term(tail * third // m, n_levels=third))
    y = 2.0 * rng.normal(size=q)[lead] + 2.0 * rng.normal(size=m)[tail] + x + rng.normal(size=n)
    return y, X, terms


def at(y, X, terms, theta):
    design = DesignProducts(X, terms)
    problem = crossed_problem(design, design.response(y), Control(threads=1))
    index = design.theta_map.index
    value = np.where(index[:, 1] == index[:, 2], theta, 0.3)
    return problem, System(problem, value)


@pytest.mark.parametrize(("slopes", "third"), [(False, 0), (True, 9), (False, 80)])
def test_the_correction_is_that_of_dense_matrices(slopes, third):
    problem, system = at(*ring(8000, 60, 200, slopes, third), 1.5)
    S = np.eye(problem.rows.m) + system.lam_t(system.product(system.lam(np.eye(problem.rows.m))))
    parts = problem.second.corrections(system.K, system.tail_L)
    expected = np.zeros_like(S)
    assert len(problem.second.partitions) == 1 + (third > 0)
    for labels in (partition.labels for partition in problem.second.partitions):
        P = np.zeros((problem.rows.m, labels.max() + 1))
        P[labels >= 0, labels[labels >= 0]] = 1.0
        expected += P @ np.linalg.solve(P.T @ S @ P, P.T)
    r = np.random.default_rng(0).normal(size=(problem.rows.m, 3))
    np.testing.assert_allclose(sum(part(r) for part in parts), expected @ r, rtol=1e-8, atol=1e-10)
    if third == 9:  # few levels are taken as they are
        assert len(np.unique(labels[-9:])) == 9


def test_what_has_no_inverse_is_refused():
    root = np.random.default_rng(0).normal(size=(5, 5))
    E = root @ root.T + np.eye(5)
    inverse, log_det = inverse_and_log_det(E)
    np.testing.assert_allclose(inverse @ E, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(E)[1])
    for at, value in ((3, -1e-9), (2, np.nan)):
        bad = E.copy()
        bad[at, at] = value
        with pytest.raises(NumericalError, match=f"from sum {at + 1} of 5"):
            inverse_and_log_det(bad)


@pytest.mark.parametrize("l", [1, 2])
def test_a_level_without_a_positive_block_is_named(l):
    blocks = np.random.default_rng(0).normal(size=(4, l, l))
    blocks = blocks @ blocks.transpose(0, 2, 1) + np.eye(l)
    roots = block_roots(blocks, "a tail factor")
    np.testing.assert_allclose(roots @ roots.transpose(0, 2, 1), blocks, rtol=1e-14)
    for value in (-1e-12, np.nan):
        blocks[2, -1, -1] = value
        with pytest.raises(NumericalError, match="level 2 of a tail factor"):
            block_roots(blocks, "a tail factor")


@pytest.mark.parametrize("third", [0, 12])
def test_a_hard_graph_takes_few_iterations(third):
    problem, system = at(*ring(third=third), 2.0)
    b = np.random.default_rng(1).normal(size=(problem.rows.m, 8))
    x = system.solve(b, None, 1e-10)
    assert system.longest <= systems.PATIENCE + systems.LOOK  # the first solve found out early
    alone = System(problem, system.theta)
    assert alone.coarse
    again = alone.solve(b, None, 1e-10)
    assert alone.iterations <= systems.PATIENCE
    np.testing.assert_allclose(again, x, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(alone.apply(again), b, atol=1e-7)
    problem.second.wanted = False
    plain = System(problem, system.theta)
    _, iterations, _ = systems.block_pcg(plain.apply, plain.jacobi, b, None, 1e-10)
    assert iterations > 2 * alone.iterations


def test_fits_of_a_hard_graph():
    y, X, terms = ring(20_000, 200, 300)
    terms[0] = Term(terms[0].codes, n_levels=200)
    found = iterative.fit(y, X, terms, seed=2)
    _, gradient, hessian = objective(y, X, terms).derivatives(found.theta)
    step = np.linalg.solve(hessian, gradient)
    assert (np.abs(step) < 4.0 * found.monte_carlo.theta_se + 1e-5 * found.monte_carlo.theta_sd).all()
    assert found.monte_carlo.longest <= systems.PATIENCE + systems.LOOK
    other = iterative.fit(y, X, terms, seed=2, threads=2)
    np.testing.assert_array_equal(other.theta, found.theta)


def test_an_easy_graph_is_left_alone():
    rng = np.random.default_rng(3)
    n, q, m = 20_000, 800, 500
    y, codes = rng.normal(size=n), (rng.integers(0, q, n), rng.integers(0, m, n))
    problem, system = at(y, np.ones((n, 1)), [Term(codes[0], n_levels=q), Term(codes[1], n_levels=m)], 0.5)
    system.solve(rng.normal(size=(problem.rows.m, 8)), None, 1e-10)
    assert not problem.second.wanted
    assert not system.coarse


@pytest.mark.parametrize(("slopes", "third"), [(False, 0), (True, 80), (True, 9)])
def test_the_log_determinant_beside_a_second_level(slopes, third):
    problem, system = at(*ring(16_000, 160, 400, slopes, third), 2.0)
    S = np.eye(problem.rows.m) + system.lam_t(system.product(system.lam(np.eye(problem.rows.m))))
    exact = np.linalg.slogdet(S)[1]
    without = [log_determinant(system, seed, 1)[1] for seed in range(3)]
    system.coarse = problem.second.corrections(system.K, system.tail_L)
    found = np.array([log_determinant(system, seed, 1) for seed in range(20)])
    errors, claims = found[:, 0] - exact, found[:, 1]
    assert abs(errors.mean()) < 3.0 * errors.std(ddof=1) / np.sqrt(20) + 1e-9 * abs(exact)
    assert np.sqrt((errors**2).mean()) < 1.6 * np.sqrt((claims**2).mean()) + 1e-9 * abs(exact)
    assert np.median(claims) < 0.5 * np.median(without)


def test_the_log_determinant_of_levels_that_are_all_in_the_second_level_is_exact():
    problem, system = at(*ring(8000, 200, 60, slopes=True, third=9), 2.0)
    system.coarse = problem.second.corrections(system.K, system.tail_L)
    S = np.eye(problem.rows.m) + system.lam_t(system.product(system.lam(np.eye(problem.rows.m))))
    value, error = log_determinant(system, 0, 1)
    np.testing.assert_allclose(value, np.linalg.slogdet(S)[1], rtol=1e-12)
    assert error < 1e-10


def test_aggregates_follow_the_graph():
    chain = np.arange(99)
    half = csr_array((np.ones(99), (chain, chain + 1)), shape=(100, 100))
    labels = aggregates(csr_array(half + half.T), 12)
    assert labels.min() == 0
    assert labels.max() < 30
    sizes = np.bincount(labels)
    runs = 1 + np.count_nonzero(np.diff(labels))
    assert runs == len(sizes)  # each is one piece of the chain
    apart = aggregates(csr_array((50, 50)), 5)
    assert len(np.unique(apart[apart >= 0])) == 10
    assert (apart < 0).sum() == 40


def test_neighbours_share_leading_levels():
    _, _, terms = ring(5000, 50, 80)
    design = DesignProducts(None, terms)
    problem = crossed_problem(design, design.response(ring(5000, 50, 80)[0]), Control(threads=1))
    graph = neighbours(problem.rows, 0, problem.groups)
    a, b = graph.nonzero()
    together = np.zeros((50, 80))
    together[terms[0].codes, terms[1].codes] = 1.0
    assert ((together.T @ together)[a, b] > 0).all()
    assert (a != b).all()
