from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import LmerResult


@pytest.mark.parametrize("name", ["slopes", "zerocorr", "crossed", "weighted"])
def test_pickling_keeps_every_answer(name: str, request: pytest.FixtureRequest) -> None:
    fit: LmerResult = request.getfixturevalue(name)
    again = pickle.loads(pickle.dumps(fit))
    assert str(again.summary()) == str(fit.summary())
    assert again.to_dict() == fit.to_dict()
    pd.testing.assert_frame_equal(again.ranef(), fit.ranef())  # conditional variances are computed anew
    pd.testing.assert_series_equal(again.predict(), fit.predict())
    np.testing.assert_allclose(again.refit(fit.design.y).criterion, fit.criterion, rtol=1e-12)


def test_pickled_results_predict_new_rows(slopes: LmerResult, sleepstudy: pd.DataFrame) -> None:
    again = pickle.loads(pickle.dumps(slopes))
    pd.testing.assert_series_equal(again.predict(sleepstudy), slopes.predict(sleepstudy))
