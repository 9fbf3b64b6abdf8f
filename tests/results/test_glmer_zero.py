"""Counts with a part for zeros: zero inflation and hurdles against glmmTMB, and what is asked of them."""

import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm

from fastlmm_core import (
    BoundaryWarning,
    ConvergenceWarning,
    DataError,
    FormulaError,
    ModelError,
    SeparationWarning,
    SpellingError,
    anova,
    glmer,
    load_dataset,
)
from fastlmm_core.families import Poisson, ZeroInflated
from fastlmm_core.fitting.generalised import engine_at, glmm_of

REFERENCE = json.loads((Path(__file__).parents[1] / "golden" / "glmer" / "vector.json").read_text())
MODEL = "TICKS ~ YEAR + h + (1 | BROOD) + (1 | LOCATION)"
NAMES = [name for name in REFERENCE if "~" in name]


@pytest.fixture(scope="module")
def ticks():
    data = load_dataset("grouseticks")
    return data.assign(h=(data["HEIGHT"] - data["HEIGHT"].mean()) / data["HEIGHT"].std())


@pytest.fixture(scope="module")
def fits(ticks):
    out = {}
    for name in NAMES:
        family, zero = name.split(" ~ ")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BoundaryWarning)
            out[name] = glmer(MODEL, ticks, family, zero=f"~ {zero}")
    return out


@pytest.mark.parametrize("name", NAMES)
def test_fits_are_glmmtmbs(fits, name):
    fit, reference = fits[name], REFERENCE[name]
    assert fit.converged
    at_limit = name == "negativebinomial ~ 1"  # no extra zeros: their log odds have no estimate
    assert_allclose(fit.criterion, reference["criterion"], atol=2e-6)
    assert_allclose(fit.params, reference["beta"], atol=1e-4)
    assert_allclose(fit.bse, reference["se"], rtol=1e-4)
    assert_allclose(fit.theta, reference["sd"], rtol=2e-4)
    own = fit.family_params
    if "binom" in name:
        assert_allclose(own.loc["alpha", "estimate"], 1 / reference["sigma"], rtol=1e-3)
    if not at_limit:
        zeros = own[own.index.str.startswith("zi.")]
        assert_allclose(zeros["estimate"], np.atleast_1d(reference["zi"]), atol=1e-4)
        assert_allclose(zeros["std_error"], np.atleast_1d(reference["zi_se"]), rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "negativebinomial ~ 1"])
def test_predictions_are_glmmtmbs(fits, ticks, name):
    fit, reference = fits[name], REFERENCE[name]
    for kind in ("response", "conditional", "zprob", "link"):
        found = fit.predict(ticks.head(8), kind=kind, interval="confidence")
        assert_allclose(found["fit"], reference[kind]["fit"], rtol=1e-4, atol=1e-4)
        assert_allclose(found["std_error"], reference[kind]["se"], rtol=1e-4)
        assert ((found["lower"] < found["fit"]) & (found["fit"] < found["upper"])).all()
        assert_allclose(fit.predict(kind=kind).head(8), found["fit"])
    assert_allclose(fit.fittedvalues.head(8), reference["response"]["fit"], rtol=1e-4)


@pytest.mark.parametrize("name", ["poisson ~ h", "truncated_nbinom2 ~ h"])
def test_means_over_groups(fits, name):
    fit, new = fits[name], {"YEAR": ["95", "97"], "h": [0.0, -1.0]}
    eta = fit.predict(new, kind="link", re_form="none").to_numpy()[:, None]
    eta = eta + np.hypot(*fit.theta) * np.random.default_rng(0).normal(size=(2, 400_000))
    counts = fit.family.conditional_mean(np.exp(eta), fit.core.rho)
    zero = fit.predict(new, kind="zprob").to_numpy()
    found = fit.predict(new, kind="marginal", interval="confidence")
    off = found["fit"] - (1 - zero) * counts.mean(axis=1)
    assert (np.abs(off) < 5 * counts.std(axis=1) / 600).all()
    assert ((found["lower"] < found["fit"]) & (found["fit"] < found["upper"])).all()
    middle = fit.family.conditional_mean(np.exp(fit.predict(new, kind="link", re_form="none")), fit.core.rho)
    assert_allclose(fit.predict(new, kind="population"), (1 - zero) * middle)


