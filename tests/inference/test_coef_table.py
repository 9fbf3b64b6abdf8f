"""Coefficient tables against lmerTest and pbkrtest."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastlmm_core import RankWarning, lmer, load_dataset
from golden_models import FOLDER, golden

REFERENCES = [path.stem for path in sorted(FOLDER.glob("*.json")) if json.loads(path.read_text()).get("satterthwaite")]


@pytest.mark.parametrize("name", REFERENCES)
def test_lmertests_and_pbkrtests_figures(name: str) -> None:
    figures = golden(name)
    data = load_dataset(figures["data"])
    if name == "cake_factors":  # fitted to temperature as an unordered factor
        data["temperature"] = data["temperature"].cat.as_unordered()
    fit = lmer(figures["py_formula"], data, reml=figures["REML"])
    table = fit.coef_table()
    np.testing.assert_allclose(table["df"], [r["df"] for r in figures["satterthwaite"]], rtol=1e-3)
    np.testing.assert_allclose(table["t"], [r["t value"] for r in figures["satterthwaite"]], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(table["std_error"], fit.bse)
    np.testing.assert_allclose(fit.pvalues, table["p"])
    adjusted = fit.coef_table("kenward-roger")
    np.testing.assert_allclose(adjusted["df"], [r["df"] for r in figures["kenward_roger"]], rtol=1e-4)
    np.testing.assert_allclose(adjusted["std_error"], [r["Std. Error"] for r in figures["kenward_roger"]], rtol=1e-4)
    if figures.get("anova_type3"):
        anova = fit.anova()
        np.testing.assert_allclose(anova["F"], [r["F value"] for r in figures["anova_type3"]], rtol=2e-3)
        np.testing.assert_allclose(anova["den_df"], [r["DenDF"] for r in figures["anova_type3"]], rtol=1e-3)
        np.testing.assert_allclose(anova["sum_sq"], [r["Sum Sq"] for r in figures["anova_type3"]], rtol=2e-3)
        assert list(anova["num_df"]) == [r["NumDF"] for r in figures["anova_type3"]]
        assert list(anova.index) == [r["term"] for r in figures["anova_type3"]]


@pytest.mark.parametrize("options", [{}, {"ddf": "kenward-roger"}, {"ddf": "normal"}, {"cov_type": "CR2"}])
def test_the_same_numbers_without_a_table(options: dict[str, str]) -> None:
    data = load_dataset("sleepstudy")
    data["twice"] = 2.0 * data["Days"]
    with pytest.warns(RankWarning):
        fit = lmer("Reaction ~ Days + twice + (1 | Subject)", data)
    table, arrays = fit.coef_table(**options), fit.coef_arrays(**options)
    assert list(table) == list(arrays._fields)
    np.testing.assert_array_equal(table.to_numpy().T, arrays)
    assert np.isnan(arrays.df[2])
    assert np.isfinite(arrays.t[:2]).all()


def test_insteval() -> None:
    fit = lmer("y ~ service + (1 | s) + (1 | d) + (1 | dept:service)", load_dataset("InstEval"))
    plain, adjusted = fit.coef_table(), fit.coef_table("kenward-roger")
    # observed and expected information differ little in a large sample; the 28 department levels are few
    np.testing.assert_allclose(plain["df"], adjusted["df"], rtol=0.1)
    np.testing.assert_allclose(plain["std_error"], adjusted["std_error"], rtol=2e-3)
    assert (adjusted["std_error"] > plain["std_error"]).all()
