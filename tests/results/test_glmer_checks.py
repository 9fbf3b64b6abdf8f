"""Checks and intervals of generalised fits: dispersion, Laplace's worth, profiles, bootstrap."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from fastlmm_core import Control, FormulaWarning, ModelError, glmer, load_dataset
from fastlmm_core.families import Poisson

REFERENCE = json.loads((Path(__file__).parents[1] / "golden" / "glmer" / "reference.json").read_text())
CBPP = "cbind(incidence, size - incidence) ~ period + (1 | herd)"


@pytest.fixture(scope="module")
def fit():
    return glmer(CBPP, load_dataset("cbpp"), "binomial")


@pytest.fixture(scope="module")
def slopes():
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(25), 12)
    x = rng.normal(size=300)
    b = rng.multivariate_normal([0, 0], [[0.4, 0.1], [0.1, 0.2]], 25)
    data = pd.DataFrame({"g": g.astype(str), "x": x, "k": rng.poisson(np.exp(0.5 + 0.3 * x + b[g, 0] + b[g, 1] * x))})
    return glmer("k ~ x + (x | g)", data, "poisson"), data


def test_profile_intervals_are_lme4s(fit):
    assert_allclose(fit.conf_int("profile"), REFERENCE["cbpp"]["profile"], rtol=1e-3)


def test_wald_intervals_are_lme4s(fit):
    assert_allclose(fit.conf_int(parm="beta_"), REFERENCE["cbpp"]["wald"], rtol=1e-3)
    assert_allclose(fit.conf_int(parm="beta_", exp=True), np.exp(fit.conf_int(parm="beta_")))


def test_a_coefficients_profile_is_the_deviance_with_it_held(slopes):
    fit, data = slopes
    curve = fit.profile("x")["x"]
    for value in (0.2, 0.45):
        held = glmer("k ~ 1 + offset(v * x) + (x | g)", data.assign(v=value), "poisson")
        assert_allclose(curve.zeta_at([value])[0] ** 2, held.criterion - fit.criterion, rtol=1e-3)


def test_profiles_of_a_correlation_and_its_deviations(slopes):
    fit, _ = slopes
    found = fit.conf_int("profile")
    assert list(found.index[:3]) == ["sd_Intercept|g", "cor_x.Intercept|g", "sd_x|g"]
    table = fit.var_corr().to_frame()
    sds, cor = table["sdcor"].to_numpy()[:2], table["sdcor"].to_numpy()[2]
    estimates = np.array([sds[0], cor, sds[1]])
    assert (found["lower"].to_numpy()[:3] < estimates).all()
    assert (estimates < found["upper"].to_numpy()[:3]).all()
    # the order of the columns is nobody's choice: the first one's sd by another path
    swapped = glmer("k ~ x + (0 + x + one | g)", slopes[1].assign(one=1.0), "poisson")
    assert_allclose(swapped.conf_int("profile", parm="sd_x|g"), found.loc[["sd_x|g"]], rtol=2e-3)


def test_bootstrap(fit):
    draws = fit.bootstrap(60, seed=1)
    assert list(draws.columns) == ["sd_Intercept|herd", *fit.params.index]
    assert_allclose(draws.iloc[0, 1:], fit.refit(fit.simulate(1, seed=1)["sim_1"]).params, atol=1e-4)
    limits = fit.conf_int("boot", draws=draws)
    assert (limits["lower"] < limits["upper"]).all()
    one = fit.bootstrap(3, seed=1, statistic=lambda again: again.llf)
    assert list(one.columns) == ["statistic"]


def test_bootstrap_of_a_family_with_a_parameter():
    data = load_dataset("grouseticks")
    fit = glmer("TICKS ~ YEAR + (1 | BROOD)", data, "negativebinomial")
    draws = fit.bootstrap(5, seed=2)
    assert "alpha" in draws
    assert fit.conf_int("profile", parm="alpha").loc["alpha"].between(0.1, 1.0).all()


def test_a_single_factor_by_cholmod_answers_the_same(fit):
    whole = glmer(CBPP, load_dataset("cbpp"), "binomial", control=Control(engine="cholmod"))
    assert "cholmod" in str(whole.engine_report())
    # a search through factors ends where 1e-8 of the deviance is left, which is 1e-4 standard errors
    assert_allclose(whole.criterion, fit.criterion, atol=2e-8)
    assert (np.abs(whole.params - fit.params) < 2e-4 * fit.coef_table()["std_error"]).all()
    assert_allclose(whole.ranef()["condval"], fit.ranef()["condval"], atol=1e-3)
    assert_allclose(whole.laplace_check().parts, fit.laplace_check().parts, rtol=1e-3)


def test_what_laplace_leaves_out_of_crossed_effects_is_that_of_dense_matrices():
    rng = np.random.default_rng(9)
    g, h = np.arange(240) % 12, np.arange(240) // 12 % 8
    y = rng.random(240) < 1 / (1 + np.exp(-rng.normal(size=12)[g] - rng.normal(size=8)[h]))
    fit = glmer("y ~ 1 + (1 | g) + (1 | h)", {"y": y, "g": g.astype(str), "h": h.astype(str)})
    theta = fit.theta.to_numpy()
    A = np.hstack([np.eye(len(t.level_set))[t.codes] * s for t, s in zip(fit.design.random, theta, strict=True)])
    mu = fit.core.mu
    w = mu * (1 - mu)
    kappa, fourth = w * (1 - 2 * mu), w * (1 - 6 * w)
    gamma = A @ np.linalg.solve(A.T @ (w[:, None] * A) + np.eye(A.shape[1]), A.T)
    leverage = np.diag(gamma)
    c = kappa * leverage
    expected = -np.sum(fourth * leverage**2) / 8, c @ gamma @ c / 8, kappa @ gamma**3 @ kappa / 12
    assert_allclose(fit.laplace_check().parts, expected, rtol=1e-5)


def test_the_second_order_term_is_near_quadratures(fit):
    check = fit.laplace_check()
    assert_allclose(check.correction, check.quadrature, atol=0.003)
    by_fit = 0.5 * (fit.criterion - glmer(CBPP, load_dataset("cbpp"), n_agq=25).criterion)
    assert_allclose(check.quadrature, by_fit, atol=0.01)
    with pytest.raises(ModelError, match="quadrature"):
        glmer(CBPP, load_dataset("cbpp"), n_agq=5).laplace_check()


def test_effects_as_fine_as_the_rows_have_no_expansion():
    data = load_dataset("grouseticks")
    fit = glmer("TICKS ~ YEAR + (1 | BROOD) + (1 | INDEX) + (1 | LOCATION)", data, "poisson")
    assert np.isnan(fit.laplace_check().correction)
    assert fit.laplace_check().verdict.startswith("unknown")


def test_dispersion_is_one_where_the_model_is_right_and_counts_the_modes(fit):
    rng = np.random.default_rng(6)
    g = np.repeat(np.arange(100), 5)
    k = rng.poisson(np.exp(1.0 + 0.7 * rng.normal(size=100)[g]))
    found = glmer("k ~ 1 + (1 | g)", {"k": k, "g": g.astype(str)}, "poisson").dispersion()
    assert abs(found["ratio"] - 1.0) < 0.12
    assert 380 < found["df"] < 440
    assert abs(found["zeros_observed"] - found["zeros_expected"]) < 15
    assert fit.dispersion()["ratio"] > 1.3  # herds differ over time, too


def test_effective_parameters_are_the_trace_of_the_dense_hat_matrix(fit):
    core, design = fit.core, fit.design
    w = design.weights * core.mu * (1 - core.mu)
    A = np.eye(15)[design.random[0].codes] * float(fit.theta.iloc[0])
    both = np.hstack([A, design.X])
    joint = both.T @ (w[:, None] * both) + np.diag(np.r_[np.ones(15), np.zeros(4)])
    trace = np.trace(np.linalg.solve(joint, both.T @ (w[:, None] * both)))
    assert_allclose(fit.dispersion()["df"], 56 - trace, rtol=1e-5)


def test_shares_of_variance(fit):
    variance = float(fit.theta.iloc[0]) ** 2
    assert_allclose(fit.icc()["adjusted"], variance / (variance + np.pi**2 / 3))
    fixed = np.var(fit.design.X @ fit.params.to_numpy(), ddof=1)
    assert_allclose(fit.r2()["marginal"], fixed / (fixed + variance + np.pi**2 / 3))
    with pytest.raises(ModelError, match="cauchit"):
        glmer(CBPP, load_dataset("cbpp"), link="cauchit").r2()


@pytest.mark.parametrize(
    ("family", "match"),
    [
        ("Gamma", "here it is 'gamma'"),
        ("nbinom2", "here it is 'negativebinomial'"),
        ("inverse.gaussian", "here it is 'inverse_gaussian'"),
        ("quasipoisson", "quasi-likelihoods have none"),
        ("zinb", 'zero="~ 1"'),
        (Poisson, r"family Poisson does not exist: give an instance, Poisson\(...\)"),
        ("poison", "did you mean 'poisson'"),
    ],
)
def test_names_of_families_elsewhere_are_answered(family, match):
    with pytest.raises(ModelError, match=match):
        glmer("incidence ~ period + (1 | herd)", load_dataset("cbpp"), family)


def test_an_offset_that_cannot_be_computed_is_said():
    rng = np.random.default_rng(0)
    data = {"g": np.repeat(np.arange(10), 6), "t": rng.uniform(0.5, 2.0, 60), "y": rng.poisson(3, 60)}
    data["t"][3] = -1.0
    for given in ({"offset": "log(t)"}, {}):
        formula = "y ~ 1 + (1 | g)" if given else "y ~ offset(log(t)) + (1 | g)"
        with pytest.warns(FormulaWarning, match="the offset has no value in 1 row where t has one: it is left out"):
            fit = glmer(formula, data, "poisson", **given)
        with pytest.warns(FormulaWarning, match="where t has one: it is predicted as NaN"):
            found = fit.predict({"g": [1, 1], "t": [-1.0, 1.0]})
        assert found.isna().tolist() == [True, False]