def test_residuals_simulations_refits(fits, ticks):
    fit = fits["truncated_nbinom2 ~ h"]
    drawn = fit.simulate(60, seed=1)
    assert_allclose((drawn == 0).to_numpy().mean(), (ticks["TICKS"] == 0).mean(), atol=0.03)
    assert_allclose(drawn.mean(axis=1).mean(), fit.predict(kind="marginal").mean(), rtol=0.1)
    assert fit.simulate(2, newdata=ticks.head(3), seed=1).shape == (3, 2)
    assert abs(fit.residuals("quantile").std() - 1) < 0.15
    assert abs(fit.residuals("simulated").mean() - 0.5) < 0.1
    assert_allclose(fit.residuals("response"), fit.design.y - fit.fittedvalues)
    dispersion = fit.dispersion()
    assert 0.5 < dispersion["ratio"] < 1.5
    assert_allclose(dispersion["zeros_expected"], dispersion["zeros_observed"], rtol=1e-3)  # a hurdle fits its zeros
    assert_allclose(fit.refit(fit.design.y).criterion, fit.criterion, atol=1e-6)
    found = fit.bootstrap(3, seed=1)
    assert list(found)[2:5] == ["zi.Intercept", "zi.h", "alpha"]
    assert fit.bootstrap(2, statistic=lambda f: f.family_params["estimate"], seed=1).shape == (2, 3)
    again = pickle.loads(pickle.dumps(fit))
    assert_allclose(again.predict(ticks.head(3), kind="zprob"), fit.predict(kind="zprob").head(3))
    assert list(fit.cov_params(full=True))[-3:] == ["zi.Intercept", "zi.h", "alpha"]
    assert json.loads(json.dumps(fit.to_dict()))["family_params"]["zi.h"] > 0
    assert ".resid" in fit.augment()
    zeros = fit.update("~ . - h").family_params.loc["zi.h"]  # a likelihood of its own
    assert_allclose(zeros, fit.family_params.loc["zi.h"], rtol=1e-3)
    assert list(fit.convergence_report().gradient.index)[-3:] == ["zi.Intercept", "zi.h", "alpha"]
    with pytest.raises(ModelError, match="deviance residuals of the hurdle_nbinom2 family are not defined"):
        fit.residuals()
    with pytest.raises(ModelError, match="no variance of the hurdle"):
        fit.r2()
    with pytest.raises(ModelError, match='kind="class" is for ordinal'):
        fit.predict(kind="class")


def test_influence_refits_without_the_rows_of_a_group(ticks):
    fit = glmer("TICKS ~ h + (1 | LOCATION)", ticks, "truncated_nbinom2", zero="~ h")
    place = ticks["LOCATION"].astype(str)
    found = fit.influence(place.where(place == "32", place.str[0]).to_numpy(), method="refit")
    rest = ticks[place != "32"]
    again = glmer("TICKS ~ h + (1 | LOCATION)", rest, "truncated_nbinom2", zero="~ h")
    assert_allclose(found.params.loc["32"], again.params, rtol=1e-4)
    assert found.params.notna().all(axis=None)


def test_intervals_of_the_zero_part(fits):
    fit = fits["poisson ~ 1"]
    wald, profile = fit.conf_int(parm="zi.Intercept"), fit.conf_int("profile", parm="zi.Intercept")
    estimate, error = fit.family_params.loc["zi.Intercept"]
    assert_allclose(wald.loc["zi.Intercept"], estimate + np.array([-1.959964, 1.959964]) * error, rtol=1e-6)
    low, high = profile.loc["zi.Intercept"]
    assert low < wald.loc["zi.Intercept", "lower"] < estimate < high  # the likelihood falls slowly towards no zeros
    objective = fit.core.criterion
    at = held(fit, low)
    assert_allclose(at - objective, 1.959964**2, rtol=0.02)


def held(fit, value):
    """The least deviance with the zero part's constant held."""
    from scipy.optimize import minimize

    from fastlmm_core.fitting.generalised import glmm_of

    deviance = glmm_of(fit.design, fit.options).objective(fit.core.y)
    x = np.concatenate([fit.theta, fit.params, fit.core.rho])
    free = np.arange(len(x) - 1)

    def f(z):
        d, g, _ = deviance.derivatives(np.append(z, value))
        return d, g[free]

    return minimize(f, x[free], jac=True, method="BFGS").fun


def test_the_zero_part_has_rows_of_tidy(fits):
    name = "truncated_nbinom2 ~ h"
    fit, reference = fits[name], REFERENCE[name]
    rows = fit.tidy(conf_int=True, level=0.9)
    assert list(rows["component"]) == ["cond"] * len(fit.params) + ["zi"] * 2 + ["cond"] * len(fit.theta)
    own = rows[rows["component"] == "zi"].set_index("term")
    assert list(own.index) == ["Intercept", "h"]
    assert_allclose(own["estimate"], reference["zi"], atol=1e-4)
    assert_allclose(own["std_error"], reference["zi_se"], rtol=1e-4)
    z = own["estimate"] / own["std_error"]
    assert_allclose(own["statistic"], z)
    assert_allclose(own["p_value"], 2 * norm.sf(np.abs(z)))
    assert_allclose(own["conf_low"], own["estimate"] - norm.ppf(0.95) * own["std_error"])
    ratios = fit.tidy("fixed", exp=True)
    assert_allclose(ratios.loc[ratios["component"] == "zi", "estimate"], np.exp(own["estimate"]))
    pytest.importorskip("matplotlib")
    drawn = fit.plot.forest().axes[0].get_yticklabels()
    assert [label.get_text() for label in drawn] == [name for name in fit.params.index if name != "Intercept"]


