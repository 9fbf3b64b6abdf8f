"""Pattern models against dense matrices: criterion, derivatives, estimates, effects."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastlmm_core.core import Term, fit
from fastlmm_core.core.residuals import PatternModel, Residual
from fastlmm_core.core.residuals import moments as moments_module
from fastlmm_core.core.residuals.moments import batches, patterns
from fastlmm_core.core.structures.covariances import Structure
from fastlmm_core.errors import ModelError

KINDS = [
    *(("cs", h) for h in (True, False)),
    *(("ar1", h) for h in (True, False)),
    *(("toep", h) for h in (True, False)),
    *(("ad", h) for h in (True, False)),
    ("us", False),
    ("diag", False),
    ("exp", True),
    ("gau", False),
]


def data(seed=0, n_subjects=30, T=4):
    """Incomplete visits, in an arbitrary order of rows, with correlated responses."""
    rng = np.random.default_rng(seed)
    subject, visit = np.divmod(rng.permutation(n_subjects * T)[: int(0.8 * n_subjects * T)], T)
    subject = np.unique(subject, return_inverse=True)[1]
    n = len(subject)
    x = rng.normal(size=n)
    X = np.column_stack([np.ones(n), x, visit])
    y = X @ [1.0, 0.5, -0.3] + rng.normal(size=subject.max() + 1)[subject] + rng.normal(size=n) * (1 + visit)
    return subject.astype(np.int64), visit.astype(np.int64), X, y, rng


def dense(model, phi, y, reml):
    """The criterion from n x n matrices, R from its definition on every pair of rows."""
    m, n = model.model, len(y)
    same = m.subject[:, None] == m.subject if m.subject is not None else model.unit[:, None] == model.unit
    s = np.exp(m.log_sd @ phi[m.of_sd])
    c = np.zeros((n, n))
    for i, j in itertools.product(range(n), range(n)):
        if same[i, j]:
            keys = m.shape.keys(m.positions[[i]], m.positions[[j]])
            c[i, j] = m.shape.values(phi[m.of_shape], keys)[0][0]
    V = s[:, None] * s * c
    for term, where in zip(m.effects, m.of_effects, strict=True):
        level = model.unit if term.level is None else term.level
        V += term.z @ term.covariance.sigma(phi[where]) @ term.z.T * (level[:, None] == level)
    w = np.ones(n) if model.root is None else model.root
    V = V / w[:, None] / w
    X = model.X
    p = X.shape[1]
    inverse = np.linalg.inv(V)
    A = X.T @ inverse @ X
    beta = np.linalg.solve(A, X.T @ inverse @ y)
    e = y - X @ beta
    nu = n - p if reml else n
    value = np.linalg.slogdet(V)[1] + nu * (1 + np.log(2 * np.pi * (e @ inverse @ e) / nu))
    return value + (np.linalg.slogdet(A)[1] if reml else 0.0)


def residual(kind, hom, subject, visit, **more):
    T = int(visit.max()) + 1
    points = np.sqrt(1.0 + np.arange(T))[:, None] if kind in ("exp", "gau") else None
    return Residual(subject, kind, visit, T, hom, points, **more)


def check(model, y, reml, tol=1e-7):
    criterion = model.prepare(y)[0]
    phi = model.model.start() + 0.1 * np.random.default_rng(3).normal(size=model.model.n)
    found = criterion(phi)
    assert found.value == pytest.approx(dense(model, phi, y, reml), abs=1e-10 * abs(found.value))
    h = 1e-5
    pairs = [(criterion(phi + s), criterion(phi - s)) for s in h * np.eye(len(phi))]
    size = 1 + np.abs(found.gradient).max()
    np.testing.assert_allclose(found.gradient, [(u.value - d.value) / (2 * h) for u, d in pairs], atol=tol * size)
    size = 1 + np.abs(found.hessian).max()
    np.testing.assert_allclose(found.hessian, [(u.gradient - d.gradient) / (2 * h) for u, d in pairs], atol=tol * size)
    np.testing.assert_allclose(found.r2_slopes, [(u.r2 - d.r2) / (2 * h) for u, d in pairs], atol=tol)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("kind", "hom"), KINDS)
def test_criterion_and_derivatives(kind, hom, reml):
    subject, visit, X, y, _ = data()
    check(PatternModel(X, residual(kind, hom, subject, visit), reml=reml), y, reml)


@pytest.mark.parametrize("kind", ["us", "ar1", "exp"])
def test_groups_weights_and_dispersion(kind):
    subject, visit, X, y, rng = data(1)
    group = (np.arange(subject.max() + 1) % 2)[subject]
    z = np.column_stack([rng.integers(0, 2, len(y)), rng.normal(size=len(y))])
    given = residual(kind, kind != "us", subject, visit, group=group, n_groups=2, dispersion=z)
    check(PatternModel(X, given, weights=rng.uniform(0.5, 2.0, len(y)), reml=True), y, True)


@pytest.mark.parametrize("kept", ["moments", "rows"])
def test_random_effects_of_the_subject(kept, monkeypatch):
    if kept == "rows":
        monkeypatch.setattr(moments_module, "FEW", 0)
    subject, visit, X, y, rng = data(2)
    z = np.column_stack([np.ones(len(y)), rng.normal(size=len(y))])
    given = residual("ar1", True, subject, visit, dispersion=(visit > 1).astype(float)[:, None])
    model = PatternModel(X, given, [Term(subject, z)], weights=rng.uniform(0.5, 2.0, len(y)), reml=True)
    check(model, y, True)


def test_subjects_within_levels_of_the_random_effect():
    subject, visit, X, y, _ = data(3)
    block = (np.arange(subject.max() + 1) // 4)[subject]
    check(PatternModel(X, residual("ar1", True, subject, visit), [Term(block)], reml=True), y, True)


@pytest.mark.parametrize("kind", ["ar1", "none"])
def test_levels_within_units_nested_and_crossed(kind):
    subject, visit, X, y, rng = data(8)
    block = (np.arange(subject.max() + 1) // 5)[subject]
    half = np.unique(3 * block + visit % 3, return_inverse=True)[1]  # crosses the subjects of a block
    z = np.column_stack([np.ones(len(y)), rng.normal(size=len(y))])
    given = residual("ar1", True, subject, visit) if kind == "ar1" else Residual(np.arange(len(y)))
    terms = [Term(half, z), Term(block), Term(subject)] if kind == "none" else [Term(half, z), Term(block)]
    check(PatternModel(X, given, terms, weights=rng.uniform(0.5, 2.0, len(y)), reml=True), y, True)


def test_effects_of_levels_within_units_are_those_of_the_equations():
    subject, visit, X, y, _ = data(9)
    half = np.unique(2 * subject + (visit > 1), return_inverse=True)[1]
    y = y + np.random.default_rng(1).normal(size=half.max() + 1)[half]
    ours = PatternModel(X, Residual(np.arange(len(y))), [Term(half), Term(subject)]).fit(y)
    other = fit(y, X, [Term(half), Term(subject)])
    assert ours.criterion == pytest.approx(other.criterion, abs=1e-8)
    for k in range(2):
        np.testing.assert_allclose(ours.b[k], other.b[k], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(ours.cond_var()[k], other.cond_var()[k], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours.fitted, other.fitted, rtol=1e-3, atol=1e-4)


def test_crossed_factors_are_refused():
    subject, visit, X, _, _ = data(10)
    with pytest.raises(ModelError, match="within one factor"):
        PatternModel(X, residual("ar1", True, subject, visit), [Term(visit)])


def test_without_a_structure_the_fit_is_that_of_the_random_effects_equations():
    subject, visit, X, y, rng = data(4)
    z = np.column_stack([np.ones(len(y)), visit])
    weights = rng.uniform(0.5, 2.0, len(y))
    ours = PatternModel(X, Residual(subject), [Term(subject, z)], weights=weights).fit(y)
    other = fit(y, X, [Term(subject, z)], weights=weights)
    assert ours.criterion == pytest.approx(other.criterion, abs=1e-8)
    np.testing.assert_allclose(ours.beta, other.beta, rtol=1e-5)
    np.testing.assert_allclose(ours.cov_beta, other.cov_beta, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(ours.L[0] * ours.sigma, other.L[0] * other.sigma, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours.b[0], other.b[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours.fitted, other.fitted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours.cond_var()[0], other.cond_var()[0], rtol=1e-3, atol=1e-4)


def test_a_variance_of_zero_is_an_ordinary_optimum():
    rng = np.random.default_rng(5)
    subject = np.repeat(np.arange(12), 5)
    y = rng.normal(size=60)
    y -= np.repeat(y.reshape(12, 5).mean(axis=1), 5)
    found = PatternModel(np.ones((60, 1)), Residual(subject), [Term(subject)]).fit(y)
    assert found.converged
    assert found.is_singular
    assert found.theta[0] == 0.0


def test_the_fit_does_not_depend_on_units_of_y_x_and_covariates():
    subject, visit, X, y, rng = data(6)
    x = np.exp(rng.normal(size=len(y)))
    one = PatternModel(X, residual("ar1", True, subject, visit, dispersion=np.log(x)[:, None])).fit(y)
    scaled = residual("ar1", True, subject, visit, dispersion=np.log(1e4 * x)[:, None])
    other = PatternModel(X * [1.0, 1e6, 1e-3], scaled).fit(1e5 * y + 1e7)
    np.testing.assert_allclose(other.theta, one.theta, rtol=1e-5)
    assert other.beta[1] == pytest.approx(1e-1 * one.beta[1], rel=1e-4)
    assert other.sigma == pytest.approx(1e5 * one.sigma * 1e-4 ** one.theta[0], rel=1e-4)


def test_order_of_rows_and_subjects_does_not_matter_and_visits_do_where_lags_count():
    subject, visit, X, y, rng = data(7)
    order = rng.permutation(len(y))
    names = rng.permutation(int(subject.max()) + 1)
    turned = np.array([2, 0, 3, 1])[visit]
    for kind, invariant in (("us", True), ("cs", True), ("ar1", False)):
        value = PatternModel(X, residual(kind, True, subject, visit)).fit(y).criterion
        again = (
            PatternModel(X[order], residual(kind, True, names[subject[order]], visit[order])).fit(y[order]).criterion
        )
        assert again == pytest.approx(value, abs=1e-8)
        other = PatternModel(X, residual(kind, True, subject, turned)).fit(y).criterion
        assert (abs(other - value) < 1e-6) is invariant


def test_units_of_equal_cells_share_a_pattern():
    unit = np.array([0, 0, 1, 1, 2, 2, 2])
    cell = np.array([0, 1, 1, 0, 0, 1, 2])
    found = batches(unit, cell, 3, np.ones((7, 2)))
    assert [(b.rows.shape, b.counts.tolist()) for b in found] == [((1, 2), [2.0]), ((1, 3), [1.0])]
    np.testing.assert_array_equal(found[0].units, [[0, 1], [3, 2]])


def test_too_few_rows_and_a_response_in_the_span_are_refused():
    subject = np.array([0, 0, 1, 1])
    given = Residual(subject, "ar1", np.array([0, 1, 0, 1]), 2)
    with pytest.raises(ModelError, match="4 observations cannot determine 4 fixed effects"):
        PatternModel(np.eye(4), given)
    with pytest.raises(ModelError, match="nothing is left to fit"):
        PatternModel(np.ones((4, 1)), given).fit(np.full(4, 2.0))
    with pytest.raises(ModelError, match="does not exist"):
        Residual(subject, "ar2")


def test_patterns_of_long_units_with_many_cells_are_told_apart():
    """64 to the power of 20 is zero in 64 bits: units that differ in their first rows alone shared a pattern."""
    cells = np.tile(np.arange(44, 64), (3, 1))
    cells[1, 0] = 3
    unit = np.repeat(np.arange(3), 20)
    ((rows, pattern, first),) = patterns(unit, cells.ravel(), 64)
    assert rows.shape == (3, 20)
    assert len(first) == 2
    assert pattern[0] == pattern[2] != pattern[1]


def test_effects_of_two_arms_that_long_units_mix_differently():
    rng = np.random.default_rng(0)
    unit, arm = np.repeat(np.arange(8), 32), rng.integers(0, 2, 256)
    arm[np.arange(256) % 32 > 20] = 0
    z = np.eye(2)[arm]
    y = 1.0 + rng.normal(size=(8, 2))[unit, arm] + rng.normal(size=256)
    term = Term(unit.astype(np.int32), z)
    structures = [Structure("cs")]
    fit = PatternModel(np.ones((256, 1)), Residual(np.arange(256)), [term], reml=False, structures=structures).fit(y)
    sigma = fit.L[0] @ fit.L[0].T
    V = fit.sigma**2 * (np.eye(256) + (z @ sigma @ z.T) * (unit[:, None] == unit))
    e = y - fit.beta[0]
    expected = np.linalg.slogdet(2.0 * np.pi * V)[1] + e @ np.linalg.solve(V, e)
    assert fit.criterion == pytest.approx(expected, abs=1e-8)
