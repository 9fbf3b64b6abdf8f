from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fastlmm_core import LmerResult, RankWarning, lmer, load_dataset


def test_names_and_figures(slopes: LmerResult) -> None:
    assert list(slopes.params.index) == ["Intercept", "Days"]
    np.testing.assert_allclose(slopes.params, [251.405104848485, 10.467285959596], rtol=1e-9)
    np.testing.assert_allclose(slopes.bse, [6.82459669, 1.54578964], rtol=1e-5)
    np.testing.assert_allclose(slopes.tvalues, slopes.params / slopes.bse)
    np.testing.assert_allclose(slopes.pvalues, 2 * stats.t.sf(np.abs(slopes.tvalues), 17.0), rtol=1e-5)
    assert slopes.fixef.equals(slopes.params)


def test_covariance_is_labelled_and_square_to_the_errors(slopes: LmerResult) -> None:
    cov = slopes.cov_params()
    assert list(cov.index) == list(cov.columns) == ["Intercept", "Days"]
    np.testing.assert_allclose(np.sqrt(np.diagonal(cov)), slopes.bse)


def test_returned_tables_are_copies(slopes: LmerResult) -> None:
    params, cov = slopes.params, slopes.cov_params()
    params.iloc[0] = 0.0
    cov.iloc[0, 0] = 0.0
    assert slopes.params.iloc[0] != 0.0
    assert slopes.cov_params().iloc[0, 0] != 0.0


def test_dropped_columns_are_named_and_missing() -> None:
    data = load_dataset("sleepstudy").assign(twice=lambda d: 2 * d.Days)
    with pytest.warns(RankWarning, match=r"twice was dropped"):
        fit = lmer("Reaction ~ Days + twice + (1 | Subject)", data)
    assert np.isnan(fit.params["twice"])
    assert np.isnan(fit.bse["twice"])
    assert fit.params[["Intercept", "Days"]].notna().all()
    assert fit.df_model == 4
    assert "rank deficient: dropped twice" in str(fit.summary())
    assert fit.summary().coefficients.index.tolist() == ["Intercept", "Days"]
    plain = lmer("Reaction ~ Days + (1 | Subject)", data)
    np.testing.assert_allclose(fit.fittedvalues, plain.fittedvalues, rtol=1e-7)
    np.testing.assert_allclose(fit.predict(data), plain.predict(data), rtol=1e-7)
    assert list(fit.coef()["Subject"].columns) == ["Intercept", "Days"]