def test_pages_and_comparisons(fits, ticks):
    page = str(fits["truncated_nbinom2 ~ h"].summary())
    for text in ("hurdle_nbinom2 (log)", "Zero part, log odds", "h           0.9507     0.1270", "alpha 0.2906"):
        assert text in page
    counts = glmer(MODEL, ticks, "poisson")
    gain = counts.criterion - fits["poisson ~ 1"].criterion
    assert_allclose(anova(counts, fits["poisson ~ 1"])["chisq"].iloc[1], gain)
    with pytest.raises(ModelError, match="no likelihood-ratio test compares the families hurdle_poisson and poisson"):
        anova(counts, fits["truncated_poisson ~ 1"])
    table = anova(fits["poisson ~ 1"], fits["poisson ~ h"])
    assert table["df"].iloc[1] == 1
    assert_allclose(table["chisq"].iloc[1], fits["poisson ~ 1"].criterion - fits["poisson ~ h"].criterion)
    assert_allclose(glmer(MODEL, ticks, "poisson", zero="~ 0").criterion, glmer(MODEL, ticks, "poisson").criterion)


@pytest.mark.parametrize("family", ["poisson", "truncated_poisson"])
@pytest.mark.parametrize(("zeros", "sign"), [(True, r"\+"), (False, "-")])
def test_separation_of_the_zero_part_is_named_by_column_and_direction(family, zeros, sign):
    """An arm of zeros alone, or of none."""
    rng = np.random.default_rng(5)
    n = 300
    g, h, arm = rng.integers(0, 20, n), rng.normal(size=n), np.array(list("abc"))[rng.integers(0, 3, n)]
    y = np.maximum(rng.poisson(np.exp(1.0 + 0.3 * h + 0.4 * rng.normal(size=20)[g])), 1)
    y[rng.random(n) < 0.4] = 0
    y[arm == "c"] = 0 if zeros else np.maximum(y[arm == "c"], 1)
    data = {"y": y, "h": h, "arm": arm, "g": g}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the search may run as far as it is let
        with pytest.warns(SeparationWarning, match=rf"separated by the zero part along arm\[T.c\] \({sign}\): "):
            fit = glmer("y ~ h + (1 | g)", data, family, zero="~ h + arm")
        assert any("zeros and counts above zero are separated" in note for note in fit.notes)
        warnings.simplefilter("error", SeparationWarning)
        glmer("y ~ h + (1 | g)", {**data, "arm": rng.permutation(arm)}, family, zero="~ h + arm")


def test_no_extra_zeros_are_said_to_be_none(ticks):
    with pytest.warns(BoundaryWarning, match="at its limit of zero .*: the negativebinomial family is enough"):
        fit = glmer(MODEL, ticks, "negativebinomial", zero="~ 1")
    assert fit.converged
    assert_allclose(fit.criterion, glmer(MODEL, ticks, "negativebinomial").criterion, atol=1e-5)


def test_missing_values_of_the_zero_part(ticks):
    data = ticks.assign(z=ticks["h"].where(ticks.index % 50 != 7))
    fit = glmer(MODEL, data, "poisson", zero="~ z")
    lost = int(data["z"].isna().sum())
    assert (fit.n_missing, fit.nobs) == (lost, len(data) - lost)
    assert_allclose(fit.criterion, glmer(MODEL, data[data["z"].notna()], "poisson", zero="~ z").criterion, atol=1e-8)
    assert fit.predict(data, kind="zprob").isna().sum() == lost
    assert fit.simulate(1, newdata=data.head(10), seed=1).isna().sum().item() == 1
    with pytest.raises(DataError, match=r"missing values in z \(8\)"):
        glmer(MODEL, data, "poisson", zero="~ z", na_action="raise")
    kept = glmer(MODEL, data, "poisson", zero="~ z", na_action="exclude")
    assert len(kept.fittedvalues) == len(data)
    assert kept.fittedvalues.isna().sum() == lost


