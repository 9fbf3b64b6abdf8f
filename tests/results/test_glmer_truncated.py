"""Counts without zeros: fits against glmmTMB's, and what is asked of them."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fastlmm_core import BoundaryWarning, DataError, FastLMMWarning, ModelError, glmer, load_dataset

REFERENCE = json.loads((Path(__file__).parents[1] / "golden" / "glmer" / "truncated.json").read_text())
FAMILIES = ("truncated_poisson", "truncated_nbinom2")
MODEL = "TICKS ~ YEAR + h + (1 | BROOD) + (1 | LOCATION)"


@pytest.fixture(scope="module")
def ticks():
    data = load_dataset("grouseticks")
    return data.assign(h=(data["HEIGHT"] - data["HEIGHT"].mean()) / data["HEIGHT"].std())


@pytest.fixture(scope="module")
def fits(ticks):
    return {name: glmer(MODEL, ticks[ticks["TICKS"] > 0], name) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_fits_are_glmmtmbs(fits, name):
    fit, reference = fits[name], REFERENCE[name]
    assert_allclose(fit.criterion, reference["criterion"], atol=1e-6)
    assert_allclose(fit.params, reference["beta"], atol=1e-5)
    assert_allclose(fit.bse, reference["se"], rtol=1e-4)
    assert_allclose(fit.theta, reference["sd"], rtol=1e-4)
    if name == "truncated_nbinom2":
        assert_allclose(fit.family_params.loc["alpha", "estimate"], 1 / reference["sigma"], rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_predictions_are_glmmtmbs(fits, name):
    """The mean of a positive count, with the parameter's share of its uncertainty."""
    fit, reference = fits[name], REFERENCE[name]
    for kind, mean, error in (("response", "response", "rse"), ("link", "link", "lse")):
        found = fit.predict(kind=kind, interval="confidence").head(8)
        assert_allclose(found["fit"], reference[mean], rtol=2e-4)
        assert_allclose(found["std_error"], reference[error], rtol=2e-4)
        assert ((found["lower"] < found["fit"]) & (found["fit"] < found["upper"])).all()
    assert_allclose(fit.fittedvalues.head(8), reference["response"], rtol=2e-4)
    assert (fit.predict(kind="response", interval="confidence")["lower"] > 1.0).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_marginal_means_are_averages_over_groups(fits, name):
    fit = fits[name]
    new = {"YEAR": ["95", "97"], "h": [0.0, -1.0]}
    drawn = fit.predict(new, kind="link", re_form="none").to_numpy()[:, None]
    drawn = drawn + np.hypot(*fit.theta) * np.random.default_rng(0).normal(size=(2, 400_000))
    means = fit.family.response_mean(np.exp(drawn), fit.core.rho)
    expected = means.mean(axis=1)
    found = fit.predict(new, kind="marginal", interval="confidence")
    assert (np.abs(found["fit"] - expected) < 5 * means.std(axis=1) / 600).all()
    assert ((found["lower"] > 1.0) & (found["lower"] < found["fit"]) & (found["fit"] < found["upper"])).all()


def test_residuals_simulations_refits(fits):
    fit = fits["truncated_nbinom2"]
    drawn = fit.simulate(100, seed=1)
    assert drawn.min().min() == 1.0
    assert_allclose(drawn.mean(axis=1).mean(), fit.predict(kind="marginal").mean(), rtol=0.1)
    assert abs(fit.residuals("quantile").std() - 1) < 0.15
    assert abs(fit.residuals("simulated").mean() - 0.5) < 0.1
    assert np.isfinite(fit.residuals("deviance")).all()
    assert_allclose(fit.residuals("response"), fit.design.y - fit.fittedvalues)
    assert 0.5 < fit.dispersion()["ratio"] < 1.5 < fits["truncated_poisson"].dispersion()["ratio"]
    assert_allclose(fit.refit(fit.design.y).criterion, fit.criterion, atol=1e-6)
    assert fit.bootstrap(3, seed=1).shape == (3, 7)
    assert "truncated_nbinom2 (log)" in str(fit.summary())
    assert_allclose(pickle.loads(pickle.dumps(fit)).fittedvalues, fit.fittedvalues)
    with pytest.raises(ModelError, match="no variance of the truncated_nbinom2"):
        fit.r2()


def test_nb1_without_zeros():
    rng = np.random.default_rng(1)
    g, x = np.repeat(np.arange(60), 8), rng.normal(size=480)
    mu = np.exp(0.8 + 0.4 * x + 0.5 * rng.normal(size=60)[g])
    y = rng.poisson(rng.gamma(mu, 1.0))
    kept = y > 0
    data = {"y": y[kept], "x": x[kept], "g": g[kept].astype(str), "h": (np.arange(480)[kept] % 11).astype(str)}
    fit = glmer("y ~ x + (1 | g)", data, "truncated_nbinom1")
    assert fit.converged
    errors = fit.params - [0.8, 0.4]
    assert (np.abs(errors) < 3 * fit.bse).all()
    assert abs(fit.residuals("quantile").std() - 1) < 0.15


def test_quadrature_is_near_laplace(ticks):
    data = ticks[ticks["TICKS"] > 0]
    laplace = glmer("TICKS ~ YEAR + (1 | BROOD)", data, "truncated_poisson")
    fit = glmer("TICKS ~ YEAR + (1 | BROOD)", data, "truncated_poisson", n_agq=15)
    assert 0 < abs(fit.criterion - laplace.criterion) < 1.5
    assert_allclose(laplace.laplace_check().quadrature, -0.5 * (fit.criterion - laplace.criterion), atol=0.05)


def test_zeros_are_refused_by_name(ticks):
    zeros = int((ticks["TICKS"] == 0).sum())
    first = int((ticks["TICKS"] == 0).to_numpy().argmax())
    with pytest.raises(DataError, match=rf"TICKS is zero in {zeros} of 403 rows, first in row {first}"):
        glmer(MODEL, ticks, "truncated_poisson")
    with pytest.raises(DataError, match="above zero"):
        glmer(MODEL, ticks.assign(TICKS=ticks["TICKS"] + 0.5), "truncated_poisson")
    with pytest.raises(ModelError, match="no identity link"):
        glmer(MODEL, ticks, "truncated_poisson", link="identity")


def test_overdispersion_without_end_is_said_and_profiles_have_no_limit_there():
    rng = np.random.default_rng(3)
    data = {"g": np.repeat(np.arange(15), 12), "y": rng.logseries(0.7, 180)}
    with pytest.warns(BoundaryWarning, match="no finite estimate .*: these counts are those of a logarithmic"):
        glmer("y ~ 1 + (1 | g)", data, "truncated_nbinom2")
    data["y"] = np.where(np.arange(180) % 9 == 0, 3, data["y"])
    fit = glmer("y ~ 1 + (1 | g)", data, "truncated_nbinom2")
    with (
        pytest.warns(FastLMMWarning, match="profile of Intercept towards its lower limit does not rise to the level"),
        pytest.warns(FastLMMWarning, match="profile of alpha towards its upper limit does not rise to the level"),
    ):
        found = fit.conf_int("profile")
    assert found.loc["Intercept", "lower"] == -np.inf
    assert found.loc["alpha", "upper"] == np.inf
    assert np.isfinite(found.loc["sd_Intercept|g"]).all()
