"""Ordered categories: cumulative link models with any random effects, against R's ordinal."""

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from fastlmm_core import DataError, ModelError, anova, glmer, load_dataset
from fastlmm_core.families import Ordinal, as_family

REFERENCE = json.loads((Path(__file__).parents[1] / "golden" / "glmer" / "vector.json").read_text())
MODEL = "rating ~ temp + contact + (1 | judge)"


@pytest.fixture(scope="module")
def wine():
    data = pd.DataFrame(REFERENCE["wine"]["data"])
    ratings = pd.Categorical(data["rating"].astype(str), categories=list("12345"), ordered=True)
    return data.assign(score=data["rating"], rating=ratings)


@pytest.fixture(scope="module")
def fit(wine):
    return glmer(MODEL, wine, "ordinal")


def test_figures_are_clmms(fit):
    reference = REFERENCE["wine"]
    assert_allclose(fit.criterion, reference["criterion"], atol=1e-6)
    assert_allclose([*fit.family_params["estimate"], *fit.params], reference["coef"], atol=1e-4)
    assert_allclose([*fit.family_params["std_error"], *fit.bse], reference["se"], rtol=1e-4)
    assert_allclose(fit.theta, reference["sd"], rtol=1e-4)
    assert_allclose(fit.ranef()["condval"], reference["ranef"], atol=1e-4)
    assert_allclose(fit.ranef()["condsd"] ** 2, reference["condvar"], rtol=1e-4)
    assert list(fit.family_params.index) == ["1|2", "2|3", "3|4", "4|5"]


QUADRATURE = {
    ("logit", 5): (163.06495917, [-1.6234879, 1.5127932, 4.2270483, 6.0861447, 3.0618882, 1.8334289], 1.1347761),
    ("logit", 11): (163.06492142, [-1.6234875, 1.5127960, 4.2270535, 6.0861523, 3.0618910, 1.8334334], 1.1347833),
    ("probit", 9): (161.86258923, [-0.92632544, 0.88935142, 2.46733346, 3.53635595, 1.7998722, 1.0481142], 0.6630288),
    ("cloglog", 9): (163.04682198, None, None),
}
"""clmm(rating ~ temp + contact + (1 | judge), wine, nAGQ =, link =): -2 logLik, coefficients, sd; with one term clmm
calls "loglog" what clm and clmm with two call "cloglog"."""


@pytest.mark.parametrize(("link", "k"), QUADRATURE)
def test_quadrature_is_clmms(wine, link, k):
    fit = glmer(MODEL, wine, "ordinal", link=link, n_agq=k)
    criterion, coef, sd = QUADRATURE[link, k]
    assert fit.converged
    assert_allclose(fit.criterion, criterion, atol=2e-8)
    if coef is not None:
        assert_allclose([*fit.family_params["estimate"], *fit.params], coef, atol=1e-4)
        assert_allclose(fit.theta, sd, rtol=1e-4)
    check = glmer(MODEL, wine, "ordinal", link=link).laplace_check()
    assert_allclose(check.quadrature, 0.033 if link == "logit" else check.quadrature, atol=2e-3)


@pytest.mark.parametrize("link", ["logit", "probit", "cloglog"])
def test_crossed_effects_are_clmms(link):
    fit = glmer("resp ~ Gender + btype + situ + (1 | id) + (1 | item)", load_dataset("VerbAgg"), "ordinal", link=link)
    reference = REFERENCE[f"ordinal_{link}"]
    assert fit.converged
    assert_allclose(fit.criterion, reference["criterion"], atol=1e-5)
    assert_allclose([*fit.family_params["estimate"], *fit.params], reference["coef"], atol=2e-4)
    assert_allclose([*fit.family_params["std_error"], *fit.bse], reference["se"], rtol=1e-4)
    assert_allclose(fit.theta, reference["sd"], rtol=1e-4)
    assert_allclose(fit.fittedvalues.head(8), reference["fitted"], atol=1e-4)