@pytest.mark.parametrize(
    ("family", "zero", "error", "match"),
    [
        ("poisson", "h", FormulaError, "one-sided formula"),
        ("poisson", "~ h + ar1(0 + YEAR | BROOD)", ModelError, "unstructured random effects only"),
        ("poisson", "~ h + (1 | YEAR2)", DataError, "YEAR2"),
        ("poisson", "~ .", ModelError, "named terms only"),
        ("poisson", "~ nowhere", DataError, "nowhere"),
        ("poisson", "~ h + I(2 * h)", ModelError, "depend on each other"),
        ("gamma", "~ 1", ModelError, "zero-inflated model needs one of the families"),
    ],
)
def test_what_cannot_be_fitted_is_refused(ticks, family, zero, error, match):
    with pytest.raises(error, match=match):
        glmer(MODEL, ticks, family, zero=zero)


def test_other_refusals(ticks):
    arrays = ZeroInflated(Poisson(), np.column_stack([np.ones(403), ticks["h"]]))
    fit = glmer(MODEL, ticks, arrays)
    assert_allclose(fit.criterion, REFERENCE["poisson ~ h"]["criterion"], atol=1e-6)
    with pytest.raises(DataError, match="columns were an array"):
        fit.predict(ticks.head(3))
    seen = ticks[ticks["TICKS"] > 0]
    with pytest.raises(ModelError, match="TICKS is zero in none of 277 rows"):
        glmer(MODEL, seen, "poisson", zero="~ 1")
    with pytest.raises(ModelError, match="needs one grouping factor"):
        glmer(MODEL, ticks, "poisson", zero="~ 1", n_agq=5)
    with pytest.raises(SpellingError, match="zero="):
        glmer(MODEL, ticks, "poisson", ziformula="~ 1")


@pytest.mark.parametrize("copied", [False, True])
def test_rows_with_two_modes_are_left_at_the_fits(copied):
    rng = np.random.default_rng(14)
    g = np.repeat(np.arange(30), 6)
    eta = 2.5 + 1.6 * rng.normal(size=30)[g] + 0.3 * np.tile(rng.normal(size=10), 18)
    y = np.where(rng.uniform(size=180) < 0.15, 0, rng.poisson(np.exp(eta)))
    data = pd.DataFrame({"g": g, "x": rng.normal(size=180), "y": y})
    fit = glmer("y ~ x + (1 | g)", data, "poisson", zero="~ 1")
    model = glmm_of(fit.design, fit.options)
    fresh = model.objective(fit.core.y)(np.concatenate([fit.core.theta, fit.core.beta, fit.core.rho]))
    assert fresh > fit.criterion + 1.0  # those from zero are others
    if copied:
        fit = pickle.loads(pickle.dumps(fit))
    with engine_at(fit) as engine:
        for own, found in zip(fit.core.b, engine.design.user_modes(engine.modes()), strict=True):
            assert_allclose(found, own, atol=1e-6)
    wald, profile = (fit.conf_int(method, parm="x").to_numpy() for method in ("wald", "profile"))
    assert_allclose(profile, wald, rtol=0.01)
    step, again = (fit.influence("g", method=method).dfbetas for method in ("one-step", "refit"))
    assert_allclose(step, again, atol=0.1)
    assert again["Intercept"].abs().median() < 0.3  # it was that of another optimum, by half a standard error


def test_an_update_has_what_was_asked_for():
    rng = np.random.default_rng(5)
    g, x = np.repeat(np.arange(20), 10), rng.normal(size=200)
    y = np.where(rng.uniform(size=200) < 0.3, 0, rng.poisson(np.exp(1.0 + 0.5 * rng.normal(size=20)[g])))
    data = pd.DataFrame({"g": g, "x": np.where(x > 2.0, np.nan, x), "y": y})
    fit = glmer("y ~ 1 + (1 | g)", data, "poisson", zero="~ 1", na_action="exclude")
    plain = glmer("y ~ 1 + (1 | g)", data, "poisson")
    for zero in (None, "~ 0"):
        again = fit.update(zero=zero)
        assert again.family.name == "poisson"
        assert_allclose(again.criterion, plain.criterion)
    assert fit.update(link="log").family.name == "zero_inflated_poisson"
    assert len(fit.update("y ~ x + (1 | g)").fittedvalues) == 200


def test_weighted_rows_have_pearson_residuals_beside_them():
    """Prior weights leave no distribution that quantile residuals could be of: `augment` failed over it."""
    data = load_dataset("grouseticks").head(80)
    weights = 1.0 + np.arange(80) % 3
    fit = glmer(
        "TICKS ~ HEIGHT + (1 | BROOD)", data.assign(HEIGHT=data["HEIGHT"] / 100), "poisson", zero="~ 1", weights=weights
    )
    assert_allclose(fit.augment()[".resid"], fit.residuals("pearson"))
