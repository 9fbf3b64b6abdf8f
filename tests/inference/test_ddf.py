"""Methods of degrees of freedom: names, distributions, F tests, and refits."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy import stats

from fastlmm_core import FastLMMWarning, LmerResult, ModelError, RankWarning, lmer, load_dataset
from fastlmm_core.inference.ddf import METHODS, ddf_method, f_pvalue, method_name, pooled_df, t_pvalues


@pytest.fixture(scope="module")
def slopes() -> LmerResult:
    return lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))


@pytest.fixture(scope="module")
def cake() -> LmerResult:
    return lmer("angle ~ recipe + temperature + (1 | recipe:replicate)", load_dataset("cake"))


def test_names_are_read_in_any_spelling() -> None:
    assert method_name("Kenward_Roger") == method_name("kenward roger") == "kenward-roger"
    with pytest.raises(ModelError, match=r"ddf 'lme4' does not exist.*'satterthwaite'"):
        method_name("lme4")


def test_tails() -> None:
    np.testing.assert_allclose(
        t_pvalues(np.array([2.0, -2.0, 2.0]), np.array([5.0, 5.0, np.inf])),
        [2 * stats.t.sf(2, 5), 2 * stats.t.sf(2, 5), 2 * stats.norm.sf(2)],
    )
    assert f_pvalue(3.0, 2, 7.5) == pytest.approx(stats.f.sf(3, 2, 7.5))
    assert f_pvalue(3.0, 2, np.inf) == pytest.approx(stats.chi2.sf(6, 2))


def test_pooled_degrees_of_freedom() -> None:
    assert pooled_df(np.array([7.0, 7.0])) == pytest.approx(7.0)
    assert pooled_df(np.array([1.5, 9.0])) == 2.0
    # E = sum df / (df - 2), df = 2 E / (E - l)
    expected = 5 / 3 + 10 / 8
    assert pooled_df(np.array([5.0, 10.0])) == pytest.approx(2 * expected / (expected - 2))
    assert pooled_df(np.array([np.inf, np.inf])) == np.inf
    assert pooled_df(np.array([5.0, np.inf])) == pytest.approx(2 * (5 / 3 + 1) / (5 / 3 + 1 - 2))


@pytest.mark.parametrize("ddf", METHODS)
def test_one_row_is_the_square_of_t(slopes: LmerResult, ddf: str) -> None:
    method = ddf_method(slopes, ddf)
    row = np.array([[1.0, 4.0]])
    test = method.f_test(row)
    t = slopes.t_test(row, ddf=ddf).iloc[0]
    assert test.num_df == 1
    np.testing.assert_allclose([test.F, test.den_df, test.p], [t["t"] ** 2, t["df"], t["p"]], rtol=1e-9)
    assert test.mean_sq == test.sum_sq == pytest.approx(test.F * slopes.sigma**2)


@pytest.mark.parametrize("ddf", METHODS)
def test_units_and_repeats_change_nothing(cake: LmerResult, ddf: str) -> None:
    rows = np.eye(8)[3:]
    plain = cake.f_test(rows, ddf=ddf)
    scaled = cake.f_test(rows * np.array([1e8, 1.0, 1e-8, 3.0, 1.0])[:, None], ddf=ddf)
    repeated = cake.f_test(np.vstack([rows, rows[0] + rows[1]]), ddf=ddf)
    for other in (scaled, repeated):
        assert other.num_df == plain.num_df == 5
        np.testing.assert_allclose([other.F, other.den_df], [plain.F, plain.den_df], rtol=1e-5)


def test_residual_and_normal(slopes: LmerResult) -> None:
    assert (slopes.coef_table("residual")["df"] == 178).all()
    table = slopes.coef_table("normal")
    assert np.isinf(table["df"]).all()
    np.testing.assert_allclose(table["p"], 2 * stats.norm.sf(np.abs(table["t"])))
    assert slopes.f_test(np.eye(2), ddf="normal").p == pytest.approx(
        stats.chi2.sf(2 * slopes.f_test(np.eye(2), ddf="normal").F, 2)
    )


def test_kenward_roger_refits_a_maximum_likelihood_fit(slopes: LmerResult) -> None:
    ml = slopes.refit_ml()
    with pytest.warns(FastLMMWarning, match="refitted by REML") as caught:
        table = ml.coef_table("kenward-roger")
    assert caught[0].filename == __file__
    np.testing.assert_allclose(table, slopes.coef_table("kenward-roger"), rtol=1e-6)
    for call in (
        lambda: ml.summary("kenward-roger"),
        lambda: ml.anova(ddf="kenward-roger"),
        lambda: ml.t_test("Days", ddf="kenward-roger"),
        lambda: ml.f_test("Days", ddf="kenward-roger"),
        lambda: ml.drop1(ddf="kenward-roger"),
    ):
        with pytest.warns(FastLMMWarning, match="refitted by REML") as caught:
            call()
        assert caught[0].filename == __file__


def test_satterthwaite_of_a_maximum_likelihood_fit() -> None:
    # lmerTest: 18.0000 and 18.0000
    ml = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"), reml=False)
    np.testing.assert_allclose(ml.coef_table()["df"], [18.0, 18.0], rtol=1e-6)


@pytest.mark.parametrize("ddf", METHODS[:2])
def test_singular_fits_are_finite_and_say_so(ddf: str) -> None:
    fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff2"))
    table = fit.coef_table(ddf)
    assert np.isfinite(table.to_numpy()).all()
    assert (table["df"] > 0).all()
    assert "singular" in table.attrs["notes"][0]
    assert "singular" in str(fit.summary(ddf)).splitlines()[-1]
    assert fit.coef_table("normal").attrs["notes"] == []


def test_dropped_columns_are_nan() -> None:
    data = load_dataset("sleepstudy").assign(twice=lambda d: 2 * d["Days"])
    with pytest.warns(RankWarning):
        fit = lmer("Reaction ~ Days + twice + (Days | Subject)", data)
    table = fit.coef_table()
    assert list(table.index) == ["Intercept", "Days", "twice"]
    assert table.loc["twice"].isna().all()
    assert fit.pvalues.isna().tolist() == [False, False, True]
    assert len(fit.summary().coefficients) == 2


def test_no_fixed_effects() -> None:
    fit = lmer("Yield ~ 0 + (1 | Batch)", load_dataset("Dyestuff"))
    for ddf in METHODS:
        assert fit.coef_table(ddf).empty
        assert fit.anova(ddf=ddf).empty


def test_a_pickled_fit_computes_anew(slopes: LmerResult) -> None:
    slopes.coef_table()
    copy = pickle.loads(pickle.dumps(slopes))
    assert "variance_information" not in copy.core.kept
    np.testing.assert_allclose(copy.coef_table(), slopes.coef_table())


def test_text_of_a_test(slopes: LmerResult) -> None:
    assert repr(slopes.f_test("Days", ddf="residual")).startswith("<FTest: F = 45.85 on 1 and 178 df, p = ")


@pytest.mark.parametrize("unit", [1e-100, 1e100, 1e140])
def test_degrees_of_freedom_do_not_depend_on_the_unit_of_the_response(unit):
    data = load_dataset("sleepstudy")
    fit = lmer("Reaction ~ Days + (Days | Subject)", data).coef_table()
    scaled = lmer("Reaction ~ Days + (Days | Subject)", data.assign(Reaction=data["Reaction"] * unit)).coef_table()
    np.testing.assert_allclose(scaled[["df", "t", "p"]], fit[["df", "t", "p"]], rtol=1e-6)


def test_no_degrees_of_freedom_for_the_denominator():
    """Two rows on 2 degrees of freedom in strata of their own: pbkrtest has 0 df and no p."""
    g, h = np.divmod(np.arange(16), 4)
    noise = np.random.default_rng(3).normal(size=16)
    y = np.array([3.0, -2.0, 1.0, 5.0])[g] + np.array([1.0, 4.0, -3.0, 2.0])[h] + 0.5 * noise
    fit = lmer("y ~ u + v + (1 | g) + (1 | h)", {"y": y, "u": 1.0 * g, "v": 1.0 * h, "g": g, "h": h})
    assert fit.f_test("u = 0", ddf="kr").den_df == pytest.approx(2.0)
    test = fit.f_test("u = 0, v = 0", ddf="kr")
    assert np.isnan([test.F, test.den_df, test.p]).all()
    assert "no degrees of freedom left" in test.notes[0]
