"""`glmer`: left sides, errors and warnings, and the result's figures against lme4 and glmmTMB."""

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import fastlmm_core
from fastlmm_core import LmerResult, anova, glmer, lmer, load_dataset
from fastlmm_core.errors import (
    BoundaryWarning,
    DataError,
    FastLMMWarning,
    FormulaError,
    LaplaceWarning,
    ModelError,
    SeparationWarning,
    SpellingError,
)

REFERENCE = json.loads((Path(__file__).parents[1] / "golden" / "glmer" / "reference.json").read_text())
CBPP = "cbind(incidence, size - incidence) ~ period + (1 | herd)"


@pytest.fixture(scope="module")
def cbpp():
    return load_dataset("cbpp")


@pytest.fixture(scope="module")
def fit(cbpp):
    return glmer(CBPP, cbpp, "binomial")


@pytest.fixture(scope="module")
def ticks():
    data = load_dataset("grouseticks")
    data = data.assign(h=(data["HEIGHT"] - data["HEIGHT"].mean()) / data["HEIGHT"].std())
    return glmer("TICKS ~ YEAR + h + (1 | BROOD) + (1 | LOCATION)", data, "negativebinomial")


# ---------------------------------------------------------------------- figures


@pytest.mark.parametrize("kind", ["deviance", "pearson", "response", "working"])
def test_residuals_are_lme4s(fit, kind):
    assert_allclose(fit.residuals(kind), REFERENCE["cbpp"]["residuals"][kind], rtol=1e-3, atol=1e-5)


def test_deviance_fitted_values_and_conditional_sds_are_lme4s(fit):
    assert_allclose(fit.deviance, REFERENCE["cbpp"]["deviance"], rtol=1e-5)
    assert_allclose(fit.fittedvalues, REFERENCE["cbpp"]["fitted"], rtol=1e-4)
    assert_allclose(fit.ranef()["condsd"], REFERENCE["cbpp"]["condsd"], rtol=1e-3)


@pytest.mark.parametrize("kind", ["link", "response"])
def test_uncertainty_of_known_groups_is_glmmtmbs(fit, cbpp, kind):
    for newdata in (None, cbpp):
        found = fit.predict(newdata, kind=kind, interval="confidence")
        assert_allclose(found["fit"], REFERENCE["cbpp"][kind]["fit"], rtol=1e-4)
        assert_allclose(found["std_error"], REFERENCE["cbpp"][kind]["se.fit"], rtol=1e-3)
        assert (found["lower"] < found["fit"]).all()
        assert (found["fit"] < found["upper"]).all()


def test_two_factors_and_a_negative_binomial_are_glmmtmbs(ticks):
    reference = REFERENCE["ticks"]
    assert_allclose(ticks.criterion, reference["crit"], atol=1e-4)
    assert_allclose(ticks.family_params.loc["alpha", "estimate"], reference["alpha"], rtol=1e-3)
    found = ticks.predict(kind="link", interval="confidence").head(20)
    assert_allclose(found["fit"], reference["link"]["fit"], atol=1e-3)
    assert_allclose(found["std_error"], reference["link"]["se.fit"], rtol=2e-3)
    assert_allclose(ticks.residuals("pearson").head(20), reference["pearson"], rtol=2e-3, atol=1e-3)


def test_drop1_is_lme4s(fit):
    row, reference = fit.drop1().loc["period"], REFERENCE["cbpp"]["drop1"]
    assert_allclose(row["chisq"], reference["LRT"], rtol=1e-5)
    assert_allclose(row["aic"], reference["AIC"], rtol=1e-7)
    assert_allclose(row["p"], reference["Pr(Chi)"], rtol=1e-3)


def test_wald_tests_of_terms(fit):
    table = fit.anova()
    beta, cov = fit.params.to_numpy()[1:], fit.cov_params().to_numpy()[1:, 1:]
    assert_allclose(table.loc["period", "chisq"], beta @ np.linalg.solve(cov, beta), rtol=1e-10)
    assert list(table.columns) == ["chisq", "df", "p"]
    assert_allclose(fit.anova(type=1)["chisq"], fit.anova(type="II")["chisq"], rtol=1e-10)
    assert_allclose(fit.drop1(test="wald")["chisq"], table["chisq"], rtol=1e-10)


