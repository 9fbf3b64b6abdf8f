"""marginaleffects' answers about a wrapped fit against this package's own."""

import marginaleffects as me
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fastlmm_core import glmer, lmer, load, load_dataset
from fastlmm_core.adapters.marginaleffects import with_ddf, wrap
from fastlmm_core.errors import DataError, ModelError


@pytest.fixture(scope="module")
def cake():
    data = load_dataset("cake")
    return data, lmer("angle ~ recipe * temperature + (1 | recipe:replicate)", data)


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_averages_are_the_marginal_means(cake, ddf):
    data, fit = cake
    model = wrap(fit, data)
    answer = with_ddf(me.avg_predictions(model, by="recipe"), model, ddf)
    means = fit.emmeans("recipe", ddf=ddf).to_frame()  # the data are balanced
    assert answer["recipe"].to_list() == list(means["recipe"])
    for ours, theirs in {"estimate": "estimate", "std_error": "std_error", "df": "df", "conf_low": "lower"}.items():
        np.testing.assert_allclose(answer[ours], means[theirs], rtol=1e-5)


def test_comparisons_and_a_robust_covariance(cake):
    data, fit = cake
    model = wrap(fit, data)
    for vcov in (True, "CR2"):
        answer = me.avg_comparisons(model, variables="recipe", vcov=vcov)
        cov = fit.cov_params(cov_type="model" if vcov is True else vcov).to_numpy()
        assert answer["contrast"].to_list() == ["B - A", "C - A"]
        L = np.zeros(len(fit.params))
        L[list(fit.params.index).index("recipe[T.B]")] = 1.0
        for j, name in enumerate(fit.params.index):  # the six temperatures weigh the same
            if name.startswith("recipe[T.B]:"):
                L[j] = 1 / 6 if ".L" not in name and "[T." in name.split(":")[1] else 0.0
        assert answer["estimate"][0] == pytest.approx(float(L @ fit.params), rel=1e-6)
        assert answer["std_error"][0] == pytest.approx(np.sqrt(L @ cov @ L), rel=1e-5)


def test_slopes_through_a_transform_and_a_response_that_is_one():
    data = load_dataset("cake")
    fit = lmer("log(angle) ~ recipe + poly(temp, 2) + (1 | recipe:replicate)", data)
    model = wrap(fit, data)
    answer = me.slopes(model, variables="temp", newdata=me.datagrid(model=model, temp=[200]))
    step = pd.DataFrame({"recipe": "A", "temp": [200.01, 199.99]})
    high, low = fit.predict(step, re_form="none")
    assert answer["estimate"][0] == pytest.approx((high - low) / 0.02, rel=1e-4)
    assert answer["std_error"][0] > 0.0


def test_predictions_with_and_without_random_effects(cake):
    data, fit = cake
    for re_form in ("none", "all"):
        answer = me.predictions(wrap(fit, data, re_form=re_form), vcov=False)
        np.testing.assert_allclose(answer["estimate"], fit.predict(re_form=re_form), rtol=1e-10)


def test_degrees_of_freedom_for_all_rows():
    data = load_dataset("sleepstudy")
    fit = lmer("Reaction ~ Days + (Days | Subject)", data)
    for ddf, df in (("normal", np.inf), ("residual", 178.0), (17.0, 17.0)):
        model = wrap(fit, ddf=ddf)
        answer = me.avg_predictions(model)
        quantile = (answer["conf_high"][0] - answer["estimate"][0]) / answer["std_error"][0]
        assert quantile == pytest.approx(stats.t.ppf(0.975, df))
    with pytest.raises(ModelError, match="with_ddf"):
        wrap(fit, ddf="satterthwaite")
    with pytest.raises(DataError, match="10 rows, but the table of the fit had 180"):
        wrap(fit, data[:10])
    with pytest.raises(ModelError, match="vcov=True"):
        with_ddf(me.avg_slopes(model, variables="Days", vcov=False), model)


def test_dropped_columns_missing_rows_and_offsets():
    data = load_dataset("sleepstudy").assign(g=lambda d: np.where(d["Days"] % 2 == 0, "even", "odd"))
    data["twice"] = 2.0 * data["Days"]
    data.loc[3, "Days"] = np.nan
    data["off"] = np.arange(180.0)
    with pytest.warns(Warning, match="twice"):
        fit = lmer("Reaction ~ Days + twice + g + offset(off) + (1 | Subject)", data)
    answer = me.predictions(wrap(fit, data))
    np.testing.assert_allclose(answer["estimate"], fit.predict(re_form="none"), rtol=1e-10)
    assert np.isfinite(answer["std_error"].to_numpy()).all()
    assert np.isnan(me.predictions(wrap(fit, data), newdata=data[:1].assign(twice=5.0))["estimate"][0])


def test_what_cannot_be_wrapped(tmp_path):
    data = load_dataset("cbpp")
    with pytest.raises(ModelError, match="not a DataFrame"):
        wrap(data, data)
    lmer("incidence ~ period + (1 | herd)", data).save(tmp_path / "fit")
    with pytest.raises(ModelError, match="not a SavedResult"):
        wrap(load(tmp_path / "fit"), data)


def test_residual_structures_have_their_own_covariance():
    data = load_dataset("sleepstudy")
    fit = lmer("Reaction ~ Days", data, residual="ar1(Days | Subject)")
    model = wrap(fit, data)
    answer = with_ddf(me.avg_slopes(model, variables="Days", eps_vcov=0.01), model)
    table = fit.coef_table()
    np.testing.assert_allclose(answer["std_error"], table.loc["Days", "std_error"], rtol=1e-6)
    np.testing.assert_allclose(answer["df"], table.loc["Days", "df"], rtol=1e-6)


def test_a_generalised_fit_answers_in_means_or_on_its_links_scale():
    data = load_dataset("cbpp")
    fit = glmer("cbind(incidence, size - incidence) ~ period + (1 | herd)", data, "binomial")
    answer = me.avg_predictions(wrap(fit, data), by="period")
    means = fit.emmeans("period", scale="response").to_frame()
    np.testing.assert_allclose(answer["estimate"], means["estimate"], rtol=1e-7)
    np.testing.assert_allclose(answer["std_error"], means["std_error"], rtol=1e-4)
    every = me.predictions(wrap(fit, data, re_form="all"))
    np.testing.assert_allclose(every["estimate"], fit.fittedvalues, rtol=1e-10)
    linear = me.avg_comparisons(wrap(fit, data, kind="link"), variables="period")
    np.testing.assert_allclose(np.sort(linear["estimate"]), np.sort(fit.params.iloc[1:]), rtol=1e-7)
    with pytest.raises(ModelError, match="kind"):
        wrap(fit, data, kind="mean")
