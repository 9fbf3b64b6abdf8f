"""`glmer` on the iterative engine: what follows a fit is that of the exact engine, or is refused in a sentence."""

import pickle

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import anova, glmer, lmer, load
from fastlmm_core.core import Control
from fastlmm_core.core.iterative import choice
from fastlmm_core.errors import (
    ConvergenceWarning,
    DataError,
    LaplaceWarning,
    MemoryLimitError,
    ModelError,
    MonteCarloWarning,
)

ITERATIVE = Control(engine="iterative", threads=1)
FORMULA = "y ~ x + c + (1 | g) + (1 | h)"


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    n = 3000
    out = pd.DataFrame({"g": rng.integers(0, 200, n), "h": rng.integers(0, 90, n), "x": rng.normal(size=n)})
    out["c"] = rng.choice(list("abc"), n)
    eta = -0.3 + 0.5 * out.x + 0.8 * rng.normal(size=200)[out.g] + 0.6 * rng.normal(size=90)[out.h]
    out["y"] = (rng.random(n) < 1.0 / (1.0 + np.exp(-eta))).astype(int)
    out["k"] = rng.poisson(np.exp(0.5 * eta))
    return out


@pytest.fixture(scope="module")
def fits(data):
    return glmer(FORMULA, data, control=ITERATIVE), glmer(FORMULA, data)


def test_estimates_and_their_errors(fits):
    found, exact = fits
    error = found.monte_carlo
    assert error.max_relative < 0.01
    sd = np.sqrt(np.diag(exact.cov_params(full=True)))
    both = np.concatenate([found.theta - exact.theta, found.params - exact.params])
    assert (np.abs(both) < 0.05 * sd).all()
    np.testing.assert_allclose(
        found.cov_params(full=True), exact.cov_params(full=True), rtol=0.02, atol=0.01 * sd[0] ** 2
    )
    assert found.criterion == pytest.approx(exact.criterion, abs=4.0 * error.criterion_se + 1e-3)
    assert exact.monte_carlo is None
    assert "Monte Carlo error of at most" in str(found.summary())
    assert "Monte Carlo" in found.convergence_report().message
    report = found.engine_report()
    assert (report.engine, report.effects, report.reason) == ("iterative", 90, "it was asked for")


def test_what_is_read_off_the_modes(fits, data):
    found, exact = fits
    np.testing.assert_allclose(found.predict(), exact.predict(), atol=1e-3)
    np.testing.assert_allclose(found.residuals(), exact.residuals(), atol=5e-3)
    for kind in ("population", "marginal"):
        np.testing.assert_allclose(found.predict(kind=kind), exact.predict(kind=kind), atol=1e-3)
    new = data.head(30)
    own, theirs = (fit.predict(new, interval="confidence") for fit in fits)
    np.testing.assert_allclose(own, theirs, atol=1e-3)
    np.testing.assert_allclose(found.ranef().condsd, exact.ranef().condsd, rtol=0.05)
    np.testing.assert_allclose(found.dispersion()["df"], exact.dispersion()["df"], rtol=1e-3)
    np.testing.assert_allclose(found.r2(), exact.r2(), atol=1e-3)
    assert len(found.simulate(2, seed=1).columns) == 2


def test_tables_and_tests(fits, data):
    found, exact = fits
    for table in ("coef_table", "anova", "tidy"):
        own, theirs = (getattr(fit, table)().select_dtypes(float) for fit in fits)
        np.testing.assert_allclose(own, theirs, rtol=0.02, atol=2e-3)
    np.testing.assert_allclose(found.conf_int(), exact.conf_int(), atol=5e-3)
    smaller = glmer("y ~ x + (1 | g) + (1 | h)", data, control=ITERATIVE)
    assert anova(smaller, found)["df"].iloc[1] == 2
    assert len(found.drop1()) == 3
    assert len(found.bootstrap(2, seed=1)) == 2
    again = found.refit(data.y)
    assert again.monte_carlo.evaluations < found.monte_carlo.evaluations


