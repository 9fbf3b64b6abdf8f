"""What a generalised fit answers beside its own: leverages, influence, tests of random effects, changes, files."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import minimize

from fastlmm_core import glmer, load, load_dataset
from fastlmm_core.errors import ModelError, SpellingError
from fastlmm_core.fitting.generalised import glmm_of

INFLUENCE = {  # lme4 1.1-31: influence(m, "herd") of the fit of cbpp, dfbetas
    "1": [0.10044876, -0.52298791, -0.94613783, -0.00708798],
    "2": [0.13152401, 0.01354651, 0.02795075, -0.01688139],
    "3": [-0.37336822, 0.20043686, 0.64837095, -0.09060078],
    "4": [-0.02177503, 0.21029534, -0.31826396, 0.12768377],
}


@pytest.fixture(scope="module")
def cbpp():
    data = load_dataset("cbpp")
    return data, glmer("cbind(incidence, size - incidence) ~ period + (1 | herd)", data, "binomial")


@pytest.fixture(scope="module")
def crossed():
    data = load_dataset("VerbAgg")
    data = data[data["id"].isin(data["id"].unique()[:40])].reset_index(drop=True)
    return data, glmer("r2 ~ Anger + btype + (1 + situ | id) + (1 | item)", data, "binomial")


def test_influence_of_groups(cbpp):
    fit = cbpp[1]
    refits, steps = (fit.influence("herd", method=method) for method in ("refit", "one-step"))
    assert_allclose(refits.dfbetas.loc[list(INFLUENCE)], list(INFLUENCE.values()), atol=0.015)
    assert_allclose(steps.dfbetas, refits.dfbetas, atol=0.12)
    assert steps.cooks_distance.corr(refits.cooks_distance) > 0.99
    assert (refits.n_rows == 4).sum() >= 10
    left = cbpp[0][cbpp[0]["herd"].astype(str) != "1"]
    again = glmer(fit.formula, left, "binomial")
    assert_allclose(refits.params.loc["1"], again.params, rtol=1e-5)
    assert_allclose(refits.theta.loc["1"], again.theta, rtol=1e-4)
    assert_allclose(refits.std_errors.loc["1"], again.bse, rtol=1e-4)
    with pytest.raises(ModelError, match="no exact formula"):
        fit.influence("herd", method="fixed")


def test_leverages_are_the_derivatives_of_the_fit(cbpp):
    """At fixed theta d mu / d y, for the joint mode of the effects and the coefficients; n - sum is dispersion's df."""
    data, fit = cbpp
    h = fit.hatvalues()
    assert ((h > 0) & (h < 1)).all()
    assert_allclose(fit.dispersion()["df"], len(data) - h.sum(), rtol=1e-10)
    X, m = fit.design.X, fit.design.weights
    Z = np.zeros((len(m), 15))
    Z[np.arange(len(m)), fit.design.random[0].codes] = 1.0
    w = m * fit.fittedvalues.to_numpy() * (1 - fit.fittedvalues.to_numpy())
    A = np.column_stack([X, Z])
    penalty = np.diag([0.0] * 4 + [1 / fit.theta.iloc[0] ** 2] * 15)
    inner = A.T @ (w[:, None] * A) + penalty
    assert_allclose(h, w * np.einsum("ij,ji->i", A, np.linalg.solve(inner, A.T)), rtol=2e-2)
    r = fit.residuals("pearson")
    assert_allclose(fit.cooks_distance(), (r / (1 - h)) ** 2 * h / 4)


