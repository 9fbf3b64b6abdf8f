from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import DataError, LmerResult, ModelError, lmer, load_dataset


def test_objective_only_is_the_criterion(slopes: LmerResult, sleepstudy: pd.DataFrame) -> None:
    objective = lmer("Reaction ~ Days + (Days | Subject)", sleepstudy, objective_only=True)
    assert objective(slopes.theta.to_numpy()) == pytest.approx(slopes.criterion, abs=1e-8)
    assert np.abs(objective.gradient(slopes.theta.to_numpy())).max() < 1e-2
    ml = lmer("Reaction ~ Days + (Days | Subject)", sleepstudy, reml=False, objective_only=True)
    assert ml([1.0, 0.0, 1.0]) > ml(slopes.refit_ml().theta.to_numpy())


def test_a_start_leads_to_the_same_optimum(slopes: LmerResult, sleepstudy: pd.DataFrame) -> None:
    fit = lmer("Reaction ~ Days + (Days | Subject)", sleepstudy, start=[0.5, 0.1, 0.5])
    assert fit.criterion == pytest.approx(slopes.criterion, abs=1e-6)
    np.testing.assert_allclose(fit.fit_log.iloc[0, 3:], [0.5, 0.1, 0.5], atol=1e-8)


def test_a_start_of_the_wrong_length_names_both(sleepstudy: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"start has 2 values.*3 variance parameters \(Subject: 3\)"):
        lmer("Reaction ~ Days + (Days | Subject)", sleepstudy, start=[1.0, 1.0])
    with pytest.raises(DataError, match="not finite"):
        lmer("Reaction ~ Days + (1 | Subject)", sleepstudy, start=[np.nan])
    with pytest.raises(DataError, match="start has 2 values"):
        lmer("Reaction ~ Days + (1 | Subject)", sleepstudy, start=[1.0, 1.0], objective_only=True)


def test_verbose_writes_one_line_an_evaluation(sleepstudy: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    fit = lmer("Reaction ~ Days + (1 | Subject)", sleepstudy, verbose=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == len(fit.fit_log)
    assert "criterion" in err
    lmer("Reaction ~ Days + (1 | Subject)", sleepstudy)
    assert capsys.readouterr() == ("", "")


def doubled(x: pd.Series) -> pd.Series:
    return 2.0 * x


def test_names_are_looked_up_where_lmer_is_called(slopes: LmerResult, sleepstudy: pd.DataFrame) -> None:
    def halved(x: pd.Series) -> pd.Series:
        return x / 2.0

    local = lmer("Reaction ~ halved(Days) + (1 | Subject)", sleepstudy)
    module = lmer("Reaction ~ doubled(Days) + (1 | Subject)", sleepstudy)
    given = lmer("Reaction ~ thrice(Days) + (1 | Subject)", sleepstudy, env={"thrice": lambda x: 3.0 * x})
    slope = slopes.params["Days"]
    assert local.params["halved(Days)"] == pytest.approx(2 * slope)
    assert module.params["doubled(Days)"] == pytest.approx(slope / 2)
    assert given.params["thrice(Days)"] == pytest.approx(slope / 3)


def test_reml_is_a_flag(sleepstudy: pd.DataFrame) -> None:
    with pytest.raises(ModelError, match="reml"):
        lmer("Reaction ~ Days + (1 | Subject)", sleepstudy, reml="ML")  # type: ignore[call-overload]


def test_missing_rows_can_be_refused(sleepstudy: pd.DataFrame) -> None:
    data = sleepstudy.copy()
    data.loc[5, "Days"] = np.nan
    assert lmer("Reaction ~ Days + (1 | Subject)", data).n_missing == 1
    with pytest.raises(DataError):
        lmer("Reaction ~ Days + (1 | Subject)", data, na_action="raise")


def test_a_singular_fit_is_no_warning() -> None:
    fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff2"))
    assert fit.is_singular
    assert fit.converged
    assert fit.theta.iloc[0] == pytest.approx(0.0, abs=1e-6)
