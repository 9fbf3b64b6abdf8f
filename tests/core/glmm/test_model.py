"""The marginal deviance and its gradient against dense NumPy, and what fits of it have to satisfy."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import oracle_glmm as dense
from fastlmm_core.core import Control, Term
from fastlmm_core.core.glmm import Model, as_family
from fastlmm_core.errors import DataError, ModelError, NumericalError
from fastlmm_core.families import FAMILIES

PAIRS = [(name, link) for name, family in FAMILIES.items() for link in family.links]
CURVED = ("inverse", "sqrt", "identity")  # links whose means leave the support not far from here
SHAPES = {"one": (1,), "pair": (2,)}


def problem(name, link, widths=(2,), n=60, seed=0):
    """Arrays, x = (theta, beta, rho) and what the model takes beside them."""
    rng = np.random.default_rng([seed, *map(ord, name + link)])
    family = as_family(name, link)
    x = rng.normal(size=n)
    X = np.column_stack([np.ones(n), x])
    beta, spread = np.array([0.3, 0.4]), 0.5
    if link == "log" and name == "binomial":
        beta, spread = np.array([-1.5, 0.05]), 0.08
    elif link == "identity":
        beta, spread = (np.array([0.5, 0.02]), 0.04) if name == "binomial" else (np.array([3.0, 0.1]), 0.1)
    elif link in CURVED:
        beta, spread = np.array([3.0, 0.1]), 0.1
    terms, theta, eta = [], [], X @ beta
    for k, l in enumerate(widths):
        q = 6 - k
        z = np.column_stack([np.ones(n), rng.normal(size=(n, 2))])[:, :l] if l > 1 else None
        term = Term(rng.permutation(np.arange(n) % q), z)
        factor = spread * np.eye(l)
        factor[np.tril_indices(l, -1)] = 0.3 * spread
        theta += [factor[r, c] for r, c in term.index()]
        b = (np.clip(rng.normal(size=(q, l)), -1, 1) @ factor.T)[term.codes]
        eta = eta + (b[:, 0] if z is None else (z * b).sum(1))
        terms.append(term)
    offset = 0.02 * rng.normal(size=n)
    eta = eta + offset
    if name == "binomial" and link == "log":
        eta = np.minimum(eta, -0.3)
    elif name == "binomial" and link == "identity":
        eta = np.clip(eta, 0.1, 0.9)
    m = rng.integers(1, 6, n).astype(float)
    freq = rng.integers(1, 4, n).astype(float)
    y = family.simulate(rng, family.mean(eta), m, -0.5)
    if name == "beta":
        y = np.clip(y, 0.02, 0.98)
    given = {"freq_weights": freq, "offset": offset, "trials" if name == "binomial" else "weights": m}
    return family, y, X, terms, np.concatenate([theta, beta, [-0.5] * family.n_extra]), given


def oracle_of(family, y, X, terms, given, expected=False):
    """The dense problem."""
    m = given.get("trials", given.get("weights"))
    return dense.Dense(y, X, terms, family, m, given.get("freq_weights"), given.get("offset"), expected)


@pytest.mark.parametrize("weights", ["observed", "expected"])
@pytest.mark.parametrize(("name", "link"), PAIRS)
def test_gradient_of_every_family_and_link(name, link, weights):
    family, y, X, terms, x, given = problem(name, link)
    deviance = Model(X, terms, family, control=Control(weights=weights), **given).objective(y)
    value, gradient, _ = deviance.derivatives(x)
    assert_allclose(value, oracle_of(family, y, X, terms, given, weights == "expected").laplace(x), rtol=1e-11)
    expected = dense.differences(deviance, x, 2e-3 if link not in CURVED else 5e-4)
    assert (np.abs(gradient - expected) < 1e-9 * (1 + np.abs(expected)) + 1e-9).all()


@pytest.mark.parametrize("weights", ["observed", "expected"])
@pytest.mark.parametrize(("l", "k"), [(1, 2), (1, 9), (2, 5), (3, 3)])
@pytest.mark.parametrize(("name", "link"), [("binomial", "probit"), ("negativebinomial", "log"), ("gamma", "log")])
def test_quadrature(name, link, l, k, weights):
    family, y, X, terms, x, given = problem(name, link, (l,))
    deviance = Model(X, terms, family, n_agq=k, control=Control(weights=weights), **given).objective(y)
    value, gradient, _ = deviance.derivatives(x)
    assert_allclose(value, oracle_of(family, y, X, terms, given, weights == "expected").quadrature(x, k), rtol=1e-12)
    expected = dense.differences(deviance, x)
    assert (np.abs(gradient - expected) < 1e-9 * (1 + np.abs(expected)) + 1e-9).all()


def test_many_nodes_are_the_integral():
    """One level, one effect: the deviance is that of SciPy's integral."""
    from scipy.integrate import quad
    from scipy.special import expit

    y, sd, beta = np.array([1.0, 1.0, 0.0, 1.0]), 1.7, 0.3
    model = Model(np.ones((8, 1)), [Term(np.repeat([0, 1], 4))], "binomial", n_agq=61)

    def density(u):
        p = expit(beta + sd * u)
        return np.prod(np.where(y == 1, p, 1 - p)) * np.exp(-0.5 * u * u) / np.sqrt(2 * np.pi)

    exact = -4 * np.log(quad(density, -12, 12, epsabs=1e-14)[0])
    assert_allclose(model.objective(np.tile(y, 2))([sd, beta]), exact, rtol=1e-11)