def test_probabilities(fit, wine):
    p = fit.predict()
    assert list(p) == list("12345")
    assert_allclose(p.sum(axis=1), 1.0)
    assert_allclose(p.to_numpy()[np.arange(72), wine["rating"].cat.codes], fit.fittedvalues)
    assert_allclose(fit.predict(wine), p)
    likeliest = fit.predict(kind="class")
    assert list(likeliest) == [p.columns[k] for k in p.to_numpy().argmax(axis=1)]
    new = {"temp": ["warm"], "contact": ["no"]}
    eta = fit.predict(new, kind="link", re_form="none").to_numpy()
    alpha = np.concatenate([[-np.inf], fit.family_params["estimate"], [np.inf]])
    below = 1 / (1 + np.exp(-(alpha - eta)))
    assert_allclose(fit.predict(new, kind="population").to_numpy()[0], np.diff(below))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    at = [1 / (1 + np.exp(-(alpha - eta - float(fit.theta.iloc[0]) * node))) for node in nodes]
    assert_allclose(fit.predict(new, kind="marginal").to_numpy()[0], np.diff(weights @ at / weights.sum()), atol=2e-6)
    found = fit.predict(kind="link", interval="confidence")
    assert ((found["lower"] < found["fit"]) & (found["fit"] < found["upper"])).all()
    for kind, options, match in (
        ("response", {"interval": "confidence"}, "intervals of ordinal models"),
        ("zprob", {}, "part for zeros"),
    ):
        with pytest.raises(ModelError, match=match):
            fit.predict(kind=kind, **options)


def test_residuals_simulations_refits(fit, wine):
    drawn = fit.simulate(3, seed=1)
    assert drawn["sim_1"].cat.ordered
    assert_allclose(fit.refit(drawn["sim_1"]).nobs, 72)
    for same in (wine["rating"], wine["score"], wine["rating"].astype(str)):
        assert_allclose(fit.refit(same).criterion, fit.criterion, atol=1e-6)
    with pytest.raises(DataError, match="new_y has the level '9'"):
        fit.refit(["9"] * 72)
    assert 0.5 < fit.residuals("quantile").std() < 1.3
    assert abs(fit.residuals("simulated").mean() - 0.5) < 0.1
    found = fit.bootstrap(4, seed=1)
    assert list(found) == ["sd_Intercept|judge", "1|2", "2|3", "3|4", "4|5", "temp[T.warm]", "contact[T.yes]"]
    assert_allclose(fit.bootstrap(4, statistic=lambda f: f.params, seed=1), found.iloc[:, -2:], rtol=1e-3)
    again = pickle.loads(pickle.dumps(fit))
    assert_allclose(again.predict(), fit.predict())
    assert fit.augment()["rating"].astype(str).tolist() == wine["rating"].astype(str).tolist()
    for call, match in (
        (lambda: fit.residuals(), "deviance residuals of the ordinal family"),
        (lambda: fit.dispersion(), "no variance"),
        (lambda: fit.emmeans("temp", scale="response"), "scale without an origin"),
    ):
        with pytest.raises(ModelError, match=match):
            call()


def test_tests_and_intervals(fit, wine):
    small = glmer("rating ~ 1 + (1 | judge)", wine, "ordinal")
    assert anova(small, fit)["df"].iloc[1] == 2
    assert_allclose(fit.drop1().loc["temp", "chisq"], 34.4637, atol=1e-3)
    assert_allclose(fit.anova().loc["temp", "chisq"], fit.zvalues["temp[T.warm]"] ** 2, rtol=1e-8)
    wald = fit.conf_int(parm=["1|2", "temp[T.warm]"])
    profile = fit.conf_int("profile", parm=["1|2", "temp[T.warm]"])
    assert_allclose(profile, wald, atol=0.3)
    assert_allclose(fit.icc()["judge"], fit.theta.iloc[0] ** 2 / (fit.theta.iloc[0] ** 2 + np.pi**2 / 3))
    page = str(fit.summary())
    assert "Thresholds:" in page
    assert "1|2  -1.6237     0.6824  -2.379" in page
    assert_allclose(np.abs(fit.emmeans("temp").pairs().estimate), fit.params["temp[T.warm]"])


