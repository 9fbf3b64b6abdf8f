"""Zero parts with random effects: rows in both predictors, dense deviances of 2 x 2 weights, exact gradients."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from fastlmm_core import DataError, ModelError
from fastlmm_core.core import Control, Term
from fastlmm_core.core.glmm import (
    Hurdle,
    Model,
    NegativeBinomial,
    NegativeBinomial1,
    Poisson,
    TruncatedNegativeBinomial,
    TruncatedPoisson,
    ZeroInflated,
)

BASES = {
    "poisson": (ZeroInflated, Poisson),
    "negativebinomial": (ZeroInflated, NegativeBinomial),
    "negativebinomial1": (ZeroInflated, NegativeBinomial1),
    "truncated_poisson": (Hurdle, TruncatedPoisson),
    "truncated_nbinom2": (Hurdle, TruncatedNegativeBinomial),
}


def problem(name, slopes=False, seed=0, n=160, **given):
    """Family, response, columns, terms and terms of the zero part."""
    rng = np.random.default_rng(seed)
    g, h, x = rng.integers(0, 9, n), rng.integers(0, 7, n), rng.normal(size=n)
    X = np.column_stack([np.ones(n), x])
    y = rng.poisson(np.exp(0.8 + 0.3 * x + rng.normal(0, 0.5, 9)[g] + rng.normal(0, 0.3, 7)[h])).astype(float)
    y[rng.random(n) < 1 / (1 + np.exp(1 - 0.5 * x - rng.normal(0, 1, 9)[g]))] = 0.0
    kind, base = BASES[name]
    effects = [("g", ("Intercept", "x")), ("h", ("Intercept",))] if slopes else [("g", ("Intercept",))]
    family = kind(base(), X, ["Intercept", "x"], offset=0.2 * x, effects=effects)
    zero_terms = [Term(g, X), Term(h)] if slopes else [Term(g)]
    terms = [Term(g, X), Term(h)] if slopes else [Term(g)]
    return y, Model(X, terms, family, zero_terms=zero_terms, offset=0.1 * x, **given)


def log_density(family, y, eta, odds, own):
    """Log density of rows by SciPy."""
    mu, pi = np.exp(eta), 1 / (1 + np.exp(-odds))
    name = family.base.name.removeprefix("truncated_")
    if name == "poisson":
        law = stats.poisson(mu)
    elif name in ("negativebinomial", "nbinom2"):
        size = np.exp(own)
        law = stats.nbinom(size, size / (size + mu))
    else:
        alpha = np.exp(own)
        law = stats.nbinom(mu / alpha, 1 / (1 + alpha))
    if isinstance(family, Hurdle):
        positive = np.log1p(-pi) + law.logpmf(y) - np.log(law.sf(0))
        return np.where(y == 0, np.log(pi), positive)
    return np.where(y == 0, np.log(pi + (1 - pi) * law.pmf(0)), np.log1p(-pi) + law.logpmf(y))


@pytest.mark.parametrize("name", BASES)
def test_rows_in_both_predictors(name):
    kind, base = BASES[name]
    family = kind(base())
    rng = np.random.default_rng(1)
    y = np.repeat([0.0, 1.0, 4.0], 5)
    eta, odds, own = rng.normal(0.5, 0.6, 15), rng.normal(0, 1, 15), 0.3
    rows = family.joint_rows(y, eta, odds, own)
    l, s, w, _, k, _, _, sr, wr, l_z, l_zz, s_z, w_z, s2_r, v_z, x_z, v_r, x_r = rows
    full = l + np.array(
        [family.base.constant(np.array([v]), np.ones(1), np.empty(0), own)[0] if v > 0 else 0.0 for v in y]
    )
    assert_allclose(full, log_density(family, y, eta, odds, own), rtol=1e-9, atol=1e-10)

    def slope(which, at):
        step, ends = 1e-5, []
        for sign in (1, -1):
            moved = [eta, odds, own]
            moved[at] = moved[at] + sign * step
            ends.append(family.joint_rows(y, *moved)[which])
        return (ends[0] - ends[1]) / (2 * step)

    for found, which, sign, at in (
        (s, 0, 1, 0), (l_z, 0, 1, 1), (w, 1, -1, 0), (s_z, 1, 1, 1), (l_zz, 9, 1, 1), (k, 2, 1, 0), (w_z, 2, 1, 1),
        (v_z, 11, -1, 1), (x_z, 10, -1, 1), (v_z, 10, -1, 0),
    ):  # fmt: skip
        assert_allclose(found, sign * slope(which, at), rtol=1e-6, atol=1e-8)
    if family.base.n_extra:
        for found, which, sign in ((sr, 1, 1), (wr, 2, 1), (s2_r, 9, 1), (v_r, 11, -1), (x_r, 10, -1)):
            assert_allclose(found, sign * slope(which, 2), rtol=1e-6, atol=1e-8)


def dense_deviance(model, y, x):
    """Laplace's deviance by dense matrices at the user's x = (theta, beta, zeta, own, theta of the log odds)."""
    design, family = model.design, model.family
    n, nt, p, k = design.n, design.n_theta, design.X.shape[1], len(family.columns)
    theta, beta, rho = x[:nt], x[nt : nt + p], x[nt + p :]
    zeta, own, other = rho[:k], float(rho[k]) if family.base.n_extra else 0.0, rho[k + family.base.n_extra :]
    A = [[], []]
    for part, terms, values in ((0, design.terms, theta), (1, design.zero_terms, other)):
        at = 0
        for term in terms:
            z = np.ones((n, 1)) if term.z is None else term.z
            l = z.shape[1]
            L = np.zeros((l, l))
            L[tuple(zip(*term.index(), strict=True))] = values[at : at + term.n_theta]
            at += term.n_theta
            wide = np.zeros((n, term.n_levels, l))
            wide[np.arange(n), term.codes] = z @ L
            A[part].append(wide.reshape(n, -1))
    first, second = np.hstack(A[0]), np.hstack(A[1])
    a, b = np.hstack([first, np.zeros_like(second)]), np.hstack([np.zeros_like(first), second])
    e0, z0, u = design.X @ beta + design.offset, family.zero @ zeta + family.offset, np.zeros(a.shape[1])

    def penalised(u):
        return -2 * log_density(family, y, e0 + a @ u, z0 + b @ u, own).sum() + u @ u

    def information(u):
        rows = family.joint_rows(y, e0 + a @ u, z0 + b @ u, own)
        cross = -(a * rows[11][:, None]).T @ b
        M = (a * rows[2][:, None]).T @ a + cross + cross.T - (b * rows[10][:, None]).T @ b + np.eye(len(u))
        return M, a.T @ rows[1] + b.T @ rows[9] - u

    for _ in range(60):
        M, slope = information(u)
        values, vectors = np.linalg.eigh(M)
        step, scale = vectors @ ((vectors.T @ slope) / np.maximum(np.abs(values), 0.3)), 1.0
        if slope @ step < 1e-20:
            break
        while penalised(u + scale * step) > penalised(u) + 1e-11 and scale > 1e-6:
            scale /= 2
        u = u + scale * step
    return penalised(u) + np.linalg.slogdet(information(u)[0])[1]


@pytest.mark.parametrize("slopes", [False, True])
@pytest.mark.parametrize("name", BASES)
def test_deviance_is_the_dense_one_and_its_gradient_exact(name, slopes):
    y, model = problem(name, slopes)
    objective = model.objective(y)
    rng = np.random.default_rng(2)
    x = objective.start + 0.05 * rng.normal(size=objective.n_free)
    value, gradient, _ = objective.derivatives(x)
    assert_allclose(value, dense_deviance(model, y, x), rtol=1e-10)
    for j in range(objective.n_free):
        unit = np.eye(objective.n_free)[j]
        ends = [objective(x + k * 3e-4 * unit) for k in (-2, -1, 1, 2)]
        slope = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * 3e-4)
        assert_allclose(gradient[j], slope, rtol=1e-6, atol=1e-7 * np.abs(gradient).max())


def test_a_hurdle_is_two_fits():
    y, model = problem("truncated_poisson", n=400)
    fit = model.fit(y)
    X, g = model.design.X, model.design.terms[0].codes
    seen = y > 0
    counts = Model(X[seen], [Term(g[seen])], TruncatedPoisson(), offset=model.design.offset[seen]).fit(y[seen])
    zeros = Model(X, [Term(g)], "binomial", offset=model.family.offset).fit((y == 0) * 1.0)
    assert_allclose(fit.criterion, counts.criterion + zeros.criterion, rtol=1e-9)
    assert_allclose(fit.beta, counts.beta, atol=1e-4)
    assert_allclose(fit.rho[:2], zeros.beta, atol=1e-4)
    part = fit.zero_part
    assert_allclose(part.theta, zeros.theta, rtol=1e-3)
    assert_allclose(part.b[0], zeros.b[0], atol=1e-3)
    assert_allclose(part.cond_var()[0], zeros.cond_var()[0], rtol=2e-3)
    assert_allclose(fit.family_params_se["zi.sd_Intercept|g"], np.sqrt(zeros.cov[0, 0]), rtol=2e-3)


def test_rows_that_count_twice_and_order_do_not_matter():
    y, model = problem("negativebinomial", n=200)
    first = model.fit(y)
    design, family = model.design, model.family
    order = np.random.default_rng(3).permutation(400)
    twice = np.concatenate([np.arange(200)] * 2)[order]
    again = Model(
        design.X[twice],
        [Term(design.terms[0].codes[twice])],
        family.at(family.zero[twice], family.offset[twice]),
        offset=design.offset[twice],
        freq_weights=np.full(400, 0.5),
        zero_terms=[Term(design.terms[0].codes[twice])],
    ).fit(y[twice])
    assert_allclose(again.criterion, first.criterion, rtol=1e-9)
    assert_allclose(again.rho, first.rho, atol=2e-4)


def test_what_cannot_be_asked_for():
    y, model = problem("poisson")
    X, terms, family = model.design.X, model.design.terms, model.family
    with pytest.raises(ModelError, match="zero_terms belong to a family with a zero part"):
        Model(X, terms, "poisson", zero_terms=terms)
    with pytest.raises(ModelError, match=r"have \[2\] columns, but effects= of ZeroInflated names \[1\]"):
        Model(X, terms, family, zero_terms=[Term(terms[0].codes, X)])
    with pytest.raises(DataError, match="has 5 rows, but there are 160"):
        Model(X, terms, family, zero_terms=[Term(terms[0].codes[:5])])
    with pytest.raises(ModelError, match="use n_agq=1"):
        Model(X, terms, family, zero_terms=terms, n_agq=0)
    with pytest.raises(ModelError, match="observed weights only"):
        Model(X, terms, family, zero_terms=terms, control=Control(weights="expected"))
    assert len(y) == 160
