from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import DataError, FastLMMWarning, LmerResult, ModelError, compare, lmer, load_dataset


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    return load_dataset("sleepstudy").assign(w=np.tile([0.5, 1.0, 2.0], 60))


@pytest.fixture(scope="module")
def slopes(data: pd.DataFrame) -> LmerResult:
    return lmer("Reaction ~ Days + (Days | Subject)", data)


@pytest.fixture(scope="module")
def intercepts(data: pd.DataFrame) -> LmerResult:
    return lmer("Reaction ~ Days + (1 | Subject)", data)


def test_aicc(slopes: LmerResult) -> None:
    assert slopes.aicc == pytest.approx(slopes.aic + 2 * 6 * 7 / (180 - 6 - 1))


def test_aicc_without_degrees_of_freedom() -> None:
    rng = np.random.default_rng(0)
    data = {"y": rng.normal(size=6), "x": rng.normal(size=6), "u": rng.normal(size=6), "g": list("aabbcc")}
    assert lmer("y ~ x + u + (1 | g)", data).aicc == np.inf


def test_r2_by_hand(slopes: LmerResult, intercepts: LmerResult, data: pd.DataFrame) -> None:
    # random intercepts: Nakagawa & Schielzeth 2013, equations 26 and 30
    fixed = intercepts.params["Days"] ** 2 * np.var(data["Days"], ddof=1)
    sd = intercepts.var_corr().to_frame()["vcov"]
    total = fixed + sd.sum()
    np.testing.assert_allclose(intercepts.r2(), [fixed / total, (fixed + sd[0]) / total])
    # random slopes: Johnson 2014, equation 10
    cov, days = slopes.var_corr()["Subject"].to_numpy(), data["Days"].to_numpy()
    random = np.mean(cov[0, 0] + 2 * cov[0, 1] * days + cov[1, 1] * days**2)
    fixed = slopes.params["Days"] ** 2 * np.var(days, ddof=1)
    total = fixed + random + slopes.sigma**2
    np.testing.assert_allclose(slopes.r2(), [fixed / total, (fixed + random) / total])
    np.testing.assert_allclose(slopes.r2(), [0.2786511, 0.7992199], atol=1e-5)  # MuMIn's r.squaredGLMM


def test_r2_without_fixed_effects_or_random_variance() -> None:
    fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff2"))
    np.testing.assert_allclose(fit.r2(), [0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(fit.icc(), 0.0)


def test_icc_by_hand(slopes: LmerResult) -> None:
    fit = lmer("diameter ~ 1 + (1 | plate) + (1 | sample)", load_dataset("Penicillin"))
    v = fit.var_corr().to_frame().set_index("grp")["vcov"]
    icc = fit.icc()
    assert icc["plate"] == pytest.approx(v["plate"] / v.sum())
    assert icc["adjusted"] == pytest.approx((v["plate"] + v["sample"]) / v.sum())
    assert icc["conditional"] == pytest.approx(icc["adjusted"])
    assert slopes.icc()["conditional"] == pytest.approx(slopes.r2()["conditional"] - slopes.r2()["marginal"])


def test_weights_enter_the_residual_variance(data: pd.DataFrame) -> None:
    fit = lmer("Reaction ~ Days + (1 | Subject)", data, weights="w")
    random = fit.var_corr()["Subject"].iloc[0, 0]
    residual = fit.sigma**2 * np.mean(1 / data["w"])
    assert fit.icc()["adjusted"] == pytest.approx(random / (random + residual))


def test_compare_reml_fits_of_one_fixed_part(slopes: LmerResult, intercepts: LmerResult) -> None:
    table = compare(intercepts, slopes)
    assert list(table.index) == [slopes.formula, intercepts.formula]  # the best first
    assert (table["method"] == "REML").all()
    assert table["delta_aic"].iloc[0] == 0.0
    assert table["delta_aic"].iloc[1] == pytest.approx(intercepts.aic - slopes.aic)
    assert table["weight"].sum() == pytest.approx(1.0)
    assert table.loc[slopes.formula, "bic"] == pytest.approx(slopes.bic)


def test_compare_refits_where_fixed_parts_differ(slopes: LmerResult, data: pd.DataFrame) -> None:
    less = lmer("Reaction ~ 1 + (Days | Subject)", data)
    with pytest.warns(FastLMMWarning, match="refitted by maximum likelihood") as caught:
        table = compare(less, slopes)
    assert len(caught) == 1
    assert (table["method"] == "ML").all()
    assert table.loc[slopes.formula, "llf"] == pytest.approx(slopes.refit_ml().llf)
    with pytest.raises(ModelError, match="same fixed part"):
        compare(less, slopes, refit=False)


def test_compare_reml_beside_ml(slopes: LmerResult, intercepts: LmerResult) -> None:
    with pytest.warns(FastLMMWarning):
        assert (compare(intercepts.refit_ml(), slopes)["method"] == "ML").all()


def test_compare_refuses_other_data(slopes: LmerResult, data: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="180 and 150 rows"):
        compare(slopes, lmer("Reaction ~ Days + (1 | Subject)", data.iloc[:150]))
    with pytest.raises(DataError, match="different responses"):
        compare(slopes, lmer("log(Reaction) ~ Days + (1 | Subject)", data))
    with pytest.raises(DataError, match="different weights"):
        compare(slopes, lmer("Reaction ~ Days + (1 | Subject)", data, weights="w"))
    with pytest.raises(ModelError, match="at least one"):
        compare()