def test_thresholds_are_rows_of_tidy(fit):
    rows = fit.tidy(conf_int=True)
    assert list(rows["component"]) == ["cond"] * 2 + ["alpha"] * 4 + ["cond"]
    assert list(rows["effect"]) == ["fixed"] * 6 + ["ran_pars"]
    own = rows[rows["component"] == "alpha"].set_index("term")
    reference = fit.family_params
    assert list(own.index) == list(reference.index)
    assert_allclose(own["estimate"], reference["estimate"])
    assert_allclose(own["std_error"], reference["std_error"])
    assert_allclose(own["statistic"], reference["estimate"] / reference["std_error"])
    assert own["p_value"].isna().all()
    assert_allclose(own["conf_high"] - own["estimate"], 1.959963984540054 * own["std_error"])
    assert_allclose(fit.tidy("fixed", exp=True)["estimate"], np.exp(rows["estimate"][:6]))
    assert list(fit.tidy(["ran_pars", "fixed"])["component"]) == ["cond"] * 3 + ["alpha"] * 4
    assert set(fit.tidy("ran_vals")["component"]) == {"cond"}


def test_means_say_that_their_scale_has_no_origin(fit):
    note = (
        "linear predictors without the thresholds, on the logit scale: it has no origin, and only differences mean "
        "something"
    )
    means = fit.emmeans("temp")
    assert note in means.to_frame().attrs["notes"]
    assert note in str(means)
    assert note in means.pairs().to_frame().attrs["notes"]
    with pytest.raises(ModelError, match=r"predict\(\) for the probabilities of the categories"):
        fit.emmeans("temp", scale="response")


def test_whole_numbers_are_categories_in_their_order(fit, wine):
    numbers = glmer("score ~ temp + contact + (1 | judge)", wine, "ordinal")
    assert_allclose(numbers.criterion, fit.criterion, atol=1e-9)
    assert "whole numbers in their order: 1, 2, 3, 4, 5" in numbers.notes[0]
    assert list(numbers.family_params.index) == ["1|2", "2|3", "3|4", "4|5"]


def test_slopes_weights_and_offsets(wine):
    rng = np.random.default_rng(0)
    data = wine.assign(w=1 + np.arange(72) % 2, x=rng.normal(size=72), o=0.1)
    doubled = pd.concat([data, data[data["w"] == 2]])
    fit = glmer("rating ~ x + temp + (x | judge)", data, "ordinal", freq_weights="w")
    again = glmer("rating ~ x + temp + (x | judge)", doubled, "ordinal")
    assert_allclose(fit.criterion, again.criterion, atol=1e-5)
    plain = glmer(MODEL, data, "ordinal")
    moved = glmer(MODEL, data, "ordinal", offset="o")
    assert_allclose(moved.family_params["estimate"], plain.family_params["estimate"] + 0.1, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "formula", "options", "error", "match"),
    [
        ({}, "rating ~ 0 + temp + (1 | judge)", {}, ModelError, "thresholds .* leave 0 \\+"),
        ({"rating": list("abc") * 24}, MODEL, {}, DataError, "without an order \\(a, b, c\\)"),
        ({"rating": 0.5}, MODEL, {}, DataError, "neither an ordered categorical nor whole numbers"),
        ({"rating": [1, 2] * 36}, MODEL, {}, ModelError, "has 2 levels"),
        ({"rating": range(72)}, MODEL, {}, DataError, "72 different numbers"),
        ({}, MODEL, {"link": "cauchit"}, ModelError, "no cauchit link"),
        ({}, MODEL, {"zero": "~ 1"}, ModelError, "zero-inflated model needs"),
    ],
)
def test_what_cannot_be_fitted_is_refused(wine, change, formula, options, error, match):
    with pytest.raises(error, match=match):
        glmer(formula, wine.assign(**change), "ordinal", **options)


def test_a_family_given_as_an_object(fit, wine):
    from_object = glmer(MODEL, wine, Ordinal(levels="12345"))
    assert_allclose(from_object.criterion, fit.criterion, atol=1e-9)
    assert list(from_object.params.index) == list(fit.params.index)
    with pytest.raises(DataError, match="has the levels 1, 2, 3, 4, 5, the family given has 0, 1, 2, 3, 4"):
        glmer(MODEL, wine, Ordinal(levels=5))


def test_levels_without_rows_are_named(wine):
    empty = wine["rating"].cat.add_categories(["6", "7"])
    with pytest.raises(DataError, match="no row has the level '6', '7' of the response rating"):
        glmer(MODEL, wine.assign(rating=empty), "ordinal")
    with pytest.raises(ModelError, match="needs to know its categories"):
        as_family("ordinal")
