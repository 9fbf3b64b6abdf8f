"""Marginal means where a formula makes something else of a column: factors of numbers, values of missing ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import DataError, lmer


@pytest.mark.parametrize(
    "call",
    ["as.factor(k)", "ordered(`k`)", "relevel(factor(k), 2)", "C(factor(k), contr.sum)", "factor(as.character(k))"],
)
def test_numbers_that_any_call_makes_a_factor_of(call: str) -> None:
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"k": rng.integers(1, 4, 120), "x": rng.normal(size=120), "g": np.arange(120) % 10})
    data["y"] = rng.normal(size=120) + 0.1 * data["g"]
    want = lmer("y ~ x + factor(k) + (1 | g)", data).emmeans("k").to_frame()
    found = lmer(f"y ~ x + {call} + (1 | g)", data).emmeans("k").to_frame()
    np.testing.assert_allclose(found["estimate"], want["estimate"], rtol=1e-7)
    assert list(found["k"]) == list(want["k"])


def test_columns_that_are_missing_in_rows_of_the_fit() -> None:
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"x": rng.normal(2.0, 1.0, 120), "f": rng.choice(list("ab"), 120), "g": np.arange(120) % 10})
    data["y"] = data["x"] + rng.normal(size=120) + 0.1 * data["g"]
    data["o"] = pd.Series(rng.choice(list("uvw"), 120)).where(rng.random(120) > 0.3)
    data.loc[:30, "x"] = np.nan
    for term, at in (("I(x.fillna(0))", data["x"].mean()), ("is.na(x)", 0.0), ("is.na(o)", 0.0)):
        fit = lmer(f"y ~ {term} + f + (1 | g)", data)
        b = fit.fixef.to_numpy()
        ends = b[0] + np.array([0.0, b[2]])
        found = fit.emmeans("f").to_frame()["estimate"]
        np.testing.assert_allclose(found, ends + b[1] * at, rtol=1e-10)
        averaged = fit.emmeans("f", over="data", data=data).to_frame()["estimate"]
        np.testing.assert_allclose(averaged, ends + b[1] * fit.design.X[:, 1].mean(), rtol=1e-10)
    fit = lmer("y ~ I(x.fillna(0)) + f + (1 | g)", data)
    np.testing.assert_allclose(fit.emtrends("x").to_frame()["estimate"], fit.fixef.iloc[1], rtol=1e-7)
    with pytest.raises(DataError, match="missing values of f"):
        fit.emmeans("x", over="data", data=data.assign(f=data["f"].where(data["g"] > 0)))
