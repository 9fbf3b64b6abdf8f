"""Likelihood-ratio tables of several models."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fastlmm_core import DataError, FastLMMWarning, LmerResult, ModelError, anova, lmer, load_dataset


@pytest.fixture(scope="module")
def models() -> tuple[LmerResult, ...]:
    data = load_dataset("sleepstudy")
    return tuple(
        lmer(f"Reaction ~ {right}", data)
        for right in ("Days + (Days | Subject)", "Days + (1 | Subject)", "1 + (1 | Subject)")
    )


def test_reml_fits_are_refitted_once_and_said(models: tuple[LmerResult, ...]) -> None:
    with pytest.warns(FastLMMWarning, match="refitted by maximum likelihood") as caught:
        table = anova(*models)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert list(table.index) == [m.formula for m in models[::-1]]
    assert list(table["npar"]) == [3, 4, 6]
    # lme4
    np.testing.assert_allclose(table["deviance"], [1910.5411, 1794.0786, 1751.9393], atol=1e-3)
    np.testing.assert_allclose(table["chisq"].iloc[1:], [116.4624, 42.1393], atol=1e-3)
    np.testing.assert_allclose(table["p"].iloc[1:], stats.chi2.sf(table["chisq"].iloc[1:], [1, 2]))
    np.testing.assert_allclose(table["llf"], -table["deviance"] / 2)
    np.testing.assert_allclose(table["bic"], table["deviance"] + np.log(180) * table["npar"])


def test_maximum_likelihood_fits_are_taken_as_they_are(models: tuple[LmerResult, ...]) -> None:
    ml = [m.refit_ml() for m in models[:2]]
    table = anova(*ml, names=["slopes", "intercepts"])
    assert list(table.index) == ["intercepts", "slopes"]
    assert np.isnan(table["p"].iloc[0])


def test_restricted_likelihoods(models: tuple[LmerResult, ...]) -> None:
    table = anova(*models[:2], refit=False)
    assert table["chisq"].iloc[1] == pytest.approx(models[1].criterion - models[0].criterion)
    with pytest.raises(ModelError, match="different fixed effects"):
        anova(*models, refit=False)
    with pytest.raises(ModelError, match="some models were fitted by REML"):
        anova(models[0].refit_ml(), models[1], refit=False)


def test_other_data_are_refused(models: tuple[LmerResult, ...]) -> None:
    data = load_dataset("sleepstudy")
    fewer = lmer("Reaction ~ Days + (1 | Subject)", data[data["Days"] > 0])
    with pytest.raises(DataError, match="used 180 and 162 rows"):
        anova(models[0], fewer)
    with pytest.raises(DataError, match="different responses"):
        anova(models[0], lmer("log(Reaction) ~ Days + (1 | Subject)", data))
    with pytest.raises(ModelError, match="at least two"):
        anova(models[0])
    with pytest.raises(DataError, match="1 names were given for 2"):
        anova(*models[:2], names=["a"])


def test_equal_models_have_no_test(models: tuple[LmerResult, ...]) -> None:
    table = anova(models[0].refit_ml(), models[0].refit_ml())
    assert table["chisq"].iloc[1] == pytest.approx(0.0, abs=1e-6)
    assert np.isnan(table["p"].iloc[1])
