"""The row kernels: cells of one row each, tails wider than 16-bit numbers reach, and any number of threads."""

import numpy as np
import pytest

from fastlmm_core.core import Control, Objective, Term, cross_products
from fastlmm_core.core.criterion import one_blas_thread
from kernel_oracle import Problem, both, diagonal_blocks


def distinct(levels, n=70, seed=0):
    """Crossed intercepts in which no level of the first factor meets a level of another one twice."""
    rng = np.random.default_rng(seed)
    q, k = levels[:2]
    required = np.column_stack([np.arange(q), np.arange(q) % k])  # every level occurs
    left = np.setdiff1d(np.arange(q * k), required @ (k, 1))
    keys = np.concatenate([required @ (k, 1), rng.choice(left, n - q, replace=False)])
    first, second = keys // k, keys % k
    codes = [first, second, *((first + second) % other for other in levels[2:])]
    terms = tuple(Term(c, n_levels=h) for c, h in zip(codes, levels, strict=True))
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    return Problem(rng.normal(size=n) + rng.normal(size=q)[first], X, terms, None)


@pytest.mark.parametrize("engine", ["dense", "sparse"])
@pytest.mark.parametrize("reml", [True, False], ids=["REML", "ML"])
@pytest.mark.parametrize("levels", [(20, 9), (20, 7, 8)], ids=["two factors", "three factors"])
def test_cells_of_one_row(levels, reml, engine):
    objective, dense = both(distinct(levels), reml, engine)
    assert (objective.evaluator.values.cells == 1.0).all()
    for seed in range(3):
        theta = dense.random_theta(seed)
        value, gradient, hessian = objective.evaluator.derivatives(theta)
        expected_gradient, expected_hessian = dense.derivatives(theta)
        np.testing.assert_allclose(value, dense.value(theta), rtol=1e-11)
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-8 * np.abs(expected_gradient).max())
        np.testing.assert_allclose(hessian, expected_hessian, atol=1e-8 * np.abs(expected_hessian).max())
        covariance = dense.covariance(theta)
        lead, tail = objective.evaluator.cond_var(theta)
        np.testing.assert_allclose(lead.ravel(), covariance.diagonal()[: dense.lead_size], atol=1e-11)
        for places, got in zip(dense.places, tail, strict=True):
            expected = diagonal_blocks(covariance, dense.lead_size + np.sort(places), 1)
            np.testing.assert_allclose(got, expected, atol=1e-11)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_a_tail_wider_than_short_numbers(weighted):
    """70,000 independent groups of two levels with two rows each, so that V is a stack of 4 x 4 blocks."""
    groups, rows = 70_000, 4
    rng = np.random.default_rng(3)
    inner, outer = np.arange(groups * rows) // 2, np.arange(groups * rows) // rows
    y = rng.normal(size=groups * rows) + rng.normal(size=2 * groups)[inner]
    w = rng.uniform(0.5, 2.0, groups * rows) if weighted else None
    objective = Objective(cross_products(y, None, [Term(inner), Term(outer)], weights=w), False, Control("sparse"))
    assert objective.plan.tail.m == groups
    e = y / np.linalg.norm(y if w is None else np.sqrt(w / w.mean()) * y)
    variance = np.ones((groups, rows)) if w is None else 1.0 / (w / w.mean()).reshape(groups, rows)
    same_inner, same_outer = np.kron(np.eye(2), np.ones((2, 2))), np.ones((rows, rows))
    theta = np.array([0.8, 0.6])
    V = variance[:, :, None] * np.eye(rows) + theta[0] ** 2 * same_inner + theta[1] ** 2 * same_outer
    inverse = np.linalg.inv(V)
    py = np.einsum("brc,bc->br", inverse, e.reshape(groups, rows))
    r2 = np.sum(py * e.reshape(groups, rows))
    expected = [
        2.0 * t * (np.einsum("brc,cr->", inverse, d) - len(y) / r2 * np.einsum("br,rc,bc->", py, d, py))
        for t, d in zip(theta, (same_inner, same_outer), strict=True)
    ]
    _, gradient, _ = objective.evaluator.derivatives(theta)
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)
    lead, _ = objective.evaluator.cond_var(theta)
    prior = theta[0] ** 2 * np.repeat(np.eye(2), 2, axis=1)  # Cov(b, y) of a group's two inner levels
    np.testing.assert_allclose(
        lead.reshape(groups, 2), theta[0] ** 2 - np.einsum("ir,brc,ic->bi", prior, inverse, prior), rtol=1e-10
    )


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_threads_do_not_change_a_bit(engine):
    given = distinct((400, 300), n=20_000)
    found = []
    for threads in (1, 2, 3):
        objective = given.model(engine=engine, threads=threads).objective(given.y)
        assert objective.plan.threads == threads
        with one_blas_thread():
            found.append(objective.evaluator.derivatives(np.array([0.7, 0.4])))
    for value, gradient, hessian in found[1:]:
        assert value == found[0][0]
        np.testing.assert_array_equal(gradient, found[0][1])
        np.testing.assert_array_equal(hessian, found[0][2])
