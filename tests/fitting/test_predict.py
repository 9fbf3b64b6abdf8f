from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import DataError, FormulaError, LmerResult, ModelError, lmer, load_dataset
from fastlmm_core.fitting.predict import included_columns


def test_the_rows_of_the_fit(slopes: LmerResult, weighted: LmerResult) -> None:
    for fit in (slopes, weighted):
        pd.testing.assert_series_equal(fit.predict(), fit.fittedvalues)


def test_the_same_rows_as_new_data(slopes: LmerResult, crossed: LmerResult, sleepstudy: pd.DataFrame) -> None:
    np.testing.assert_allclose(slopes.predict(sleepstudy), slopes.fittedvalues, rtol=1e-12)
    np.testing.assert_allclose(crossed.predict(load_dataset("Penicillin")), crossed.fittedvalues, rtol=1e-12)


def test_without_random_effects(slopes: LmerResult, sleepstudy: pd.DataFrame) -> None:
    wanted = slopes.params["Intercept"] + slopes.params["Days"] * sleepstudy.Days
    np.testing.assert_allclose(slopes.predict(re_form="none"), wanted)
    # the grouping factor need not be there
    new = pd.DataFrame({"Days": [0.0, 10.0]}, index=["u", "v"])
    out = slopes.predict(new, re_form="none")
    assert list(out.index) == ["u", "v"]
    np.testing.assert_allclose(out, slopes.params["Intercept"] + slopes.params["Days"] * np.array([0.0, 10.0]))


@pytest.mark.parametrize("newdata", [False, True])
def test_part_of_the_random_effects(
    slopes: LmerResult, zerocorr: LmerResult, sleepstudy: pd.DataFrame, newdata: bool
) -> None:
    data = sleepstudy if newdata else None
    for fit in (slopes, zerocorr):
        population = fit.predict(data, re_form="none")
        effects = fit.random_effects["Subject"].loc[sleepstudy.Subject].reset_index(drop=True)
        np.testing.assert_allclose(fit.predict(data, re_form="(1 | Subject)") - population, effects["Intercept"])
        np.testing.assert_allclose(
            fit.predict(data, re_form="~ (0 + Days | Subject)") - population, effects["Days"] * sleepstudy.Days
        )
        np.testing.assert_allclose(fit.predict(data, re_form="(Days | Subject)"), fit.fittedvalues)


def test_one_of_two_groups(crossed: LmerResult) -> None:
    data = load_dataset("Penicillin")
    out = crossed.predict(data.drop(columns="sample"), re_form="(1 | plate)")
    np.testing.assert_allclose(
        out, crossed.params["Intercept"] + crossed.random_effects["plate"]["Intercept"].loc[data.plate].to_numpy()
    )


def test_a_term_that_the_model_lacks(slopes: LmerResult, crossed: LmerResult) -> None:
    with pytest.raises(ModelError, match=r"Intercept \| batch.*plate"):
        crossed.predict(re_form="(1 | batch)")
    with pytest.raises(ModelError, match=r"Reaction \| Subject"):
        slopes.predict(re_form="(Reaction | Subject)")
    with pytest.raises(ModelError, match="random terms only"):
        slopes.predict(re_form="Days + (1 | Subject)")
    with pytest.raises(ModelError, match="re_form"):
        slopes.predict(re_form=3)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"R's NULL is \"all\" and R's NA is \"none\""):
        slopes.predict(re_form=None)  # type: ignore[arg-type]
    with pytest.raises(FormulaError, match=r're_form must be "all", "none"'):
        slopes.predict(re_form="Days")


@pytest.mark.parametrize("spelling", ["none", "NA", "~0", "~ 0", np.nan])
def test_none_of_the_random_effects(slopes: LmerResult, spelling: Any) -> None:
    pd.testing.assert_series_equal(slopes.predict(re_form=spelling), slopes.predict(re_form="none"))


def test_a_missing_grouping_column_mentions_re_form(slopes: LmerResult) -> None:
    with pytest.raises(DataError, match=r"no column 'Subject'.*re_form=\"none\""):
        slopes.predict(pd.DataFrame({"Days": [1.0]}))


def test_part_of_a_diagonal_term(sleepstudy: pd.DataFrame) -> None:
    data = sleepstudy.assign(half=np.where(sleepstudy.Days < 5, "early", "late"))
    fit = lmer("Reaction ~ Days + diag(0 + half + Days | Subject)", data)
    effects = fit.random_effects["Subject"].loc[data.Subject].reset_index(drop=True)
    population = fit.predict(re_form="none")
    part = np.where(data.Days < 5, effects["half[early]"], effects["half[late]"])
    np.testing.assert_allclose(fit.predict(re_form="(0 + half | Subject)") - population, part)
    np.testing.assert_allclose(
        fit.predict(data, re_form="~(0 + Days|Subject)") - population, effects["Days"] * data.Days
    )


