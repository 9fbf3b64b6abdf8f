from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import ConvergenceWarning, DataError, LmerResult, ModelError, lmer, load_dataset
from fastlmm_core.fitting import fit as fitting


def test_refit_is_the_fit_of_another_response(slopes: LmerResult, sleepstudy: pd.DataFrame) -> None:
    other = np.random.default_rng(3).permutation(sleepstudy.Reaction.to_numpy())
    again = slopes.refit(other)
    fresh = lmer("Reaction ~ Days + (Days | Subject)", sleepstudy.assign(Reaction=other))
    assert again.criterion == pytest.approx(fresh.criterion, abs=1e-7)
    np.testing.assert_allclose(again.params, fresh.params, rtol=1e-6)
    assert again.formula == slopes.formula
    assert slopes.criterion == pytest.approx(1743.62827, abs=1e-4)


def test_refit_takes_the_rows_of_the_fit_or_of_the_table(weighted: LmerResult) -> None:
    whole = np.arange(180.0) ** 1.1
    np.testing.assert_allclose(
        weighted.refit(whole).params, weighted.refit(np.delete(whole, [3, 40])).params, rtol=1e-10
    )
    whole[3] = np.nan  # a row that the fit does not use
    assert weighted.refit(whole).nobs == 178


@pytest.mark.parametrize(
    ("new_y", "message"),
    [
        (np.ones(7), r"shape \(7,\).*180 rows"),
        (np.ones((180, 2)), r"shape \(180, 2\)"),
        (np.r_[np.nan, np.inf, np.arange(178)], "2 missing or infinite"),
        (["a"] * 180, "not numeric"),
    ],
)
def test_refit_refuses(slopes: LmerResult, new_y: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        slopes.refit(new_y)


def test_refit_refuses_a_constant_as_lmer_does(slopes: LmerResult, sleepstudy: pd.DataFrame) -> None:
    with pytest.raises(ModelError, match="constant"):
        slopes.refit(np.ones(180))
    with pytest.raises(ModelError, match="constant"):
        lmer("Reaction ~ Days + (1 | Subject)", sleepstudy.assign(Reaction=1.0))


def test_refit_aligns_pandas_objects_with_the_rows(weighted: LmerResult) -> None:
    y = pd.Series(weighted.design.y, index=weighted.design.index)
    expected = weighted.refit(y.to_numpy() ** 2)
    assert weighted.refit((y**2)[::-1]).criterion == expected.criterion
    whole = (y**2).reindex([f"row{k}" for k in range(weighted.design.n_total)])
    for new_y in (whole, whole[::-1]):
        assert weighted.refit(new_y).criterion == expected.criterion
    with pytest.raises(DataError, match="index of new_y"):
        weighted.refit(y.set_axis([f"r{k}" for k in range(len(y))]))


def test_refit_takes_one_simulated_response(slopes: LmerResult) -> None:
    drawn = slopes.simulate(1, seed=1)
    assert slopes.refit(drawn).criterion == slopes.refit(drawn["sim_1"]).criterion


def test_refit_ml(slopes: LmerResult, sleepstudy: pd.DataFrame) -> None:
    ml = slopes.refit_ml()
    assert not ml.reml
    assert ml.criterion == pytest.approx(1751.93934, abs=1e-4)
    assert ml.refit_ml() is ml
    assert not ml.options.reml
    assert ml.refit(sleepstudy.Reaction).criterion == pytest.approx(ml.criterion, abs=1e-8)


def test_no_convergence_is_a_warning_and_stays_on_the_result(
    slopes: LmerResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = replace(slopes.core, converged=False, message="evaluation limit reached")
    monkeypatch.setattr(fitting, "core_fit", lambda *args, **kwargs: stopped)
    with pytest.warns(ConvergenceWarning, match="evaluation limit reached") as caught:
        fit = lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
    assert caught[0].filename == __file__
    assert not fit.converged
    assert "did not converge: evaluation limit reached" in str(fit.summary())
    with pytest.warns(ConvergenceWarning) as caught:
        slopes.refit(slopes.design.y)
    assert caught[0].filename == __file__
