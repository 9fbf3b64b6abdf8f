from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import stats

from fastlmm_core import DataError, LmerResult, ModelError, lmer, load_dataset


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    data = load_dataset("sleepstudy").assign(w=np.tile([0.5, 1.0, 2.0], 60), off=np.linspace(0.0, 9.0, 180))
    data.loc[[3, 40], "Reaction"] = np.nan
    return data


@pytest.fixture(scope="module")
def fit(data: pd.DataFrame) -> LmerResult:
    return lmer("Reaction ~ Days + (Days | Subject)", data, weights="w", offset="off")


def test_parameters(fit: LmerResult) -> None:
    table = fit.tidy()
    terms = ["Intercept", "Days", "sd__Intercept", "sd__Days", "cor__Intercept.Days", "sd__Observation"]
    assert list(table["term"]) == terms
    assert list(table.columns) == ["effect", "group", "term", "estimate", "std_error", "statistic", "df", "p_value"]
    np.testing.assert_allclose(table["estimate"][:2], fit.params)
    np.testing.assert_allclose(table["statistic"][:2], fit.tvalues)
    np.testing.assert_allclose(table["estimate"][2:], fit.var_corr().to_frame()["sdcor"])
    assert list(table["group"][2:]) == ["Subject"] * 3 + ["Residual"]


def test_intervals(fit: LmerResult) -> None:
    table = fit.tidy("fixed", conf_int=True, level=0.9, ddf=None)
    np.testing.assert_allclose(table["conf_high"] - table["estimate"], 1.6448536269514722 * table["std_error"])
    assert list(table.columns[-3:]) == ["statistic", "conf_low", "conf_high"]
    assert fit.tidy("ran_pars", conf_int=True)["conf_low"].isna().all()


@pytest.mark.parametrize("ddf", ["satterthwaite", "residual"])
def test_degrees_of_freedom(fit: LmerResult, ddf: str) -> None:
    table, wanted = fit.tidy("fixed", conf_int=True, ddf=ddf), fit.coef_table(ddf)
    np.testing.assert_allclose(table[["df", "p_value"]], wanted[["df", "p"]])
    half = stats.t.ppf(0.975, wanted["df"]) * wanted["std_error"]
    np.testing.assert_allclose(table["conf_low"], wanted["estimate"] - half)
    assert fit.tidy()["df"].isna().sum() == 4  # the parameters of the random part have none


def test_conditional_modes(fit: LmerResult) -> None:
    table = fit.tidy("ran_vals")
    np.testing.assert_allclose(table["estimate"], fit.ranef()["condval"])
    np.testing.assert_allclose(table["std_error"], fit.ranef()["condsd"])
    assert list(table["level"][:2]) == ["308", "309"]


def test_glance(fit: LmerResult) -> None:
    row = fit.glance().iloc[0]
    assert row["remlcrit"] == fit.criterion
    assert row["aicc"] == fit.aicc
    assert fit.refit_ml().glance()["deviance"].iloc[0] == fit.refit_ml().criterion


def test_augment(fit: LmerResult, data: pd.DataFrame) -> None:
    table = fit.augment()
    assert list(table.columns[:3]) == ["Reaction", "Days", "Subject"]
    assert len(table) == 178
    np.testing.assert_allclose(table[".fitted"] + table[".resid"], table["Reaction"])
    np.testing.assert_allclose(table[".fixed"], fit.predict(re_form="none"))
    np.testing.assert_allclose(table[".hat"], fit.hatvalues())
    np.testing.assert_allclose(table[".cooksd"], fit.cooks_distance())
    np.testing.assert_allclose(table[".std_resid"], fit.residuals("studentized"))
    np.testing.assert_allclose(table[".offset"], data["off"].drop(index=[3, 40]))
    assert ".weights" in table


@pytest.mark.parametrize("kind", ["pandas", "polars", "dict", "lazy"])
def test_augment_of_the_table(fit: LmerResult, data: pd.DataFrame, kind: str) -> None:
    tables = {"pandas": data, "polars": pl.from_pandas(data), "dict": {c: data[c].to_numpy() for c in data}}
    table = {**tables, "lazy": tables["polars"].lazy()}[kind]
    out = fit.augment(table)
    assert list(out.columns[: data.shape[1]]) == list(data.columns)
    np.testing.assert_allclose(out["Reaction"], data["Reaction"].drop(index=[3, 40]))
    np.testing.assert_allclose(out[".fitted"], fit.fittedvalues)


def test_errors(fit: LmerResult, data: pd.DataFrame) -> None:
    with pytest.raises(ModelError, match="'random'"):
        fit.tidy("random")
    with pytest.raises(ModelError, match="empty"):
        fit.tidy([])
    with pytest.raises(ModelError, match="between 0 and 1"):
        fit.tidy(conf_int=True, level=2.0)
    with pytest.raises(DataError, match="10 rows"):
        fit.augment(data.head(10))


@pytest.mark.parametrize("na_action", ["drop", "exclude"])
def test_rows_of_the_table_are_found_by_their_labels(sleepstudy: pd.DataFrame, na_action: str) -> None:
    data = sleepstudy.assign(Reaction=sleepstudy["Reaction"].where(sleepstudy["Days"] != 4))
    fit = lmer("Reaction ~ Days + (Days | Subject)", data, na_action=na_action)
    shuffled = data.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(fit.augment(shuffled), fit.augment(data))
    np.testing.assert_allclose(
        fit.emmeans("1", over="data", data=shuffled).estimate, fit.emmeans("1", over="data", data=data).estimate
    )
    with pytest.raises(DataError, match="the index of data differs"):
        fit.augment(data.set_axis(range(1000, 1180)))
