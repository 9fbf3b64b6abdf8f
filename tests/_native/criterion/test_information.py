"""Slopes of the fixed effects' covariance and the exact Hessian, against dense NumPy and differences."""

import numpy as np
import pytest

from fastlmm_core._native.criterion.information import (
    assembled,
    contrast_df,
    group_slopes,
    level_information,
    pseudo_inverse,
)
from fastlmm_core.core import Model, Term
from fastlmm_core.core.criterion import Objective


def one_factor(l, p, weighted, seed=0, split=False):
    """A model with slopes on one factor: `split` has a term a column."""
    rng = np.random.default_rng(seed)
    n, q = 90, 11
    codes = rng.integers(0, q, n)
    z = np.column_stack([np.ones(n), rng.normal(size=(n, l - 1))]) if l > 1 else None
    X = np.column_stack([np.ones(n), rng.normal(size=(n, p - 1))]) if p else None
    terms = [Term(codes, z[:, j], n_levels=q) for j in range(l)] if split else [Term(codes, z, n_levels=q)]
    y = rng.normal(size=q)[codes] + rng.normal(size=n)
    return y, X, terms, rng.uniform(0.5, 2.0, n) if weighted else None


def objective(l, p, weighted, reml, **options) -> Objective:
    y, X, terms, w = one_factor(l, p, weighted, **options)
    return Model(X, terms, weights=w, reml=reml).objective(y)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(
    ("l", "p", "weighted"), [(1, 1, False), (1, 3, True), (2, 2, False), (3, 2, True), (2, 0, False)]
)
def test_the_hessian_is_that_of_six_point_differences(l, p, weighted, reml):
    model = objective(l, p, weighted, reml)
    rng = np.random.default_rng(l)
    theta = model.conditioned_start + 0.1 * rng.normal(size=model.n_theta)
    for at in (theta, np.where(np.arange(len(theta)) == 0, 0.0, theta)):  # a variance of zero is an ordinary point
        hessian, *_ = level_information(model.evaluator, at)
        step = 2e-3
        weights = np.array([-1.0, 9.0, -45.0, 45.0, -9.0, 1.0]) / 60.0
        moves = (-3, -2, -1, 1, 2, 3)
        for a in range(len(at)):
            unit = step * np.eye(len(at))[a]
            gradients = [model.evaluator.derivatives(at + m * unit)[1] for m in moves]
            expected = weights @ gradients / step
            np.testing.assert_allclose(hessian[a], expected, rtol=1e-7, atol=1e-7 * np.abs(hessian).max())


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("reml", [True, False])
def test_slopes_are_those_of_the_dense_products(reml, split):
    model = objective(3, 2, True, reml, split=split)
    theta = model.conditioned_start
    hessian, slopes, of_r2, factor, r2 = level_information(model.evaluator, theta)
    at = model.at_conditioned(theta)
    products, modes = at.dense_products()[0], at.modes
    np.testing.assert_allclose(factor, modes.ld[:2, :2], atol=1e-14)
    assert r2 == pytest.approx(modes.ld[2, 2] ** 2)
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-9, atol=1e-9)
    q, index = 11, model.theta_map.index
    x = (products[:, :2] @ np.linalg.inv(factor).T).reshape(q, 3, 2)
    t = (products[:, 2] - products[:, :2] @ modes.gamma).reshape(q, 3)
    lam = np.zeros((3, 3))
    lam[index[:, 1], index[:, 2]] = theta
    for a, (_, r, c) in enumerate(index):
        moved = np.outer(np.eye(3)[r], lam[:, c])
        moved = moved + moved.T
        np.testing.assert_allclose(slopes[a], np.einsum("irx,rs,isy->xy", x, moved, x), atol=1e-12)
        assert of_r2[a] == pytest.approx(-np.einsum("ir,rs,is->", t, moved, t))
    again = group_slopes(
        products[:, :2],
        np.ascontiguousarray(t),
        np.ascontiguousarray(factor),
        lam,
        index[:, 1].copy(),
        index[:, 2].copy(),
    )
    np.testing.assert_allclose(again[0], slopes, atol=1e-12)
    np.testing.assert_allclose(again[1], of_r2, atol=1e-12)


def test_many_columns_go_through_blas():
    model = objective(2, 6, False, True)
    theta = model.conditioned_start
    _, slopes, *_ = level_information(model.evaluator, theta)
    at = model.at_conditioned(theta)
    x = (at.dense_products()[0][:, :6] @ np.linalg.inv(at.modes.ld[:6, :6]).T).reshape(11, 2, 6)
    moved = np.array([[2.0 * theta[0], theta[1]], [theta[1], 0.0]])
    np.testing.assert_allclose(slopes[0], np.einsum("irx,rs,isy->xy", x, moved, x), atol=1e-12)