def test_gradient_vanishes_in_theta_at_zero():
    family, y, X, terms, x, given = problem("binomial", "logit")
    x = x.copy()
    x[:3] = 0.0
    gradient = Model(X, terms, family, **given).objective(y).gradient(x)
    assert (gradient[:3] == 0.0).all()


def test_optimum_is_stationary_and_has_its_covariance():
    family, y, X, terms, _, given = problem("negativebinomial", "log")
    model = Model(X, terms, family, **given)
    fit = model.fit(y)
    assert fit.converged
    x = np.concatenate([fit.theta, fit.beta, [fit.rho]])
    deviance = model.objective(y)
    assert_allclose(fit.criterion, deviance(x), rtol=1e-12)
    assert np.abs(deviance.gradient(x) * np.sqrt(np.diag(fit.cov))).max() < 1e-3
    second = np.array([dense.differences(lambda v, j=j: deviance.gradient(v)[j], x) for j in range(len(x))])
    assert_allclose(fit.cov, 2 * np.linalg.inv(second), rtol=1e-5, atol=1e-8)
    assert_allclose(fit.family_params["alpha"], np.exp(-fit.rho))


def test_merging_binomial_rows_changes_a_constant_only():
    rng = np.random.default_rng(3)
    g, x = np.repeat(np.arange(8), 12), np.tile([0.0, 1.0], 48)
    y = rng.binomial(1, 0.4, 96).astype(float)
    X = np.column_stack([np.ones(96), x])
    rows = Model(X, [Term(g)], "binomial").fit(y)
    codes, cell = np.unique(g * 2 + x.astype(int), return_inverse=True)
    trials, successes = np.bincount(cell).astype(float), np.bincount(cell, y)
    merged = Model(np.column_stack([np.ones(16), codes % 2]), [Term(codes // 2)], "binomial", trials=trials)
    cells = merged.fit(successes)
    assert_allclose(cells.beta, rows.beta, rtol=1e-6)
    assert_allclose(cells.theta, rows.theta, rtol=1e-5)
    assert_allclose(cells.se, rows.se, rtol=1e-5)


def test_invariances():
    """Units and origin of x, order of the rows, names of the levels, number of threads."""
    family, y, X, terms, _, given = problem("poisson", "log")
    z = np.asarray(terms[0].z)[:, :2]
    first = Model(X, [Term(terms[0].codes, z)], family, **given).fit(y)
    shift = np.column_stack([X[:, 0], X[:, 1] + 1e6])
    moved = Model(shift, [Term(terms[0].codes, z)], family, **given).fit(y)
    assert_allclose(moved.criterion, first.criterion, rtol=1e-9)
    assert_allclose(moved.beta[1], first.beta[1], rtol=1e-6)
    order = np.random.default_rng(0).permutation(len(y))
    turned = {k: v[order] for k, v in given.items()}
    again = Model(X[order], [Term(5 - terms[0].codes[order], z[order])], family, **turned).fit(y[order])
    assert_allclose(again.criterion, first.criterion, rtol=1e-11)
    assert_allclose(again.theta, first.theta, rtol=1e-5)
    many = Model(X, [Term(terms[0].codes, z)], family, control=Control(threads=3), **given).fit(y)
    assert many.criterion == first.criterion


def test_fit_many_is_fit_one_by_one():
    family, y, X, terms, _, given = problem("binomial", "logit", (1,))
    model = Model(X, terms, family, **given)
    rng = np.random.default_rng(1)
    Y = np.array([y, rng.binomial(given["trials"].astype(int), 0.4), np.zeros(len(y))])
    many = model.fit_many(Y)
    for k in range(2):
        one = model.fit(Y[k])
        assert_allclose(many.beta[k], one.beta, rtol=1e-9)
        assert_allclose(many.criterion[k], one.criterion, rtol=1e-12)
    assert np.isnan(many.criterion[2])
    assert not many.converged[2]


def test_figures_wait_until_asked_for_and_survive_pickling():
    import pickle

    family, y, X, terms, _, given = problem("binomial", "logit", (2,))
    model = Model(X, terms, family, **given)
    fit = model.fit(y)
    model.fit(given["trials"] - y)  # the workspace has moved on
    b = fit.pirls_modes(fit.theta, fit.beta)
    assert_allclose(fit.b[0], b[0], atol=1e-12)
    copy = pickle.loads(pickle.dumps(fit))
    assert_allclose(copy.se, fit.se)
    assert_allclose(copy.mu, family.mean(fit.eta))
    assert copy.cond_var()[0].shape == (6, 2, 2)


WEIGHTS = ["observed", "expected"]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("engine", ["dense", "sparse", "cholmod"])
@pytest.mark.parametrize(("name", "link"), [("binomial", "cloglog"), ("negativebinomial", "log"), ("gamma", "log")])
def test_several_factors(name, link, engine, weights):
    """A vector and two scalar terms against dense NumPy, on every engine."""
    family, y, X, terms, x, given = problem(name, link, (2, 1, 1))
    control = Control(engine=engine, weights=weights)
    deviance = Model(X, terms, family, control=control, **given).objective(y)
    value, gradient, _ = deviance.derivatives(x)
    assert_allclose(value, oracle_of(family, y, X, terms, given, weights == "expected").laplace(x), rtol=1e-11)
    expected = dense.differences(deviance, x)
    assert (np.abs(gradient - expected) < 1e-9 * (1 + np.abs(expected)) + 1e-9).all()


def test_cholmod_factors_a_single_grouping_factor():
    """Asked for, CHOLMOD has all effects; quadrature, which goes level by level, says that it cannot."""
    from fastlmm_core.core.glmm.laplace import Laplace

    family, y, X, terms, _, given = problem("binomial", "logit")
    model = Model(X, terms, family, control=Control(engine="cholmod"), **given)
    assert isinstance(model.engine, Laplace)
    assert model.engine.layout.engine == "cholmod"
    levels = Model(X, terms, family, **given).fit(y)
    assert_allclose(model.fit(y).criterion, levels.criterion, rtol=1e-9)
    with pytest.raises(ModelError, match="level by level"):
        Model(X, terms, family, n_agq=5, control=Control(engine="cholmod"), **given)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("name", "link"), PAIRS)
def test_both_engines_agree(name, link, weights):
    """Level by level, or through the linear model's engine: one deviance, gradient and model Hessian."""
    from fastlmm_core.core.glmm.laplace import Laplace

    family, y, X, terms, x, given = problem(name, link)
    model = Model(X, terms, family, control=Control(weights=weights), **given)
    psi = model.design.to_conditioned @ x
    general = Laplace(model.design, model.control)
    general.set_response(y)
    model.engine.set_response(y)
    for got, expected in zip(general.derivatives(psi), model.engine.derivatives(psi), strict=True):
        assert_allclose(got, expected, rtol=1e-9, atol=1e-8)
    assert_allclose(general.modes()[0], model.engine.modes()[0], atol=1e-9)
    if weights == "observed":
        assert_allclose(general.cond_var()[0], model.engine.cond_var()[0], rtol=1e-9, atol=1e-12)


def test_zero_and_singular_factors():
    """Exact derivatives where the variance of one term is zero and another's factor has lower rank."""
    family, y, X, terms, x, given = problem("poisson", "log", (2, 1, 1))
    x = x.copy()
    x[1] = x[0]
    x[2] = 0.0  # correlation one
    x[3] = 0.0
    deviance = Model(X, terms, family, **given).objective(y)
    gradient = deviance.gradient(x)
    expected = dense.differences(deviance, x)
    assert gradient[3] == 0.0
    assert (np.abs(gradient - expected) < 1e-7 * (1 + np.abs(expected))).all()


def test_two_engines_find_one_optimum():
    family, y, X, terms, _, given = problem("binomial", "logit", (1, 1), n=200)
    fits = [Model(X, terms, family, control=Control(engine=e), **given).fit(y) for e in ("dense", "sparse")]
    assert_allclose(fits[0].criterion, fits[1].criterion, rtol=1e-11)
    assert_allclose(fits[0].beta, fits[1].beta, rtol=1e-6)
    assert_allclose(fits[0].se, fits[1].se, rtol=1e-6)
    oracle = oracle_of(family, y, X, terms, given)
    x = np.concatenate([fits[0].theta, fits[0].beta])
    assert_allclose(fits[0].criterion, oracle.laplace(x), rtol=1e-11)
    Z = dense.dense_z(terms)
    b = np.concatenate([part.ravel() for part in fits[0].b])
    assert_allclose(fits[0].eta, X @ fits[0].beta + Z @ b + given["offset"], rtol=1e-9)


class Logistic(as_family("binomial").__class__):
    """A family in Python: the Bernoulli one again."""

    name = "own"
    links = ("logit",)
    code = -1

    def row(self, y, eta, m, rho):
        return as_family("binomial").row(y, eta, m, rho)

    def constant(self, y, m, freq, rho):
        return as_family("binomial").constant(y, m, freq, rho)


def test_a_family_of_ones_own():
    _, y, X, terms, _, given = problem("binomial", "logit", (1,))
    given["weights"] = given.pop("trials")
    own = Model(X, terms, Logistic(), **given).fit(y)
    given["trials"] = given.pop("weights")
    built_in = Model(X, terms, "binomial", **given).fit(y)
    assert_allclose(own.criterion, built_in.criterion, rtol=1e-11)
    assert_allclose(own.beta, built_in.beta, rtol=1e-6)


def test_an_error_in_such_a_family_reaches_the_user():
    class Broken(Logistic):
        def row(self, y, eta, m, rho):
            if abs(eta).max() > 1e-3:
                raise KeyError("mine")
            return super().row(y, eta, m, rho)

    with pytest.raises(KeyError, match="mine"):
        Model(np.ones((4, 1)), [Term(np.array([0, 0, 1, 1]))], Broken()).fit(np.array([0.0, 1.0, 1.0, 1.0]))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("name", "widths"), [("binomial", (2, 1)), ("negativebinomial", (1, 1)), ("gamma", (2,))])
def test_first_look(name, widths, weights):
    """Beta found with the modes: the gradient in theta and rho, and an optimum no lower than the full one."""
    family, y, X, terms, x, given = problem(name, "probit" if name == "binomial" else "log", widths)
    control = Control(weights=weights)
    model = Model(X, terms, family, n_agq=0, control=control, **given)
    psi = model.design.to_conditioned @ x
    model.engine.set_response(y)
    _, gradient, _ = model.engine.derivatives(psi)
    expected = dense.differences(model.engine.value, psi)
    assert (np.abs(gradient - expected) < 1e-9 * (1 + np.abs(expected)) + 1e-9).all()
    fit = model.fit(y)
    full = Model(X, terms, family, control=control, **given).fit(y)
    assert fit.converged
    assert full.criterion - 1e-8 < fit.criterion < full.criterion + 1.0
    at = np.concatenate([fit.theta, fit.beta, [fit.rho] * family.n_extra])
    assert_allclose(fit.criterion, oracle_of(family, y, X, terms, given, weights == "expected").laplace(at), rtol=1e-9)
    assert np.isfinite(fit.se).all()


def test_separated_responses_leave_a_fit_without_nan():
    rng = np.random.default_rng(5)
    g, x = rng.integers(0, 20, 200), rng.normal(size=200)
    dummy = (g < 2).astype(float)
    y = rng.binomial(1, 0.5, 200) * (1 - dummy)
    fit = Model(np.column_stack([np.ones(200), x, dummy]), [Term(g)], "binomial").fit(y)
    assert np.isfinite(fit.se).all()
    assert fit.se[2] > 1e3
    rest = Model(np.column_stack([np.ones(200), x])[dummy == 0], [Term(g[dummy == 0])], "binomial").fit(y[dummy == 0])
    assert_allclose(fit.criterion, rest.criterion, atol=1e-5)
    assert_allclose(fit.se[:2], rest.se, rtol=1e-3)


def test_refusals():
    one, X = Term(np.arange(12) % 3), np.ones((12, 1))
    two = [one, Term(np.arange(12) % 4)]
    with pytest.raises(ModelError, match="needs one grouping factor, but the model has 2"):
        Model(X, two, "binomial", n_agq=5)
    with pytest.raises(ModelError, match="at most 3 effects a level"):
        Model(X, [Term(one.codes, np.eye(12)[:, :4])], "binomial", n_agq=5)
    with pytest.raises(ModelError, match="use at most 21"):
        Model(X, [Term(one.codes, np.eye(12)[:, :3])], "binomial", n_agq=25)
    with pytest.raises(ModelError, match="not negative"):
        Model(X, [one], "binomial", n_agq=-1)
    with pytest.raises(ModelError, match="trials belong to the binomial"):
        Model(X, [one], "poisson", trials=np.ones(12))
    with pytest.raises(ModelError, match="every response is 0"):
        Model(X, [one], "poisson").fit(np.zeros(12))
    with pytest.raises(DataError, match="0 or 1"):
        Model(X, [one], "binomial").fit(np.arange(12.0))
    with pytest.raises(DataError, match="start must be 1 finite"):
        Model(X, [one], "poisson").fit(np.arange(12.0), start=[1.0, 2.0, 3.0])
    with pytest.raises(NumericalError, match="give start="):
        Model(X, [one], "poisson", link="identity").fit(np.arange(12.0), start=[1.0, -40.0])


@pytest.mark.parametrize("name", ["negativebinomial", "negativebinomial1"])
@pytest.mark.parametrize("several", [False, True])
def test_counts_without_overdispersion_end_at_poisson(name, several):
    rng = np.random.default_rng(2)
    g, h, x = np.arange(300) % 30, np.arange(300) // 25, rng.normal(size=300)
    y = rng.binomial(10, 1 / (1 + np.exp(-0.3 * x))).astype(float)
    X, terms = np.column_stack([np.ones(300), x]), [Term(g), Term(h)][: 1 + several]
    fit, poisson = Model(X, terms, name).fit(y), Model(X, terms, "poisson").fit(y)
    assert fit.converged
    assert fit.at_limit
    assert len(fit.log) < 60
    assert_allclose(fit.criterion, poisson.criterion, atol=1e-5)
    assert_allclose(fit.beta, poisson.beta, atol=1e-5)
    assert_allclose(fit.se, poisson.se, rtol=1e-4)


def test_gaussian_identity_is_the_linear_mixed_model():
    from fastlmm_core.core import fit as linear

    rng = np.random.default_rng(8)
    g, h, x = rng.integers(0, 30, 300), rng.integers(0, 12, 300), rng.normal(size=300)
    y = x + rng.normal(size=30)[g] + 0.5 * rng.normal(size=12)[h] + rng.normal(size=300)
    X = np.column_stack([np.ones(300), x])
    terms = [Term(g, X), Term(h)]
    expected, fit = linear(y, X, terms, reml=False), Model(X, terms, "gaussian").fit(y)
    assert_allclose(fit.criterion, expected.criterion, atol=1e-7)
    assert_allclose(fit.theta, expected.theta * expected.sigma, atol=1e-4)
    assert_allclose(fit.family_params["phi"], expected.sigma**2, rtol=1e-4)
    assert_allclose(fit.beta, expected.beta, rtol=1e-5)


def test_a_fit_is_not_the_callers_arrays():
    rng = np.random.default_rng(0)
    g, x, known = np.repeat(np.arange(10), 8), rng.normal(size=80), rng.normal(size=80)
    y, counts, size = rng.poisson(3.0, 80).astype(float), np.ones(80), np.ones(80)
    model = Model(x[:, None], [Term(g)], "poisson", offset=known, freq_weights=counts, weights=size)
    fit, expected = model.fit(y), model.fit(y.copy())
    modes, cov = expected.b[0], expected.cov
    for given in (y, known, counts, size):
        given[:] = 2.0
    np.testing.assert_array_equal(fit.b[0], modes)
    np.testing.assert_array_equal(fit.cov, cov)
