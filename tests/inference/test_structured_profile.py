"""Profiles of models with covariance structures, against the ordinary ones and against fits with a parameter held."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import ModelError, lmer, load_dataset
from fastlmm_core.inference.structured_surface import open_surface


@pytest.fixture(scope="module")
def trial() -> pd.DataFrame:
    rng = np.random.default_rng(7)
    d = pd.DataFrame({"subject": np.repeat(np.arange(40), 4), "t": np.tile(np.arange(4), 40)})
    d["item"], d["arm"] = rng.integers(0, 6, 160).astype(str), np.where(d.subject % 2, "a", "b")
    d["x"], d["w"] = rng.normal(size=160), rng.uniform(0.5, 2.0, 160)
    e = (rng.normal(size=(40, 4)) @ np.linalg.cholesky(0.6 ** np.abs(np.subtract.outer(range(4), range(4)))).T).ravel()
    d["y"] = d.x + rng.normal(size=6)[d["item"].astype(int)] + e * np.where(d.arm == "a", 1.5, 1.0)
    return d


@pytest.mark.parametrize(
    ("formula", "options"),
    [
        ("y ~ x", {"residual": "ar1h(t | subject)", "dispersion": "~ w", "weights": "w"}),
        ("y ~ x + (1 | item)", {"residual": "us(t | subject)"}),
        ("y ~ x + ar1(0 + factor(t) | subject) + (1 | item)", {"weights": "w"}),
        ("y ~ x + sparse(item) + (1 | subject)", {}),
        ("y ~ x + (x | item)", {"relmat": {"item": pd.DataFrame(0.2 + np.eye(6), list("012345"), list("012345"))}}),
    ],
)
def test_the_surface_and_its_slopes(trial, formula, options):
    fit = lmer(formula, trial, reml=False, **options)
    with ExitStack() as stack:
        surface = open_surface(fit.core, stack)
        here = surface.at(surface.phi)
        assert here.value == pytest.approx(fit.criterion, abs=1e-9)
        at = surface.phi + 0.1 * np.random.default_rng(0).normal(size=len(surface.phi))
        level, h = surface.at(at), 1e-5
        log_s = level.log_s + 0.4
        _, gradient, _ = level.given(surface.n, log_s)

        def moved(step):
            return surface.at(at + step[:-1]).given(surface.n, log_s + step[-1])[0]

        slopes = [(moved(s) - moved(-s)) / (2 * h) for s in h * np.eye(len(at) + 1)]
        np.testing.assert_allclose(gradient, slopes, atol=2e-6 * (1 + np.abs(slopes).max()))


def test_the_same_intervals_as_the_ordinary_model():
    data = load_dataset("sleepstudy")
    plain = lmer("Reaction ~ Days + (1 | Subject)", data).conf_int("profile")
    for structured in ("homdiag(1 | Subject)", "homdiag(1 | Subject) + homdiag(0 + Days | Subject)"):
        found = lmer(f"Reaction ~ Days + {structured}", data).conf_int("profile")
        if "+" in structured:
            plain = lmer("Reaction ~ Days + (Days || Subject)", data).conf_int("profile")
        np.testing.assert_allclose(np.sort(found, axis=0), np.sort(plain, axis=0), rtol=2e-4)


def test_a_limit_is_where_the_likelihood_ratio_says(trial):
    fit = lmer("y ~ x + arm", trial, residual="ar1(t | subject)", dispersion="~ arm", reml=False)
    limits = fit.conf_int("profile")
    assert list(limits.index) == ["sd Residual", "rho", "dispersion arm[T.b]", *fit.params.index]
    rise = fit.criterion + 3.841458820694124
    upper = limits.loc["x", "upper"]
    without = lmer(
        "y ~ 1 + arm",
        trial.assign(y=trial.y - upper * trial.x),
        residual="ar1(t | subject)",
        dispersion="~ arm",
        reml=False,
    )
    assert without.criterion == pytest.approx(rise, abs=2e-3)
    profile = fit.profile("rho", level=0.95)
    rho = limits.loc["rho", "lower"]
    assert profile["rho"].zeta_at([rho])[0] == pytest.approx(-1.96, abs=2e-3)
    n = len(trial)
    lag = np.abs(np.subtract.outer(trial.t.to_numpy(), trial.t.to_numpy()))
    V = rho**lag * (trial.subject.to_numpy()[:, None] == trial.subject.to_numpy())

    def deviance(log_ratio):
        s = np.where(trial.arm == "b", np.exp(log_ratio), 1.0)
        W = V * np.outer(s, s)
        inverse = np.linalg.inv(W)
        X = fit.design.X
        e = trial.y.to_numpy() - X @ np.linalg.solve(X.T @ inverse @ X, X.T @ inverse @ trial.y.to_numpy())
        return np.linalg.slogdet(W)[1] + n * (1 + np.log(2 * np.pi * (e @ inverse @ e) / n))

    centre = fit.theta["log_sd.arm[T.b]"]
    assert min(deviance(v) for v in np.linspace(centre - 0.05, centre + 0.05, 21)) == pytest.approx(rise, abs=5e-3)


def test_what_has_a_profile(trial):
    fit = lmer("y ~ x", trial, residual="us(t | subject)")
    assert list(fit.conf_int("profile", parm="theta_").index) == ["sd 0", "sd 1", "sd 2", "sd 3"]
    with pytest.raises(ModelError, match="no parameter 'cov 1, 0'"):
        fit.profile("cov 1, 0")
    crossed = lmer("y ~ x + (1 | item)", trial, residual="ar1(t | subject)")
    found = crossed.conf_int("profile")
    wald = crossed.covariance_parameters()
    assert list(found.index) == ["sd Residual", "rho", "sd Intercept | item", "Intercept", "x"]
    assert found.loc["rho", "lower"] == pytest.approx(wald.loc["rho", "lower"], abs=0.02)
    assert found.loc["sd Residual", "upper"] == pytest.approx(np.sqrt(wald.loc["var Residual", "upper"]), rel=0.03)
    zero = lmer(
        "y ~ x + (1 | arm)",
        trial.assign(y=trial.y - trial.groupby("arm").y.transform("mean")),
        residual="ar1(t | subject)",
    )
    assert zero.conf_int("profile", parm="sd Intercept | arm")["lower"].iloc[0] == 0.0


def test_a_dispersion_and_a_coefficient_of_one_column_have_names_apart() -> None:
    rng = np.random.default_rng(2)
    data = pd.DataFrame({"g": np.repeat(range(12), 6), "a": np.tile(list("pq"), 36)})
    data["y"] = 3.0 * (data["a"] == "q") + rng.normal(size=12)[data["g"]] + rng.normal(size=72)
    fit = lmer("y ~ a + (1 | g)", data, dispersion="~ a")
    draws = fit.bootstrap(2, seed=1)
    assert list(draws) == ["var Residual", "dispersion a[T.q]", "var Intercept | g", "Intercept", "a[T.q]"]
    assert (draws["a[T.q]"] - fit.params["a[T.q]"]).abs().max() < 1.5
    limits = fit.conf_int("profile", parm=["a[T.q]"])
    assert limits.index.tolist() == ["a[T.q]"]
    assert limits.loc["a[T.q]", "lower"] < fit.params["a[T.q]"] < limits.loc["a[T.q]", "upper"]
    assert fit.covariance_parameters().index[1] == "dispersion a[T.q]"
