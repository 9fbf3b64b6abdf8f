"""The exact Hessian of several grouping factors, and what stands beside it, against dense algebra and differences."""

from types import SimpleNamespace

import numpy as np
import pytest

import oracle
from fastlmm_core._native.criterion.joint_information import joint_information
from fastlmm_core.core import Model, Term
from fastlmm_core.core.slopes import slopes_of
from fastlmm_core.inference.information import observed_hessian

SHAPES = [
    ((9, 5), (1, 1), 1),
    ((12, 4, 3), (1, 1, 1), 2),
    ((8, 5), (2, 1), 3),
    ((7, 4), (1, 2), 2),
    ((6, 5), (3, 2), 0),
]


def crossed(levels, widths, p, weighted, seed=0):
    """A crossed model with that many levels and columns a factor: objective and the oracle's model."""
    rng = np.random.default_rng(seed)
    n = 120
    terms = []
    for q, l in zip(levels, widths, strict=True):
        z = np.column_stack([np.ones(n), rng.normal(size=(n, l - 1))]) if l > 1 else None
        terms.append(Term(rng.permutation(np.arange(n) % q), z, n_levels=q))
    X = np.column_stack([np.ones(n), rng.normal(size=(n, p - 1))]) if p else np.empty((n, 0))
    y = sum(rng.normal(size=q)[term.codes] for q, term in zip(levels, terms, strict=True)) + rng.normal(size=n)
    weights = rng.uniform(0.5, 2.0, n) if weighted else None
    return SimpleNamespace(y=y, X=X, terms=terms, weights=weights, offset=None)


def objective(model, reml):
    return Model(model.X, model.terms, weights=model.weights, reml=reml).objective(model.y)


@pytest.mark.parametrize("reml", [True, False], ids=["reml", "ml"])
@pytest.mark.parametrize(("levels", "widths", "p"), SHAPES)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_the_hessian_is_the_oracles(levels, widths, p, weighted, reml):
    model = crossed(levels, widths, p, weighted)
    at = objective(model, reml)
    rng = np.random.default_rng(1)
    start = at.to_user(at.conditioned_start + 0.1 * rng.normal(size=at.n_theta))
    no_first = np.where(np.arange(at.n_theta) == 0, 0.0, start)  # variances of zero are ordinary points
    no_last = np.where(np.arange(at.n_theta) == at.n_theta - 1, 0.0, start)
    to = at.theta_map.to_conditioned
    for theta in (start, no_first, no_last):
        hessian = joint_information(at.evaluator, at.to_conditioned(theta))[0]
        expected = oracle.exact_hessian(oracle.evaluate(model, theta, reml=reml)).astype(float)
        np.testing.assert_allclose(to.T @ hessian @ to, expected, rtol=1e-9, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("reml", [True, False], ids=["reml", "ml"])
@pytest.mark.parametrize(("levels", "widths", "p"), SHAPES)
def test_it_is_what_differences_and_solves_give(levels, widths, p, reml):
    at = objective(crossed(levels, widths, p, True, seed=2), reml)
    theta = at.conditioned_start
    hessian, slopes, of_r2, factor, r2 = joint_information(at.evaluator, theta)
    np.testing.assert_allclose(hessian, observed_hessian(at, theta), rtol=1e-8, atol=1e-8 * np.abs(hessian).max())
    door = at.at_conditioned(theta)
    gamma, ld = door.modes.gamma, door.modes.ld
    np.testing.assert_allclose(factor, ld[:p, :p], atol=1e-13)
    assert r2 == pytest.approx(ld[-1, -1] ** 2, rel=1e-12)
    parts = []
    for group, products in zip(at.cross.groups, door.dense_products(), strict=True):
        t = products[:, p] - products[:, :p] @ gamma
        parts.append((products[:, :p], t.reshape(group.n_levels, group.n_columns)))
    expected_slopes, expected_r2 = slopes_of(at.theta_map.index, theta, parts, np.ascontiguousarray(ld[:p, :p]))
    np.testing.assert_allclose(slopes, expected_slopes, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(of_r2, expected_r2, rtol=1e-9, atol=1e-11)


def test_the_workspace_answers_afterwards():
    at = objective(crossed((9, 5), (1, 1), 2, False), True)
    theta = at.conditioned_start
    value, gradient, hessian = at.evaluator.derivatives(theta)
    joint_information(at.evaluator, theta)
    again = at.evaluator.derivatives(theta)
    assert again[0] == value
    np.testing.assert_array_equal(again[1], gradient)
    np.testing.assert_array_equal(again[2], hessian)


def test_what_it_is_not_for_is_refused():
    rng = np.random.default_rng(0)
    single = Model(None, [Term(rng.integers(0, 6, 50))]).objective(rng.normal(size=50))
    with pytest.raises(ValueError, match="others of independent levels"):
        joint_information(single.evaluator, np.ones(1))
