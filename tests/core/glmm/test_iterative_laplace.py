"""Generalised models without a factor: what is exact against the exact engine, what is estimated against its error."""

from functools import cache

import numpy as np
import pytest

from fastlmm_core._native.iterative import row_sums
from fastlmm_core.core import Control, Term
from fastlmm_core.core.glmm import Model
from fastlmm_core.core.glmm.iterative.laplace import IterativeLaplace
from fastlmm_core.core.glmm.iterative.rows import solve
from fastlmm_core.core.iterative.system import relative_factors
from fastlmm_core.core.iterative.traces import rademacher, row_values
from fastlmm_core.errors import NumericalError

FEW, MANY = (40, 30), (90, 75)  # levels of two tail factors: traces of at most 64 are taken outright

CASES = {
    "logit": {},
    "logit, trials and offset": {"trials": True, "offset": True},
    "probit": {"link": "probit"},
    "cloglog": {"link": "cloglog"},
    "poisson": {"family": "poisson"},
    "poisson, slopes everywhere": {"family": "poisson", "slope": True, "tail_slope": "us"},
    "logit, slope of the leading factor": {"slope": True},
    "negative binomial": {"family": "negativebinomial"},
    "negative binomial, linear variance": {"family": "negativebinomial1"},
    "gamma": {"family": "gamma", "link": "log"},
    "inverse gaussian": {"family": "inverse_gaussian", "link": "log"},
    "gaussian, log link": {"family": "gaussian", "link": "log"},
    "beta": {"family": "beta"},
}