def test_what_it_is_not_for_is_refused():
    rng = np.random.default_rng(0)
    codes, other = rng.integers(0, 6, 50), rng.integers(0, 5, 50)
    crossed = Model(None, [Term(codes), Term(other)]).objective(rng.normal(size=50))
    with pytest.raises(ValueError, match="one grouping factor"):
        level_information(crossed.evaluator, np.ones(2))
    with pytest.raises(ValueError, match="do not match"):
        group_slopes(np.ones((4, 1)), np.ones((3, 2)), np.eye(1), np.eye(2), np.zeros(1, int), np.zeros(1, int))
    with pytest.raises(ValueError, match="no element"):
        group_slopes(np.ones((6, 1)), np.ones((3, 2)), np.eye(1), np.eye(2), np.array([2]), np.zeros(1, int))


def test_inverse_over_the_positive_eigenvalues():
    rng = np.random.default_rng(3)
    root = rng.normal(size=(5, 3)) * np.array([1e4, 1.0, 1e-5])
    matrix = root.T @ root
    inverse, dropped = pseudo_inverse(matrix, 1e-8)
    assert dropped == 0
    scale = np.sqrt(np.diag(matrix))  # whatever the units
    np.testing.assert_allclose(inverse * np.outer(scale, scale), np.linalg.inv(matrix / np.outer(scale, scale)))
    assert pseudo_inverse(np.diag([4.0, -1.0]), 1e-8)[1] == 1
    assert pseudo_inverse(np.empty((0, 0)), 1e-8)[0].shape == (0, 0)
    with pytest.raises(np.linalg.LinAlgError, match="not finite"):
        pseudo_inverse(np.full((2, 2), np.nan), 1e-8)


def test_degrees_of_freedom_of_rows():
    rng = np.random.default_rng(5)
    rows, half, slopes = rng.normal(size=(3, 2)), rng.normal(size=(2, 2)).T, rng.normal(size=(4, 2, 2))
    slopes = slopes + slopes.transpose(0, 2, 1)
    cov = np.cov(rng.normal(size=(4, 30)))
    rows[2] = 0.0
    h = rows @ half
    gradient = np.einsum("kx,axy,ky->ka", h, slopes, h)
    with np.errstate(invalid="ignore"):
        expected = 2.0 * np.square(h).sum(axis=1) ** 2 / np.einsum("ka,ab,kb->k", gradient, cov, gradient)
    expected[2] = np.inf
    np.testing.assert_allclose(contrast_df(rows, half, slopes, cov), expected)
    np.testing.assert_allclose(contrast_df(rows, 1e150 * half, slopes, cov), expected)  # in whatever units
    assert np.isnan(contrast_df(rows[:1], half, np.nan * slopes, cov)).all()
    with pytest.raises(ValueError, match="do not match"):
        contrast_df(rows, np.eye(3), slopes, cov)


def test_sigma_beside_the_profiled_hessian():
    profiled, of_r2, nu, r2 = np.array([[3.0, 0.5], [0.5, 2.0]]), np.array([-0.2, 0.1]), 12.0, 0.7
    rng = np.random.default_rng(4)
    slopes, factor, r = rng.normal(size=(2, 3, 3)), np.tril(rng.normal(size=(3, 3))), np.triu(rng.normal(size=(3, 3)))
    found, cov, dropped, half, every = assembled(profiled, slopes, of_r2, factor, r, nu, r2, 1.7, 1e-8)
    np.testing.assert_allclose(found[:2, :2], profiled + nu / r2**2 * np.outer(of_r2, of_r2))
    np.testing.assert_allclose(found[2], [*(-2.0 * nu / r2 * of_r2), 4.0 * nu])
    # with sigma profiled out again it is what it was
    np.testing.assert_allclose(found[:2, :2] - np.outer(found[2, :2], found[2, :2]) / found[2, 2], profiled)
    np.testing.assert_allclose(cov, 2.0 * np.linalg.inv(found))
    np.testing.assert_allclose(half, 1.7 * np.linalg.inv(factor.T @ r))
    np.testing.assert_array_equal(every, [*slopes, 2.0 * np.eye(3)])
    assert dropped == 0
    with pytest.raises(ValueError, match="for 2 parameters"):
        assembled(np.eye(3), slopes, of_r2, factor, r, nu, r2, 1.0, 1e-8)
    with pytest.raises(ValueError, match="do not match"):
        assembled(profiled, slopes, of_r2, factor, np.eye(2), nu, r2, 1.0, 1e-8)
