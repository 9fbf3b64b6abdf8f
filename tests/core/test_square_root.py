"""Near-perfect fits: residuals far smaller than the groups' effects."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fastlmm_core.core import Control, Model, Term, fit, fit_many
from fastlmm_core.core.square_root import SquareRoot
from fastlmm_core.errors import ConvergenceWarning, NumericalError, RepeatedValuesError

Array = NDArray[np.float64]


def crossed(rng: np.random.Generator, weighted: bool = False) -> tuple[Array, Array, list[Term], Array | None]:
    n = 90
    g, h, x = rng.integers(0, 12, n), rng.integers(0, 7, n), rng.normal(size=n)
    X = np.column_stack([np.ones(n), x])
    y = X @ [1.0, 0.5] + rng.normal(size=(12, 2))[g][:, 0] + rng.normal(size=12)[g] * x + rng.normal(size=7)[h]
    return y, X, [Term(g, X), Term(h)], rng.uniform(0.5, 2.0, n) if weighted else None


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_the_cross_products_where_these_suffice(reml: bool, weighted: bool) -> None:
    rng = np.random.default_rng(3)
    y, X, terms, w = crossed(rng, weighted)
    y = y + 0.5 * rng.normal(size=len(y))
    model = Model(X, terms, weights=w, reml=reml)
    objective = model.objective(y)
    rows = SquareRoot(model.products, model.products.response(y), y, reml)
    for theta in (rng.normal(size=4), np.array([1.0, 0.3, 0.0, 0.7]), np.array([0.0, 0.2, 0.5, 0.0])):
        value, gradient, hessian = rows.evaluate(theta)
        # the evaluator's own, by its definition; tail blocks at a zero variance are extrapolated there
        want = objective.evaluator.derivatives(theta)
        assert value == pytest.approx(want[0], rel=1e-12)
        np.testing.assert_allclose(gradient, want[1], rtol=1e-8, atol=1e-7)
        np.testing.assert_allclose(hessian, want[2], rtol=1e-8, atol=1e-6)
        gamma, modes, ld, _ = rows.modes(theta)
        of_model = objective.evaluator.modes(theta)
        np.testing.assert_allclose(gamma, of_model[0], atol=1e-12)
        np.testing.assert_allclose(modes[0], of_model[1], atol=1e-12)
        np.testing.assert_allclose(ld, of_model[3], atol=1e-12)
        for h in range(4):
            step = np.eye(4)[h] * 1e-5
            slope = (rows.evaluate(theta + step)[0] - rows.evaluate(theta - step)[0]) / 2e-5
            assert gradient[h] == pytest.approx(slope, rel=1e-6, abs=1e-5)


def truth_of_means(y: Array, g: NDArray[np.int64], reps: int) -> tuple[float, float]:
    """sigma and sd of a balanced one-way design (Searle et al. 1992, section 3.5)."""
    means = y.reshape(-1, reps).mean(axis=1)
    within = ((y.reshape(-1, reps) - means[:, None]) ** 2).sum() / (len(y) - len(means))
    return float(np.sqrt(within)), float(np.sqrt(means.var(ddof=1) - within / reps))


@pytest.mark.parametrize("exponent", range(-8, 0))
def test_balanced_one_way_to_six_digits(exponent: int) -> None:
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(15), 4)
    y = 3.0 + rng.normal(size=15)[g] + 10.0**exponent * rng.normal(size=60)
    sigma, sd = truth_of_means(y, g, 4)
    got = fit(y, np.ones((60, 1)), [Term(g)])
    assert got.converged
    assert got.sigma == pytest.approx(sigma, rel=1e-6)
    # down to 1e-4 it is the ordinary path that answers, whose optimiser stops at 1e-8 of the criterion
    assert got.sigma * got.theta[0] == pytest.approx(sd, rel=1e-6 if exponent < -4 else 1e-5)
    assert np.sqrt(got.cov_beta[0, 0]) == pytest.approx(np.sqrt(sd**2 / 15 + sigma**2 / 60), rel=1e-5)
    np.testing.assert_allclose(got.fitted, y.reshape(-1, 4).mean(axis=1)[g], atol=10.0**exponent)
    many = fit_many(np.array([y, rng.normal(size=60)]), np.ones((60, 1)), [Term(g)])
    assert many.converged.all()
    assert many.sigma[0] == pytest.approx(sigma, rel=1e-6)
    assert many.se[0, 0] == pytest.approx(np.sqrt(got.cov_beta[0, 0]), rel=1e-5)


def test_shrinking_the_residual_leaves_the_rest_alone() -> None:
    """As sigma goes to zero standard deviations converge, and the criterion falls by 2 a residual df and factor e."""
    rng = np.random.default_rng(7)
    y, X, terms, _ = crossed(rng)
    noise = rng.normal(size=len(y))
    fits = [fit(y + eps * noise, X, terms) for eps in (1e-5, 1e-6, 1e-7, 1e-8)]
    assert all(f.converged for f in fits)
    sds = np.array([f.sigma * np.concatenate([np.ones(1) / f.sigma, f.theta]) for f in fits])
    np.testing.assert_allclose(sds[1:], np.broadcast_to(sds[0], sds[1:].shape), rtol=2e-5, atol=2e-5)
    sigma = np.array([f.sigma for f in fits])
    np.testing.assert_allclose(sigma[1:] / sigma[:-1], 0.1, rtol=1e-4)
    np.testing.assert_allclose(np.diff([f.criterion for f in fits]), np.diff([f.criterion for f in fits])[0], rtol=1e-4)


def test_values_that_repeat_are_named() -> None:
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(10), 3)
    X = np.ones((30, 1))
    for y in (rng.normal(size=10)[g], rng.normal(size=10)[g] + 1e-13 * rng.normal(size=30)):
        with pytest.raises(RepeatedValuesError, match="random term 0 repeat one value"):
            fit(y, X, [Term(g)])
    with pytest.warns(ConvergenceWarning, match="1 of 2"):
        many = fit_many(np.array([rng.normal(size=10)[g], rng.normal(size=30)]), X, [Term(g)])
    assert np.isnan(many.sigma).tolist() == [True, False]


def test_what_the_rows_cannot_answer_says_so() -> None:
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(15), 4)
    got = fit(rng.normal(size=15)[g] + 1e-7 * rng.normal(size=60), np.ones((60, 1)), [Term(g)])
    with pytest.raises(NumericalError, match="double precision"):
        got.require_products()
    assert np.isfinite(got.cond_var()[0]).all()


def test_conditional_variances_of_a_near_perfect_fit() -> None:
    """At known coefficients: sigma^2 theta^2 / (1 + 10 theta^2) for ten rows a level, however large the effects are."""
    rng = np.random.default_rng(3)
    codes = np.repeat(np.arange(12), 10)
    x, noise = rng.normal(size=(2, 120))
    for size in (1e-3, 1e-6, 1e-8):
        got = fit(codes + x + size * noise, np.column_stack([np.ones(120), x]), [Term(codes)])
        exact = got.sigma**2 / (10.0 + got.theta[0] ** -2)
        np.testing.assert_allclose(got.cond_var()[0].ravel(), exact, rtol=1e-8)


@pytest.mark.parametrize("crossed_too", [False, True], ids=["one factor", "crossed"])
def test_every_engine_hands_over_to_the_rows(crossed_too: bool) -> None:
    rng = np.random.default_rng(0)
    g, h = np.repeat(np.arange(12), 8), np.tile(np.arange(8), 12)
    X = np.column_stack([np.ones(96), rng.normal(size=96)])
    terms = [Term(g), Term(h)] if crossed_too else [Term(g)]
    y = X @ [1.0, 2.0] + rng.normal(size=12)[g] + crossed_too * rng.normal(size=8)[h] + 1e-7 * rng.normal(size=96)
    fits = [fit(y, X, terms, control=Control(engine=engine)) for engine in ("dense", "sparse", "cholmod")]
    assert fits[0].sigma < 1.5e-7
    for other in fits[1:]:
        np.testing.assert_allclose(other.sigma, fits[0].sigma, rtol=1e-9)
        for name in ("theta", "beta", "fitted"):
            np.testing.assert_allclose(getattr(other, name), getattr(fits[0], name), rtol=1e-9)
        for ours, theirs in zip((*other.b, *other.cond_var()), (*fits[0].b, *fits[0].cond_var()), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9)