def draw(
    family="binomial", link=None, slope=False, tail_slope=None, trials=False, offset=False, tail=FEW, n=1500, q=150
):
    """y, the model's arguments, and psi-like parameters in the user's units."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=n)
    both = np.column_stack([np.ones(n), x])
    codes = [rng.integers(0, k, n) for k in (q, *tail)]
    eta, terms = 0.2 + 0.4 * x, []
    for f, (code, count) in enumerate(zip(codes, (q, *tail), strict=True)):
        eta = eta + (0.8, 0.5, 0.4)[f] * rng.normal(size=count)[code]
        wide = slope if f == 0 else (tail_slope and f == 1)
        if wide:
            eta = eta + 0.3 * rng.normal(size=count)[code] * x
        terms.append(Term(code, both if wide else None, "us", n_levels=count))
    more = {"link": link}
    if offset:
        more["offset"] = rng.normal(size=n) / 3.0
        eta = eta + more["offset"]
    mu = np.exp(np.clip(eta, -4.0, 4.0))
    if family == "binomial":
        m = rng.integers(1, 5, n) if trials else np.ones(n, int)
        y = rng.binomial(m, 1.0 / (1.0 + np.exp(-eta))).astype(float)
        if trials:
            more["trials"] = m.astype(float)
    elif family == "poisson":
        y = rng.poisson(mu).astype(float)
    elif family.startswith("negativebinomial"):
        y = rng.negative_binomial(2.0, 2.0 / (2.0 + mu)).astype(float)
    elif family == "gamma":
        y = rng.gamma(3.0, mu / 3.0)
    elif family == "inverse_gaussian":
        y = rng.wald(mu, 4.0)
    elif family == "gaussian":
        y = mu + rng.normal(size=n)
    else:
        mean = 1.0 / (1.0 + np.exp(-eta))
        y = np.clip(rng.beta(5.0 * mean, 5.0 * (1.0 - mean)), 1e-6, 1.0 - 1e-6)
    return y, both, tuple(terms), family, more


@cache
def case(name, tail=FEW):
    """Response, an exact model and the iterative engine with that response, and psi near the optimum."""
    y, X, terms, family, more = draw(tail=tail, **CASES[name])
    exact = Model(X, terms, family, **more, control=Control(engine="dense", threads=1))
    engine = IterativeLaplace(exact.design, Control(engine="iterative", threads=1))
    response = exact.design.response(y)
    exact.engine.set_response(response)
    engine.set_response(response)
    psi = np.concatenate([np.linspace(0.5, 0.8, exact.design.n_theta), [0.1, 0.3], [0.4] * exact.family.n_extra])
    return response, exact, engine, psi


def dense(engine, theta):
    """Z of the sorted rows and Lambda, the leading factor's effects first."""
    rows = engine.rows
    columns = [np.zeros((len(rows.order), g.size)) for g in rows.groups]
    lam = []
    for code, z, group, own in zip(rows.codes, rows.z, rows.groups, columns, strict=True):
        l = group.n_columns
        for c in range(l):
            own[np.arange(len(code)), code * l + c] = 1.0 if z is None else z[:, c]
    for group, factor in zip(rows.groups, relative_factors(rows.levels, theta), strict=True):
        lam.append(np.kron(np.eye(group.n_levels), factor))
    size = sum(g.size for g in rows.groups)
    L, at = np.zeros((size, size)), 0
    for block in lam:
        L[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    return np.hstack(columns), L


def flat(x):
    """Vectors as one matrix."""
    return np.concatenate([x.lead.reshape(-1, x.k), x.tail])


@pytest.mark.parametrize("name", ["logit", "poisson, slopes everywhere", "logit, slope of the leading factor"])
def test_systems_have_the_weights_of_the_rows(name):
    """Sums, products, solves and determinants at weights of any kind, against dense matrices."""
    _, exact, engine, psi = case(name)
    rng = np.random.default_rng(2)
    n, theta = exact.design.n, psi[: exact.design.n_theta]
    w = rng.uniform(0.1, 2.0, n)
    system = engine.rows.system(theta, w)
    Z, L = dense(engine, theta)
    M = L.T @ Z.T @ (w[:, None] * Z) @ L + np.eye(len(L))
    assert system.log_det_lead + system.log_det_tail >= np.linalg.slogdet(M)[1]  # Fischer's inequality
    S = np.eye(system.problem.rows.m) + system.lam_t(system.product(system.lam(np.eye(system.problem.rows.m))))
    assert system.log_det_lead + np.linalg.slogdet(S)[1] == pytest.approx(np.linalg.slogdet(M)[1], rel=1e-11)
    d = rng.normal(size=(n, 3))
    x = engine.rows.sums(d)
    np.testing.assert_allclose(flat(x), Z.T @ d, atol=1e-10)
    b, rest = solve(system, x, 1e-12)
    H = L @ np.linalg.solve(M, L.T)
    np.testing.assert_allclose(flat(b), H @ Z.T @ d, atol=1e-8)
    np.testing.assert_allclose(flat(rest), Z.T @ d - Z.T @ (w[:, None] * Z) @ H @ Z.T @ d, atol=1e-8)
    np.testing.assert_allclose(engine.rows.products(b), Z @ flat(b), atol=1e-10)


@pytest.mark.parametrize("name", ["logit", "poisson, slopes everywhere", "logit, slope of the leading factor"])
def test_sums_over_rows_of_forms(name):
    """`forms` is the derivative of z'Sx in the weights, and `leverages` those of any P in the place of S^-1."""
    _, exact, engine, psi = case(name)
    rng = np.random.default_rng(3)
    n, theta = exact.design.n, psi[: exact.design.n_theta]
    w, v = rng.uniform(0.2, 2.0, n), rng.normal(size=(n, 3))
    system = engine.rows.system(theta, w)
    Z, L = dense(engine, theta)
    lead = engine.rows.groups[0].size
    z1, zt, l1 = Z[:, :lead], Z[:, lead:], L[:lead, :lead]
    K = l1 @ np.linalg.solve(l1.T @ z1.T @ (w[:, None] * z1) @ l1 + np.eye(lead), l1.T)
    e = zt - z1 @ K @ z1.T @ (w[:, None] * zt)
    x, y = rng.normal(size=(2, zt.shape[1], 8))
    expected = np.einsum("ra,rk->ak", v, (e @ x) * (e @ y))
    np.testing.assert_allclose(row_sums.forms(system.rows, system.K, x, y, v), expected, rtol=1e-9, atol=1e-8)
    blocks = []
    for group in engine.rows.levels.groups:
        half = rng.normal(size=(group.q, group.l, group.l))
        blocks.append(half @ half.transpose(0, 2, 1))
    P, at = np.zeros((zt.shape[1],) * 2), 0
    for block in blocks:
        for own in block:
            P[at : at + len(own), at : at + len(own)] = own
            at += len(own)
    expected = np.einsum("ri,ij,rj->r", z1, K, z1) + np.einsum("ri,ij,rj->r", e, P, e)
    np.testing.assert_allclose(row_sums.leverages(system.rows, system.K, blocks), expected, rtol=1e-9, atol=1e-10)


def test_a_system_knows_that_the_rows_have_other_weights():
    _, exact, engine, psi = case("logit")
    n, theta = exact.design.n, psi[: exact.design.n_theta]
    old = engine.rows.system(theta, np.ones(n))
    engine.rows.system(theta, np.full(n, 2.0))
    with pytest.raises(RuntimeError, match="other weights"):
        old.product(np.ones((old.problem.rows.m, 8)))
    with pytest.raises(NumericalError, match="positive definite"):
        engine.rows.system(theta, np.full(n, -5.0))


@pytest.mark.parametrize("name", CASES)
def test_with_few_levels_in_the_tail_the_equations_are_the_exact_ones(name):
    """Traces of at most 64 levels are taken outright: gradient, model Hessian and modes are those of the factor."""
    _, exact, engine, psi = case(name)
    _, gradient, hessian = exact.engine.derivatives(psi)
    found = engine.derivatives(psi, 1)
    size = np.sqrt(np.diag(hessian))  # in which the modes' error of 3e-7 standard errors is one of the gradient
    np.testing.assert_allclose(found.gradients / size, np.tile(gradient / size, (8, 1)), rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(found.hessian, hessian, rtol=1e-6, atol=1e-5)
    for mine, theirs in zip(engine.modes(), exact.engine.modes(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    value, error = engine.deviance(psi, 16)
    assert value == pytest.approx(exact.engine.value(psi), abs=4.0 * error + 1e-6)
    near = psi + 0.05  # from the modes predicted there
    both = engine.derivatives(near, 1).gradient, exact.engine.derivatives(near)[1]
    np.testing.assert_allclose(both[0] / size, both[1] / size, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("name", ["logit", "poisson, slopes everywhere", "negative binomial"])
def test_gradients_of_probes_are_unbiased(name):
    """Means over many probes, by their own errors, are the exact gradient."""
    _, exact, engine, psi = case(name, MANY)
    _, gradient, _ = exact.engine.derivatives(psi)
    found = engine.derivatives(psi, 16)
    error = np.sqrt(np.diag(found.covariance))
    assert (np.abs(found.gradient - gradient) < 4.0 * error + 1e-6).all()
    assert (error > 1e-5).any()


def test_a_probes_part_of_the_weights_is_the_difference_of_its_form():
    """z'dS x for a change of the weights, the probe fixed: by central differences of S."""
    _, exact, engine, psi = case("logit", MANY)
    rng = np.random.default_rng(4)
    n, theta = exact.design.n, psi[: exact.design.n_theta]
    w, v, step = rng.uniform(0.2, 2.0, n), rng.normal(size=(n, 2)), 1e-5
    z = rademacher(0, 0, 0, engine.levels.rows.m)
    system = engine.rows.system(theta, w)
    x = system.solve(z, None, 1e-12)
    own = row_values(system, z, x + system.jacobi(z), v)  # its control taken off again
    for a in range(2):
        ends = [(z * engine.rows.system(theta, w + sign * step * v[:, a]).apply(x)).sum(axis=0) for sign in (1, -1)]
        np.testing.assert_allclose(own[:, a], (ends[0] - ends[1]) / (2.0 * step), rtol=1e-6, atol=1e-6)


def test_errors_over_seeds_are_those_claimed():
    """Estimates less the exact ones, in their Monte Carlo errors, have a standard deviation of about one."""
    y, X, terms, family, more = draw(tail=MANY, **CASES["poisson"])
    exact = Model(X, terms, family, **more, control=Control(engine="dense", threads=1, tol=1e-14)).fit(y)
    scores, sd = [], np.sqrt(np.diag(exact.cov))
    for seed in range(20):
        control = Control(engine="iterative", threads=1, seed=seed)
        found = Model(X, terms, family, **more, control=control).fit(y)
        error = found.monte_carlo
        assert error.max_relative < 0.01
        both = np.concatenate([found.theta - exact.theta, found.beta - exact.beta])
        assert (np.abs(both) < 0.05 * sd).all()
        claims = np.concatenate([error.theta_se, error.beta_se])
        scores.append([*(both / claims), (found.criterion - exact.criterion) / error.criterion_se])
    spread = np.sqrt(np.mean(np.square(scores), axis=0))
    assert (spread > 0.5).all()
    assert (spread < 1.6).all()


@pytest.mark.parametrize("name", ["negative binomial", "poisson, slopes everywhere"])
def test_covariances_are_those_of_the_exact_hessian(name):
    y, X, terms, family, more = draw(tail=MANY, **CASES[name])
    fits = [
        Model(X, terms, family, **more, control=Control(engine=engine, threads=1)).fit(y)
        for engine in ("dense", "iterative")
    ]
    size = np.sqrt(np.diag(fits[0].cov))
    np.testing.assert_allclose(fits[1].cov / np.outer(size, size), fits[0].cov / np.outer(size, size), atol=0.02)
    for mine, theirs in zip(fits[1].cond_var(), fits[0].cond_var(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0.2, atol=0.02 * np.abs(theirs).max())


def test_a_start_and_a_report():
    y, X, terms, family, more = draw(tail=MANY, **CASES["negative binomial"])
    model = Model(X, terms, family, **more, control=Control(engine="iterative", threads=1))
    first, seen = model.fit(y), []
    start = np.concatenate([first.theta, first.beta, [first.rho]])
    again = model.fit(y, start=start, on_evaluation=lambda *what: seen.append(what))
    assert again.monte_carlo.evaluations == len(seen) < first.monte_carlo.evaluations
    np.testing.assert_allclose(again.beta, first.beta, atol=1e-4)
    many = model.fit_many(np.stack([y, y]))
    assert many.converged.all()
    np.testing.assert_allclose(many.theta[0], first.theta, rtol=1e-12)
    modes = first.pirls_modes(first.theta, first.beta)
    np.testing.assert_allclose(modes[0], first.b[0], atol=1e-7)