def test_likelihood_ratio_of_two_fits(fit, cbpp):
    small = glmer("cbind(incidence, size - incidence) ~ 1 + (1 | herd)", cbpp, "binomial")
    assert_allclose(anova(small, fit)["chisq"].iloc[1], fit.drop1().loc["period", "chisq"], atol=1e-6)


def test_odds_ratios(fit):
    table, plain = fit.coef_table(exp=True), fit.coef_table()
    assert_allclose(np.log(table["estimate"]), plain["estimate"])
    assert_allclose(np.log(table["lower"]), plain["estimate"] - 1.959964 * plain["std_error"], rtol=1e-6)
    tidy = fit.tidy("fixed", exp=True, conf_int=True).set_index("term")
    for ours, theirs in (("estimate", "estimate"), ("std_error", "std_error"), ("conf_low", "lower")):
        assert_allclose(tidy[ours], table[theirs])


def test_a_marginal_mean_is_the_average_over_groups(fit):
    new = {"period": ["1", "2"]}
    eta = fit.predict(new, kind="link", re_form="none").to_numpy()
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    sd = float(fit.theta.iloc[0])
    expected = (1 / (1 + np.exp(-(eta[:, None] + sd * nodes)))) @ weights / weights.sum()
    assert_allclose(fit.predict(new, kind="marginal"), expected, atol=2e-6)
    assert_allclose(fit.predict(new, kind="population"), 1 / (1 + np.exp(-eta)))


def test_simulated_responses_have_the_models_mean_and_refit(fit):
    drawn = fit.simulate(400, seed=1)
    assert_allclose(drawn.mean(axis=1) / fit.design.weights, fit.predict(kind="marginal"), atol=0.05)
    again = fit.refit(drawn["sim_1"])
    fresh = glmer("k ~ period + (1 | herd)", load_dataset("cbpp").assign(k=drawn["sim_1"]), "binomial", trials="size")
    assert_allclose(again.criterion, fresh.criterion, atol=1e-6)
    assert_allclose(fit.refit(fit.design.y).params, fit.params, atol=1e-6)


def test_quantile_and_simulated_residuals_are_what_they_should_be(fit, ticks):
    assert abs(np.std(ticks.residuals("quantile")) - 1) < 0.15
    uniform = ticks.residuals("simulated")
    assert uniform.between(0, 1).all()
    assert abs(uniform.mean() - 0.5) < 0.1
    assert fit.residuals("quantile", seed=3).equals(fit.residuals("quantile", seed=3))


@pytest.mark.parametrize("family", ["gamma", "inverse_gaussian", "beta", "negativebinomial1"])
def test_residuals_of_other_families(family):
    rng = np.random.default_rng(4)
    g = np.repeat(np.arange(20), 10)
    eta = 0.3 * rng.normal(size=20)[g]
    y = {
        "gamma": rng.gamma(3, np.exp(eta) / 3),
        "inverse_gaussian": rng.wald(np.exp(eta), 3.0),
        "beta": rng.beta(5 / (1 + np.exp(-eta)), 5 / (1 + np.exp(eta))),
        "negativebinomial1": rng.poisson(rng.gamma(np.exp(eta + 1), 1.0)).astype(float),
    }[family]
    fit = glmer("y ~ 1 + (1 | g)", {"y": y, "g": g.astype(str)}, family)
    assert abs(np.std(fit.residuals("quantile")) - 1) < 0.15
    deviance = fit.residuals("deviance")
    assert np.isfinite(deviance).all()
    assert (np.sign(deviance) == np.sign(fit.residuals("response"))).all()
    assert "parameter" in str(fit.summary())


def test_a_result_pickles_and_answers_as_before(fit):
    again = pickle.loads(pickle.dumps(fit))
    assert_allclose(again.predict(interval="confidence"), fit.predict(interval="confidence"), rtol=1e-8)
    assert_allclose(again.refit(fit.design.y).params, fit.params, atol=1e-6)
    assert again.remarks == fit.remarks