def test_interaction_groups_match_in_either_order_and_factor_slopes_by_their_variable() -> None:
    pastes = lmer("strength ~ 1 + (1 | batch/cask)", load_dataset("Pastes"))
    for text in ("(1 | cask:batch)", "(1 | batch:cask)"):
        assert [m.tolist() for m in included_columns(pastes.design, text)] == [[True], [False]]
    cake = lmer("angle ~ recipe + temp + (recipe | replicate)", load_dataset("cake"))
    assert [m.tolist() for m in included_columns(cake.design, "(0 + recipe | replicate)")] == [[False, True, True]]


def test_transformed_and_quoted_slopes_are_found(sleepstudy: pd.DataFrame) -> None:
    data = sleepstudy.rename(columns={"Days": "the days"})
    fit = lmer("Reaction ~ `the days` + (`the days` + I(`the days`^2) | Subject)", data)
    assert [m.tolist() for m in included_columns(fit.design, "(0 + `the days` | Subject)")] == [[False, True, False]]
    assert [m.tolist() for m in included_columns(fit.design, "(I(`the days`^2) | Subject)")] == [[True, False, True]]


def test_a_new_level(slopes: LmerResult) -> None:
    new = pd.DataFrame({"Days": [1.0, 1.0], "Subject": ["308", "newcomer"]})
    with pytest.raises(DataError, match="newcomer"):
        slopes.predict(new)
    out = slopes.predict(new, allow_new_levels=True)
    assert out[0] == pytest.approx(slopes.fittedvalues[1])
    assert out[1] == pytest.approx(slopes.predict(new, re_form="none")[1])


def test_missing_values_have_no_prediction(slopes: LmerResult) -> None:
    new = pd.DataFrame({"Days": [np.nan, 1.0, 1.0], "Subject": ["308", None, "308"]}, index=list("abc"))
    out = slopes.predict(new)
    assert out.isna().tolist() == [True, True, False]
    assert slopes.predict(new, allow_new_levels=True)["b"] == pytest.approx(slopes.params @ [1, 1])
    for interval in ("confidence", "prediction"):
        table = slopes.predict(new, interval=interval)
        assert table.isna().all(axis=1).tolist() == [True, True, False]
        pd.testing.assert_frame_equal(table.loc[["c"]], slopes.predict(new.loc[["c"]], interval=interval))
        assert slopes.predict(new[:2], interval=interval).isna().all(axis=None)
        weights = pd.Series({"c": 4.0, "b": 1.0, "a": 1.0})
        heavier = slopes.predict(new, interval=interval, weights=weights)
        assert heavier.std_error["c"] == slopes.predict(new[2:], interval=interval, weights=4.0).std_error["c"]
    with pytest.raises(DataError, match="Days"):
        slopes.predict(pd.DataFrame({"Subject": ["308"]}))


def test_offsets_are_evaluated_in_new_data(sleepstudy: pd.DataFrame) -> None:
    data = sleepstudy.assign(off=np.linspace(0.0, 9.0, 180))
    fit = lmer("Reaction ~ Days + (1 | Subject)", data, offset="off")
    np.testing.assert_allclose(fit.predict(data), fit.fittedvalues)
    np.testing.assert_allclose(fit.predict(data.assign(off=data.off + 5.0)), fit.fittedvalues + 5.0)


def test_transforms_keep_the_state_of_the_fit(sleepstudy: pd.DataFrame) -> None:
    fit = lmer("Reaction ~ poly(Days, 2) + (1 | Subject)", sleepstudy)
    np.testing.assert_allclose(fit.predict(sleepstudy.iloc[4:7]), fit.fittedvalues.iloc[4:7])


def test_an_unseen_fixed_level_is_named() -> None:
    fit = lmer("angle ~ recipe + (1 | replicate)", load_dataset("cake"))
    with pytest.raises(DataError, match="Z"):
        fit.predict(pd.DataFrame({"recipe": ["Z"], "replicate": ["1"]}))


def test_no_rows_have_no_predictions(sleepstudy: pd.DataFrame) -> None:
    data = sleepstudy.assign(half=np.where(sleepstudy.Days < 5, "first", "second"))
    fit = lmer("Reaction ~ half * Days + (Days | Subject)", data)
    none = data.iloc[:0]
    assert len(fit.predict(none)) == 0
    assert len(fit.predict(none, interval="prediction")) == 0
    assert fit.simulate(2, seed=1, newdata=none).shape == (0, 2)
