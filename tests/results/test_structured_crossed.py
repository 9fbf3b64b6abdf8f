"""Residual structures beside crossed random effects and large levels, through `lmer`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import Control, ModelError, lmer
from fastlmm_core.errors import MemoryLimitError


@pytest.fixture(scope="module")
def trial() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    subjects, T = 60, 5
    d = pd.DataFrame({"subject": np.repeat(np.arange(subjects), T), "t": np.tile(np.arange(T), subjects)})
    d["item"], d["site"] = rng.integers(0, 7, len(d)), d.subject % 6
    d["arm"], d["x"], d["w"] = np.where(d.subject % 2, "a", "b"), rng.normal(size=len(d)), rng.uniform(0.5, 2, len(d))
    fading = np.linalg.cholesky(0.6 ** np.abs(np.subtract.outer(range(T), range(T))))
    e = (rng.normal(size=(subjects, T)) @ fading.T).ravel()
    d["y"] = d.x + rng.normal(size=7)[d["item"]] + rng.normal(size=6)[d.site] + e
    return d[rng.random(len(d)) > 0.15].reset_index(drop=True)


def test_crossed_effects_beside_an_autoregression(trial):
    fit = lmer("y ~ x * arm + (1 | item) + (1 | site)", trial, residual="ar1(t | subject)")
    found = fit.covariance_parameters()
    # the covariance of all rows, and the criterion of it
    n, v = len(trial), found["estimate"]
    same = {c: (trial[c].to_numpy()[:, None] == trial[c].to_numpy()) for c in ("subject", "item", "site")}
    lag = np.abs(np.subtract.outer(trial.t.to_numpy(), trial.t.to_numpy()))
    V = v["var Residual"] * v["rho"] ** lag * same["subject"]
    V += v["var Intercept | item"] * same["item"] + v["var Intercept | site"] * same["site"]
    X = fit.design.X
    inverse = np.linalg.inv(V)
    XVX = X.T @ inverse @ X
    beta = np.linalg.solve(XVX, X.T @ inverse @ trial.y)
    e = trial.y.to_numpy() - X @ beta
    value = np.linalg.slogdet(V)[1] + np.linalg.slogdet(XVX)[1] + e @ inverse @ e + (n - 4) * np.log(2 * np.pi)
    assert fit.criterion == pytest.approx(value, rel=1e-9)
    np.testing.assert_allclose(fit.params, beta, rtol=1e-7)
    np.testing.assert_allclose(fit.cov_params(), np.linalg.inv(XVX), rtol=1e-6)
    rows = np.flatnonzero(trial.subject == 3)
    np.testing.assert_allclose(fit.marginal_cov(("subject", 3)), V[np.ix_(rows, rows)], rtol=1e-6)
    item = v["var Intercept | item"] * (trial["item"].to_numpy() == np.arange(7)[:, None]) @ inverse @ e
    np.testing.assert_allclose(fit.random_effects["item"]["Intercept"], item, rtol=1e-5)
    white = fit.residuals("normalized")
    assert white.std() == pytest.approx(1.0, abs=0.1)
    assert "AR(1) of t within subject" in str(fit.summary())


def test_draws_have_the_models_covariance(trial):
    small = trial[trial.subject < 12]
    fit = lmer("y ~ x + (1 | item)", small, residual="ar1h(t | subject)", weights="w")
    draws = fit.simulate(6000, seed=3).to_numpy()
    rows = np.flatnonzero(small.subject == 5)
    np.testing.assert_allclose(np.cov(draws[rows]), fit.marginal_cov(("subject", 5)), rtol=0.15, atol=0.15)
    some = fit.bootstrap(4, seed=1)
    assert some.shape[0] == 4
    assert np.isfinite(some.to_numpy(float)).all()


def test_levels_of_many_rows(trial, monkeypatch):
    monkeypatch.setattr("fastlmm_core.fitting.residual.MUCH", 1e9)
    # the same 900 rows in two sites: as patterns of single subjects, each site has 450 rows
    rng = np.random.default_rng(2)
    d = pd.DataFrame({"subject": np.repeat(np.arange(180), 5), "t": np.tile(np.arange(5), 180)})
    d["site"], d["arm"] = d.subject % 2, d.subject // 2 % 2
    d["y"] = rng.normal(size=900) + rng.normal(size=180)[d.subject] + d.site
    whole = lmer("y ~ arm + (1 | site)", d, residual="ar1(t | subject)")
    part = lmer("y ~ arm + (1 | site)", d[d.subject < 150], residual="ar1(t | subject)")
    assert type(whole.core) is not type(part.core)
    assert whole.coef_table().loc["arm", "df"] == pytest.approx(part.coef_table().loc["arm", "df"] * 178 / 148, rel=0.1)
    with pytest.raises(ModelError, match="has 450 rows: subjects of at most 400"):
        lmer("y ~ arm", d.assign(t=np.arange(900)), residual="ar1(t | site)")


def test_pairs_of_rows_that_do_not_fit_into_memory():
    rng = np.random.default_rng(4)
    d = pd.DataFrame({"subject": np.repeat(np.arange(4), 100), "t": np.tile(np.arange(100), 4)})
    d["item"], d["y"] = rng.integers(0, 9, 400), rng.normal(size=400)
    pairs = 80 * 4 * 100 * 101 // 2  # bytes of the entries
    lmer("y ~ 1 + (1 | item)", d, residual="ar1(t | subject)", control=Control(memory_limit=pairs))
    with pytest.raises(MemoryLimitError, match="an entry for each pair"):
        lmer("y ~ 1 + (1 | item)", d, residual="ar1(t | subject)", control=Control(memory_limit=pairs - 1))


def test_levels_that_cost_more_whole_than_apart(monkeypatch, trial):
    from fastlmm_core.fitting import residual

    whole = lmer("y ~ arm + (1 | site)", trial, residual="ar1(t | subject)")
    subjects = lmer("y ~ arm + (1 | subject)", trial, residual="ar1(t | subject)")
    monkeypatch.setattr(residual, "MUCH", 1e3)
    apart = lmer("y ~ arm + (1 | site)", trial, residual="ar1(t | subject)")
    assert type(apart.core) is not type(whole.core)
    assert apart.criterion == pytest.approx(whole.criterion, abs=1e-7)
    for options in ({"ddf": "kenward-roger"}, {"cov_type": "CR0"}, {"cov_type": "CR2"}):
        np.testing.assert_allclose(
            apart.coef_table(**options).to_numpy(float), whole.coef_table(**options).to_numpy(float), rtol=1e-4
        )
    np.testing.assert_allclose(apart.hatvalues(), whole.hatvalues(), rtol=1e-4)
    np.testing.assert_allclose(apart.augment()[".hat"], whole.augment()[".hat"], rtol=1e-4)
    assert type(lmer("y ~ arm + (1 | subject)", trial, residual="ar1(t | subject)").core) is type(subjects.core)


def test_dispersion_beside_crossed_effects_is_a_matter_of_weights(trial):
    fit = lmer("y ~ x + (1 | item) + (1 | site)", trial, dispersion="~ arm")
    scale = np.exp(fit.theta["log_sd.arm[T.b]"])
    known = lmer("y ~ x + (1 | item) + (1 | site)", trial, weights=np.where(trial.arm == "b", 1.0 / scale**2, 1.0))
    assert fit.criterion == pytest.approx(known.criterion, abs=1e-6)
    np.testing.assert_allclose(fit.params, known.params, atol=1e-6)
    assert fit.sigma == pytest.approx(known.sigma, rel=1e-5)


def test_sparse_effects_beside_a_residual_structure(trial):
    fit = lmer("y ~ x + sparse(item) + (1 | site)", trial, residual="us(t | subject)")
    dummies = lmer("y ~ x + factor(item) + (1 | site)", trial, residual="us(t | subject)")
    assert fit.criterion == pytest.approx(dummies.criterion, abs=1e-6)
    assert fit.params["x"] == pytest.approx(dummies.params["x"], abs=1e-5)
    assert fit.bse["x"] == pytest.approx(dummies.bse["x"], rel=1e-4)
    assert fit.coef_table().loc["x", "df"] == pytest.approx(dummies.coef_table().loc["x", "df"], rel=1e-3)
    alone = lmer("y ~ x + sparse(item)", trial, residual="us(t | subject)")
    dummies = lmer("y ~ x + factor(item)", trial, residual="us(t | subject)")
    assert alone.criterion == pytest.approx(dummies.criterion, abs=1e-6)


@pytest.mark.parametrize("name", ["hatvalues", "cooks_distance"])
def test_what_does_not_work_says_so(trial, name):
    fit = lmer("y ~ x + (1 | item)", trial, residual="ar1(t | subject)")
    with pytest.raises(ModelError, match=f"{name} is not available"):
        getattr(fit, name)()
    for kind in ("CR0", "CR2"):
        with pytest.raises(ModelError, match="robust covariances are not available"):
            fit.coef_table(cov_type=kind)