def test_the_summary_says_what_it_is(fit, ticks):
    page = str(fit.summary())
    for text in ("Laplace's approximation", "binomial (logit)", "-2 log-likelihood", "z value", "herd, 15"):
        assert text in page
    assert "Residual" not in page.split("Random effects")[1]
    assert "alpha 0.3" in str(ticks.summary())
    assert json.loads(json.dumps(fit.to_dict(ranef=True)))["family"] == "binomial"


# ---------------------------------------------------------------------- left sides


def test_every_left_side_of_successes_and_trials_is_one_model(fit, cbpp):
    data = cbpp.assign(share=cbpp["incidence"] / cbpp["size"])
    for formula, options in (
        ("incidence ~ period + (1 | herd)", {"trials": "size"}),
        ("incidence ~ period + (1 | herd)", {"trials": data["size"].to_numpy()}),
        ("share ~ period + (1 | herd)", {"weights": "size"}),
        ("I(incidence / size) ~ period + (1 | herd)", {"weights": "size"}),
    ):
        other = glmer(formula, data, "binomial", **options)
        assert_allclose(other.criterion, fit.criterion, atol=1e-8)
    assert_allclose(other.simulate(1, seed=2)["sim_1"] * data["size"], fit.simulate(1, seed=2)["sim_1"])
    assert_allclose(other.refit(data["share"]).criterion, fit.criterion, atol=1e-6)


@pytest.fixture(scope="module")
def binary():
    rng = np.random.default_rng(11)
    g = np.repeat(np.arange(12), 15)
    x = rng.normal(size=180)
    y = rng.random(180) < 1 / (1 + np.exp(-x - rng.normal(size=12)[g]))
    return pd.DataFrame({"y": y.astype(int), "x": x, "g": g.astype(str)})


def test_every_left_side_of_single_trials_is_one_model(binary):
    first = glmer("y ~ x + (1 | g)", binary)
    data = binary.assign(
        truth=binary["y"] == 1,
        answer=pd.Categorical(np.where(binary["y"] == 1, "yes", "no"), categories=["no", "yes"]),
        text=np.where(binary["y"] == 1, "yes", "no"),
    )
    for name in ("truth", "answer", "text", "(y == 1)"):
        assert_allclose(glmer(f"{name} ~ x + (1 | g)", data).criterion, first.criterion, atol=1e-8)
    assert "'yes' counts as success" in str(glmer("answer ~ x + (1 | g)", data).summary())


def test_exposure_is_the_logarithm_as_an_offset():
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(10), 8)
    data = pd.DataFrame({"g": g.astype(str), "t": rng.uniform(1, 4, 80), "x": rng.normal(size=80)})
    data["k"] = rng.poisson(data["t"] * np.exp(0.3 * data["x"] + 0.4 * rng.normal(size=10)[g]))
    by_offset = glmer("k ~ x + offset(log(t)) + (1 | g)", data, "poisson")
    for exposure in ("t", data["t"].to_numpy()):
        fit = glmer("k ~ x + (1 | g)", data, "poisson", exposure=exposure)
        assert_allclose(fit.criterion, by_offset.criterion, atol=1e-8)
    twice = glmer("k ~ x + (1 | g)", data, "poisson", exposure="t").predict(data.assign(t=2 * data["t"]))
    assert_allclose(twice, 2 * by_offset.fittedvalues, rtol=1e-6)
    with pytest.raises(DataError, match=r"exposure must be positive.*1 of 80 rows, first in row 3"):
        glmer("k ~ x + (1 | g)", data.assign(t=data["t"].where(data.index != 3, 0.0)), "poisson", exposure="t")
    with pytest.raises(ModelError, match="needs the log link"):
        glmer("k ~ x + (1 | g)", data, "poisson", link="sqrt", exposure="t")


def test_frequencies_stand_for_repeated_rows(binary):
    data = binary.assign(f=np.arange(len(binary)) % 3)
    fit = glmer("y ~ x + (1 | g)", data, freq_weights="f")
    repeated = data.loc[data.index.repeat(data["f"])]
    assert_allclose(fit.criterion, glmer("y ~ x + (1 | g)", repeated).criterion, atol=1e-6)
    with pytest.raises(DataError, match=r"freq_weights.*first in row 1"):
        glmer("y ~ x + (1 | g)", data.assign(f=[1.0, -1.0] * 90), freq_weights="f")
    less = [glmer("y ~ 1 + (1 | g)", data[data["f"] > 0], **more) for more in ({}, {"freq_weights": "f"})]
    with pytest.raises(DataError, match="have different freq_weights: only fits of the same data can be compared"):
        anova(less[0], fit)
    assert anova(less[1], fit)["chisq"].iloc[1] > 0.0