def test_random_effects_are_tested_by_likelihood_ratios(cbpp, crossed):
    table = cbpp[1].ranova()
    assert table.loc["(1 | herd)", "df"] == 1
    p, n = cbpp[0]["incidence"] / cbpp[0]["size"], cbpp[0]["size"]
    rate = (
        cbpp[0].groupby("period", observed=True)["incidence"].sum() / n.groupby(cbpp[0]["period"], observed=True).sum()
    )
    mu = cbpp[0]["period"].map(rate).astype(float)
    own = np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / mu), 0) + np.where(
        p < 1, (1 - p) * np.log(np.where(p < 1, 1 - p, 1) / (1 - mu)), 0
    )
    both = np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0) + np.where(
        p < 1, (1 - p) * np.log(np.where(p < 1, 1 - p, 1)), 0
    )
    from scipy.special import gammaln

    k = cbpp[0]["incidence"]
    constant = (gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)).sum()
    without = -2 * (constant + (n * (both - own)).sum())
    assert_allclose(-2 * table.loc["(1 | herd)", "llf"], without, rtol=1e-9)
    data, fit = crossed
    table = fit.ranova()
    smaller = glmer("r2 ~ Anger + btype + (1 | id) + (1 | item)", data, "binomial")
    assert_allclose(table.loc["situ in (1 + situ | id)", "lrt"], smaller.criterion - fit.criterion, rtol=1e-6)
    other = glmer("r2 ~ Anger + btype + (1 + situ | id)", data, "binomial")
    assert_allclose(table.loc["(1 | item)", "lrt"], other.criterion - fit.criterion, rtol=1e-6)
    with pytest.raises(ModelError, match="chisq"):
        fit.ranova(test="bootstrap")


def test_joint_tests_of_coefficients(cbpp):
    fit = cbpp[1]
    found = fit.f_test(np.eye(4)[1:])
    assert_allclose(3 * found.F, fit.anova().loc["period", "chisq"], rtol=1e-10)
    assert np.isinf(found.den_df)


def test_changes(cbpp, crossed):
    data, fit = cbpp
    without = fit.update(". ~ . - period")
    assert list(without.params.index) == ["Intercept"]
    probit = fit.update(link="probit")
    assert probit.family.link.name == "probit"
    assert_allclose(fit.update(n_agq=9).params, glmer(fit.formula, data, n_agq=9).params, rtol=1e-8)
    assert fit.refit_ml() is fit
    assert fit.update(family="poisson", formula="incidence ~ .", exposure="size").family.name == "poisson"
    with pytest.raises(SpellingError, match=r"update\(\) takes arguments of glmer, not 'reml'"):
        fit.update(reml=True)
    smaller = crossed[1].update(". ~ . - (0 + situ | id)")
    assert len(smaller.theta) == 2


def test_reports(cbpp, crossed):
    report = cbpp[1].convergence_report()
    assert report.ok
    assert list(report.gradient.index) == ["herd.Intercept", *cbpp[1].params.index]
    assert crossed[1].convergence_report().ok
    assert crossed[1].engine_report().engine == "dense"
    with pytest.raises(ModelError, match="one grouping factor"):
        cbpp[1].engine_report()
    assert_allclose(cbpp[1].re_pca()["herd"]["sd"], cbpp[1].theta)
    table = crossed[1].ranef()
    block = crossed[1].ranef_cov()["item"]
    assert_allclose(np.sqrt(block["Intercept"]), table.loc[table["grpvar"] == "item", "condsd"], rtol=1e-10)


@pytest.mark.parametrize("which", ["cbpp", "crossed"])
def test_files(which, request, tmp_path):
    _, fit = request.getfixturevalue(which)
    fit.save(tmp_path / "fit", data=True)
    again = load(tmp_path / "fit")
    assert type(again) is type(fit)
    assert again.criterion == fit.criterion
    assert (again.params == fit.params).all()
    assert_allclose(again.bse, fit.bse, rtol=1e-6)
    pd.testing.assert_series_equal(again.predict(), fit.predict(), rtol=1e-8)
    assert len(again.fit_log) == len(fit.fit_log)


def test_files_keep_what_the_family_was_given(tmp_path):
    from fastlmm_core.families import NegativeBinomial

    data = load_dataset("grouseticks")
    for family in (NegativeBinomial(alpha=0.7), "negativebinomial"):
        fit = glmer("TICKS ~ YEAR + (1 | BROOD)", data, family)
        fit.save(tmp_path / "fit", data=True)
        again = load(tmp_path / "fit")
        assert again.family == fit.family
        assert again.criterion == fit.criterion
        assert_allclose(again.family_params, fit.family_params, rtol=1e-6)


