"""Fits with changes, and backward elimination."""

from __future__ import annotations

import gc
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import Control, DataError, ModelError, SpellingError, lmer, load_dataset


def test_criterion_and_control_need_no_table(sleepstudy: pd.DataFrame) -> None:
    fit = lmer("Reaction ~ Days + (Days | Subject)", sleepstudy.copy())
    gc.collect()
    again = fit.update(reml=False, control=Control(tol=1e-9))
    assert again.criterion == pytest.approx(lmer(fit.formula, sleepstudy, reml=False).criterion)
    assert again.design is fit.design
    assert fit.update(start=[1.0, 0.0, 1.0]).criterion == pytest.approx(fit.criterion)
    with pytest.raises(DataError, match="pass data="):
        fit.update(". ~ . - Days")
    assert fit.update(". ~ . - Days", sleepstudy).formula == "Reaction ~ 1 + (Days | Subject)"


def test_arguments_are_as_they_were_given(sleepstudy: pd.DataFrame) -> None:
    data = sleepstudy.assign(w=1.0 + sleepstudy.Days)
    fit = lmer("Reaction ~ Days + (1 | Subject)", data, weights="w", subset="Days > 1", reml=False)
    other = fit.update("~ . + I(Days**2)")
    expected = lmer("Reaction ~ Days + I(Days**2) + (1 | Subject)", data, weights="w", subset="Days > 1", reml=False)
    assert other.criterion == pytest.approx(expected.criterion)
    assert other.nobs == fit.nobs
    assert fit.update(subset=None).nobs == 180
    assert pickle.loads(pickle.dumps(fit)).update(data=data, weights=None).nobs == fit.nobs


def test_names_of_the_callers_are_kept(sleepstudy: pd.DataFrame) -> None:
    def shifted(x: Any) -> Any:
        return x - 4.5

    fit = lmer("Reaction ~ shifted(Days) + (1 | Subject)", sleepstudy)
    assert fit.update("log(.) ~ .").params.index[1] == "shifted(Days)"


def test_other_data(sleepstudy: pd.DataFrame) -> None:
    fit = lmer("Reaction ~ Days + (1 | Subject)", sleepstudy)
    half = sleepstudy[sleepstudy.Days < 5]
    assert fit.update(data=half).nobs == len(half)


def test_residual_structure_is_kept(sleepstudy: pd.DataFrame) -> None:
    fit = lmer("Reaction ~ Days", sleepstudy, residual="ar1(Days | Subject)")
    again = fit.update("~ . + I(Days**2)")
    assert type(again) is type(fit)
    assert fit.update(residual="cs(Days | Subject)").criterion != pytest.approx(fit.criterion)


def test_unknown_argument(sleepstudy: pd.DataFrame) -> None:
    fit = lmer("Reaction ~ Days + (1 | Subject)", sleepstudy)
    with pytest.raises(SpellingError, match="not 'REML'"):
        fit.update(REML=False)


def test_elimination_is_lmertests() -> None:
    """As lmerTest's rule has it: the needless group, then the interaction, then recipe."""
    data = load_dataset("cake").assign(k=np.random.default_rng(1).integers(0, 9, 270))
    fit = lmer("angle ~ recipe * temperature + (1 | recipe:replicate) + (1 | k)", data)
    found = fit.step()
    assert found.table[found.table.eliminated > 0]["term"].tolist() == ["(1 | k)", "recipe:temperature", "recipe"]
    assert found.table["eliminated"].tolist() == [1, 0, 1, 2, 0]
    assert found.result.formula == "angle ~ temperature + (1 | recipe:replicate)"
    assert "caution" in repr(found)
    assert fit.step(random=False).result.formula.count("|") == 2
    assert "recipe" in fit.step(keep="recipe").result.design.x_terms[1][0]


def test_effects_of_a_term_go_one_at_a_time(sleepstudy: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    data = sleepstudy.assign(noise=rng.normal(size=180))
    found = lmer("Reaction ~ Days + noise + (Days + noise | Subject)", data).step()
    assert found.result.formula == "Reaction ~ Days + (1 + Days | Subject)"


def test_contained_terms_stay() -> None:
    rng = np.random.default_rng(4)
    n = 160
    data = pd.DataFrame({"a": rng.choice(list("uv"), n), "x": rng.normal(size=n), "g": np.arange(n) % 16})
    slope = np.where(data.a == "u", 1.0, -1.0)
    data["y"] = slope * data.x + rng.normal(size=16)[data.g] + rng.normal(size=n)
    found = lmer("y ~ a * x + (1 | g)", data).step()
    assert found.table["term"].iloc[-1] == "a:x"
    assert [name for name, _ in found.result.design.x_terms] == ["Intercept", "a", "x", "a:x"]


def test_terms_to_keep_have_to_be_there() -> None:
    fit = lmer("angle ~ recipe + (1 | recipe:replicate)", load_dataset("cake"))
    with pytest.raises(DataError, match="keep names 'oven'"):
        fit.step(keep="oven")
    with pytest.raises(ModelError, match="alpha_fixed must lie between 0 and 1"):
        fit.step(alpha_fixed=2.0)


def test_rows_must_stay_the_same() -> None:
    data = load_dataset("cake")
    data["x"] = np.r_[np.full(5, np.nan), np.random.default_rng(0).normal(size=len(data) - 5)]
    fit = lmer("angle ~ temperature + x + (1 | recipe:replicate)", data)
    with pytest.raises(ModelError, match="leave out the rows"):
        fit.step()