def test_pickles_and_the_bits_of_a_seed(fits, data, tmp_path):
    found, _ = fits
    found.save(tmp_path / "fit")
    assert "Monte Carlo error of at most" in str(load(tmp_path / "fit").summary())
    copy = pickle.loads(pickle.dumps(found))
    assert str(copy.summary()) == str(found.summary())
    assert copy.engine_report() == found.engine_report()
    same = glmer(FORMULA, data, control=Control(engine="iterative", threads=2))
    assert (same.core.psi == found.core.psi).all()
    assert same.criterion == found.criterion
    other = glmer(FORMULA, data, control=Control(engine="iterative", threads=1, seed=1))
    assert (other.core.psi != found.core.psi).any()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda fit, data: fit.profile(), "no factor of the random effects"),
        (lambda fit, data: fit.conf_int("profile"), "no factor of the random effects"),
        (lambda fit, data: fit.hatvalues(), "leverages of single rows are not available"),
        (lambda fit, data: fit.cooks_distance(), "leverages of single rows are not available"),
        (lambda fit, data: fit.influence("h"), "a step from the estimates is not available"),
        (lambda fit, data: fit.laplace_check(), "all pairs of rows are not available"),
        (lambda fit, data: fit.save("fit.bin", data=True), "keeps the figures, a pickle all"),
        (lambda fit, data: fit.predict(interval="confidence"), "ask for at most 512 of them"),
        (lambda fit, data: glmer(FORMULA, data, control=ITERATIVE, objective_only=True), "no factor"),
        (lambda fit, data: glmer(FORMULA, data, n_agq=0, control=ITERATIVE), "Laplace's approximation only"),
        (lambda fit, data: glmer(FORMULA, data, n_agq=5, control=ITERATIVE), "needs one grouping factor"),
        (
            lambda fit, data: glmer("k ~ x + (1 | g) + (1 | h)", data, "poisson", zero="~ 1", control=ITERATIVE),
            "one parameter of their own at most",
        ),
        (
            lambda fit, data: glmer(FORMULA, data, control=Control(engine="iterative", weights="expected")),
            "observed weights only",
        ),
        (
            lambda fit, data: glmer(f"{FORMULA} + (1 | copy)", data.assign(copy=data.h), control=ITERATIVE),
            "does not determine every variance",
        ),
    ],
)
def test_what_needs_a_factor_is_refused(fits, data, what, words):
    with pytest.raises((ModelError, DataError), match=words):
        what(fits[0], data)


def test_auto_takes_it_where_no_factor_is_within_reach(data, monkeypatch):
    assert glmer(FORMULA, data).monte_carlo is None
    monkeypatch.setattr(choice, "SMALL", 60)
    small = Control(memory_limit=100_000_000)
    assert glmer(FORMULA, data, control=small).monte_carlo is None
    monkeypatch.setattr(choice, "REACH", 0.0)
    found = glmer(FORMULA, data, control=small)
    assert found.monte_carlo is not None
    assert "an evaluation of the dense engine would take" in found.engine_report().reason
    with pytest.raises(MemoryLimitError, match="the iterative engine would take"):
        glmer(FORMULA, data, control=Control(engine="iterative", memory_limit=100_000))


def test_an_error_that_is_not_reached_is_said(data):
    with pytest.warns(MonteCarloWarning, match="Monte Carlo error of the parameters is still"):
        glmer("k ~ x + (1 | g) + (1 | h)", data, "poisson", control=Control(engine="iterative", mc_error=1e-9))


def test_a_variance_at_zero_and_few_rows_a_level(data):
    """A factor without a variance: set to zero, without a standard error of its own; a warning as ever."""
    rng = np.random.default_rng(2)
    nothing = data.assign(h=rng.integers(0, 90, len(data)))
    found, exact = (glmer(FORMULA, nothing, control=control) for control in (ITERATIVE, None))
    assert found.theta["h.Intercept"] == 0.0 or abs(found.theta["h.Intercept"] - exact.theta["h.Intercept"]) < 0.01
    np.testing.assert_allclose(found.params, exact.params, atol=2e-3)
    few = data.head(900)
    with pytest.warns(LaplaceWarning, match="few rows a level"):
        glmer(FORMULA, few, control=ITERATIVE)


@pytest.mark.parametrize("linear", [False, True])
def test_the_search_gives_up_when_it_is_told_to(linear):
    rng = np.random.default_rng(5)
    data = pd.DataFrame({"g": rng.integers(0, 30, 600), "h": rng.integers(0, 20, 600)})
    effects = 0.5 * rng.normal(size=30)[data["g"]] + 0.4 * rng.normal(size=20)[data["h"]]
    data["y"] = rng.poisson(np.exp(1.0 + effects)).astype(float)
    family = {} if linear else {"family": "poisson"}
    with pytest.warns(ConvergenceWarning, match="did not end in 2 evaluations"):
        fit = (lmer if linear else glmer)(
            "y ~ 1 + (1 | g) + (1 | h)", data, control=Control(engine="iterative", max_evaluations=2), **family
        )
    assert len(fit.fit_log) == 2
    assert not fit.converged