def test_missing_values(cbpp, fit):
    data = cbpp.astype({"incidence": float})
    data.loc[4, "incidence"] = np.nan
    dropped = glmer(CBPP, data, "binomial")
    assert (dropped.n_missing, dropped.nobs) == (1, 55)
    kept = glmer(CBPP, data, "binomial", na_action="exclude")
    assert np.isnan(kept.fittedvalues[4])
    assert len(kept.residuals()) == 56
    with pytest.raises(DataError, match="missing values in incidence"):
        glmer(CBPP, data, "binomial", na_action="raise")


# ---------------------------------------------------------------------- errors and warnings


@pytest.mark.parametrize(
    ("change", "formula", "options", "error", "match"),
    [
        ({"y": 0.3}, "y ~ x + (1 | g)", {}, DataError, "proportions without weights="),
        ({"y": 3}, "y ~ x + (1 | g)", {}, DataError, "counts above one without trials=.*row 0"),
        ({"y": 0}, "y ~ x + (1 | g)", {}, ModelError, "every response is 0"),
        ({"y": 1}, "y ~ x + (1 | g)", {}, ModelError, "every response is 1"),
        ({"y": "no"}, "y ~ x + (1 | g)", {}, ModelError, "constant \\('no'"),
        ({"y": list("abc") * 60}, "y ~ x + (1 | g)", {}, DataError, "3 levels"),
        ({"n": 2.5}, "y ~ x + (1 | g)", {"trials": "n"}, DataError, "positive whole numbers.*row 0"),
        ({"n": 1, "y": 2}, "y ~ x + (1 | g)", {"trials": "n"}, DataError, "more successes y than trials"),
        ({"n": 3, "y": 2.0}, "y ~ x + (1 | g)", {"weights": "n"}, DataError, "proportion"),
        ({"n": 3, "y": 0.5}, "y ~ x + (1 | g)", {"weights": "n"}, DataError, "no whole number"),
        ({}, "cbind(y) ~ x + (1 | g)", {}, FormulaError, "1 columns"),
        ({}, "cbind(y, 1 - y) ~ x + (1 | g)", {"family": "poisson"}, ModelError, "belongs to the binomial"),
        ({"n": 1}, "cbind(y, 1 - y) ~ x + (1 | g)", {"trials": "n"}, ModelError, "give one of"),
        ({"n": 1}, "y ~ x + (1 | g)", {"trials": "n", "family": "gamma"}, ModelError, "trials belong"),
        ({"y": 0}, "y ~ x + (1 | g)", {"family": "poisson"}, ModelError, "constant"),
        ({"y": 1.5}, "y ~ x + (1 | g)", {"family": "poisson"}, DataError, "whole numbers"),
        ({"y": -1.0, "n": 1}, "y + x ~ x + (1 | g)", {"family": "gamma"}, DataError, "positive"),
        ({}, "y ~ x + (1 | row)", {}, ModelError, "row has 180 levels for 180 rows"),
        ({}, "exp(x) ~ 1 + (1 | row)", {"family": "gamma"}, ModelError, "own dispersion"),
        ({}, "y ~ x + (1 | g) + (1 | h)", {"n_agq": 5}, ModelError, "one grouping factor"),
        ({"v": list("abc") * 60}, "y ~ x + cs(0 + v | g)", {}, ModelError, "unstructured"),
        ({}, "y ~ x + (1 | g)", {"family": "binomal"}, ModelError, "does not exist"),
        ({}, "y ~ x + (1 | g)", {"link": "sqrt"}, ModelError, "no sqrt link"),
    ],
)
def test_what_cannot_be_fitted_is_refused(binary, change, formula, options, error, match):
    data = binary.assign(row=np.arange(180).astype(str), h=(np.arange(180) % 4).astype(str), **change)
    with pytest.raises(error, match=match):
        glmer(formula, data, **options)


