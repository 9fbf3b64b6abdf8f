from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import LmerResult, lmer


def test_counts_and_criteria_are_lme4s(slopes: LmerResult) -> None:
    assert slopes.nobs == 180
    assert slopes.df_model == 6
    assert slopes.df_resid == 174
    assert slopes.criterion == pytest.approx(1743.62827195995, abs=1e-6)
    assert slopes.llf == -slopes.criterion / 2
    assert slopes.aic == pytest.approx(1755.62827195995, abs=1e-6)
    assert slopes.bic == pytest.approx(1755.62827195995 - 12 + 6 * np.log(180), abs=1e-6)
    assert slopes.sigma == pytest.approx(25.5917957, rel=1e-6)
    assert slopes.reml
    assert slopes.converged
    assert not slopes.is_singular


def test_residuals_and_fitted_values_add_up(slopes: LmerResult, sleepstudy: pd.DataFrame) -> None:
    np.testing.assert_allclose(slopes.fittedvalues + slopes.resid, sleepstudy.Reaction)
    assert slopes.resid.index.equals(sleepstudy.index)


def test_rows_keep_the_index_of_the_data(weighted: LmerResult) -> None:
    assert weighted.n_missing == 2
    assert weighted.nobs == 178
    assert "row3" not in weighted.resid.index
    assert weighted.fittedvalues.index[-1] == "row179"


def test_other_tables_are_indexed_by_row_position(sleepstudy: pd.DataFrame) -> None:
    pl = pytest.importorskip("polars")
    data = pl.DataFrame(
        {
            "Reaction": [None, *sleepstudy.Reaction[1:]],
            "Days": sleepstudy.Days.to_numpy(),
            "Subject": sleepstudy.Subject.astype(str).to_list(),
        }
    )
    fit = lmer("Reaction ~ Days + (1 | Subject)", data)
    assert fit.fittedvalues.index[0] == 1
    assert fit.n_missing == 1


def test_fit_log_ends_at_the_optimum(slopes: LmerResult) -> None:
    log = slopes.fit_log
    assert list(log.columns) == ["criterion", "gradient_norm", "radius", *slopes.theta.index]
    assert log.index.name == "evaluation"
    assert log.criterion.min() == pytest.approx(slopes.criterion, abs=1e-6)


def test_repr_is_one_line(slopes: LmerResult) -> None:
    assert repr(slopes) == (
        "<LmerResult: Reaction ~ Days + (Days | Subject); REML criterion 1743.63; 180 rows; Subject 18>"
    )


def test_results_are_frozen(slopes: LmerResult) -> None:
    with pytest.raises(AttributeError):
        slopes.core = None  # type: ignore[misc]