def test_what_there_is_none_of_says_why(cbpp):
    fit = cbpp[1]
    for name, words in {"marginal_cov": "no closed form", "step": "drop1", "VarCorr": r"var_corr\(\)"}.items():
        with pytest.raises(SpellingError, match=words):
            getattr(fit, name)
    assert not hasattr(fit, "step")
    with pytest.raises(ModelError, match="given the parameters"):
        fit.ranef_cov(beta_known=False)


@pytest.mark.parametrize(
    "picture",
    ["caterpillar", "random_qq", "residuals", "simulated_residuals", "forest", "influence", "variance"],
)
def test_pictures(crossed, picture):
    pytest.importorskip("matplotlib")
    options = {"by": "item"} if picture == "influence" else {}
    assert len(getattr(crossed[1].plot, picture)(**options).axes) >= 1


def test_pictures_along_predictors(cbpp):
    pytest.importorskip("matplotlib")
    data, fit = cbpp
    axis = fit.plot.effects("period").axes[0]
    means = fit.emmeans("period", scale="response").to_frame()
    assert_allclose(axis.lines[0].get_ydata(), means["estimate"])
    lines = fit.plot.fitted_lines(data, "period", n=2)
    assert max(line.get_ydata().max() for line in lines.axes[0].lines) <= 1.0
    for name in ("shrinkage", "surface"):
        with pytest.raises(ModelError, match="generalised fit"):
            getattr(fit.plot, name)()


CBPP = "cbind(incidence, size - incidence) ~ period + (1 | herd)"


def test_profiles_where_the_model_hessian_is_indefinite():
    """Overdispersion and effects tell almost the same; the limits' deviance is 1.96^2 above the least."""
    fit = glmer("incidence ~ period + (1 | herd)", load_dataset("cbpp"), "negativebinomial", exposure="size")
    found = fit.conf_int("profile")
    wald = fit.conf_int()
    for name in fit.params.index:
        assert_allclose(found.loc[name], wald.loc[name], atol=0.2)
    assert found.loc["alpha", "lower"] < 0.2 < 0.9 < found.loc["alpha", "upper"]
    assert found.loc["sd_Intercept|herd", "lower"] == 0.0
    objective = glmm_of(fit.design, fit.options).objective(fit.design.y)
    best = np.concatenate([fit.core.theta, fit.core.beta, fit.core.family.extra(fit.core.rho)])
    rest = np.delete(np.arange(6), 4)

    def held(x):
        full = np.insert(x, 4, found.loc["period[T.4]", "upper"])
        return objective(full), objective.gradient(full)[rest]

    least = minimize(held, best[rest], jac=True, method="BFGS").fun
    assert_allclose(least - fit.criterion, 1.959964**2, rtol=1e-4)


def test_bca_intervals_correct_the_bias_of_standard_deviations():
    fit = glmer(CBPP, load_dataset("cbpp"), "binomial")
    draws = fit.bootstrap(300, seed=1)
    plain, corrected = (fit.conf_int("boot", draws=draws, kind=kind) for kind in ("percentile", "bca"))
    name = "sd_Intercept|herd"
    assert draws[name].mean() < fit.theta.iloc[0]  # estimates of drawn responses are smaller: limits move up
    assert (corrected.loc[name] > plain.loc[name]).all()
    from fastlmm_core.inference.generalised.intervals import jackknife

    left_out = jackknife(fit)
    data = load_dataset("cbpp")
    first = glmer(CBPP, data[data["herd"].astype(str) != str(fit.design.random[0].levels[0])], "binomial")
    assert_allclose(left_out[0], [*first.theta, *first.params], rtol=1e-4)
    assert left_out.shape == (15, 5)