def test_observation_level_effects_are_allowed_where_rows_tell_them():
    data = load_dataset("grouseticks")
    fit = glmer("TICKS ~ YEAR + (1 | BROOD) + (1 | INDEX)", data, "poisson")
    assert fit.n_groups["INDEX"] == len(data)


def test_separation_is_named_by_column_and_direction(binary):
    data = binary.assign(z=binary["y"] * np.random.default_rng(0).uniform(size=180), w=np.arange(180) % 7)
    with pytest.warns(SeparationWarning, match=r"separated by the fixed effects along.*z \(\+\)"):
        fit = glmer("y ~ z + w + (1 | g)", data)
    assert np.isfinite(fit.bse).all()
    assert any("separated" in note for note in fit.notes)


def test_few_binary_rows_a_level_get_a_warning():
    rng = np.random.default_rng(2)
    data = pd.DataFrame({"g": np.repeat(np.arange(60), 3).astype(str)})
    data["y"] = rng.random(180) < 1 / (1 + np.exp(-rng.normal(size=60)[np.repeat(np.arange(60), 3)]))
    with pytest.warns(LaplaceWarning, match="half the levels of g have 3 or fewer"):
        glmer("y ~ 1 + (1 | g)", data)
    glmer("y ~ 1 + (1 | g)", data, n_agq=9)  # quadrature gets none


def test_a_gaussian_model_with_the_identity_link_is_a_linear_one():
    data = load_dataset("sleepstudy")
    with pytest.warns(FastLMMWarning, match="lmer"):
        fit = glmer("Reaction ~ Days + (1 | Subject)", data, "gaussian")
    assert isinstance(fit, LmerResult)
    assert_allclose(fit.criterion, lmer("Reaction ~ Days + (1 | Subject)", data, reml=False).criterion)


@pytest.mark.parametrize(
    ("options", "match"), [({"nAGQ": 5}, "n_agq="), ({"REML": True}, "maximum"), ({"famly": "poisson"}, "family=")]
)
def test_others_spellings_are_answered(cbpp, options, match):
    with pytest.raises(SpellingError, match=match):
        glmer(CBPP, cbpp, **options)


def test_others_names_of_figures_are_answered(fit):
    with pytest.raises(SpellingError, match="var_corr"):
        _ = fit.VarCorr
    with pytest.raises(SpellingError):
        fit.aic()
    assert fastlmm_core.GlmerResult is type(fit)


def test_the_deviance_as_a_function(cbpp, fit):
    objective = glmer(CBPP, cbpp, objective_only=True)
    at = np.concatenate([fit.theta, fit.params])
    assert_allclose(objective(at), fit.criterion, atol=1e-8)
    assert_allclose(objective.gradient(at), 0.0, atol=1e-3)


def test_overdispersion_that_is_not_there():
    rng = np.random.default_rng(8)
    g = np.repeat(np.arange(20), 10)
    data = pd.DataFrame({"g": g.astype(str), "k": rng.binomial(8, 0.5, 200)})
    with pytest.warns(BoundaryWarning, match="poisson family is enough"):
        glmer("k ~ 1 + (1 | g)", data, "negativebinomial")


@pytest.mark.parametrize(("options", "match"), [({"trials": "Days"}, "trials belong"), ({"zero": "~ 1"}, "needs one")])
def test_a_gaussian_model_ignores_nothing(options, match):
    with pytest.raises(ModelError, match=match):
        glmer("Reaction ~ Days + (1 | Subject)", load_dataset("sleepstudy"), "gaussian", **options)


@pytest.mark.parametrize("family", ["gaussian", "poisson"])
@pytest.mark.parametrize(
    ("option", "value"),
    [("n_agq", v) for v in (-3, 2.5, "3", None, True, np.nan)]
    + [("objective_only", "yes"), ("verbose", 2.5), ("verbose", -1)],
)
@pytest.mark.filterwarnings("ignore:a gaussian model with the identity link")
def test_options_are_checked_whoever_fits(family, option, value):
    with pytest.raises(ModelError, match=f"{option} must be"):
        glmer("incidence ~ period + (1 | herd)", load_dataset("cbpp"), family, **{option: value})
