"""Squares that overflow or vanish: the right answer, or an error that names the column."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import UnitError, lmer
from fastlmm_core.core import Term, fit


def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    g = np.repeat(np.arange(12), 8)
    x = rng.normal(size=96)
    return rng.normal(size=12)[g] * (1 + x) + x + rng.normal(size=96), x, g


@pytest.mark.parametrize("exponent", [-300, -200, -150, -100, -40, 40, 100, 150, 200, 300])
@pytest.mark.parametrize("where", ["y", "x", "z"])
def test_any_unit_is_right_or_refused(where: str, exponent: int) -> None:
    y, x, g = problem()
    scale = {"y": 1.0, "x": 1.0, "z": 1.0} | {where: 10.0**exponent}

    def fitted(scale: dict[str, float]) -> object:
        X = np.column_stack([np.ones(96), x * scale["x"]])
        return fit(y * scale["y"], X, [Term(g, np.column_stack([np.ones(96), x * scale["z"]]))])

    plain = fitted({"y": 1.0, "x": 1.0, "z": 1.0})
    if abs(exponent) >= 150:
        with pytest.raises(UnitError, match="overflow" if exponent > 0 else "vanish"):
            fitted(scale)
        return
    got = fitted(scale)
    assert got.converged
    assert got.sigma / scale["y"] == pytest.approx(plain.sigma, rel=1e-6)
    np.testing.assert_allclose(got.beta * [1.0, scale["x"]] / scale["y"], plain.beta, rtol=1e-5)
    se = np.sqrt(np.diagonal(got.cov_beta)) * [1.0, scale["x"]] / scale["y"]
    np.testing.assert_allclose(se, np.sqrt(np.diagonal(plain.cov_beta)), rtol=1e-5)
    assert got.is_singular == plain.is_singular


def test_the_columns_are_named() -> None:
    y, x, g = problem()
    d = pd.DataFrame({"y": y, "x": x, "g": g, "large": x * 1e160, "small": y * 1e-200})
    with pytest.raises(UnitError, match=r"large has values up to .*e\+160, whose squares overflow"):
        lmer("y ~ large + (1 | g)", d)
    with pytest.raises(UnitError, match="large"):
        lmer("y ~ x + (x + large | g)", d)
    with pytest.raises(UnitError, match=r"response small .* vanish"):
        lmer("small ~ x + (1 | g)", d)


@pytest.mark.parametrize("origin", [0.0, 50.0, 1e4])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_singular_whatever_the_covariates_unit_and_origin(origin: float, unit: float) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        g, x = np.repeat(np.arange(20), 6), rng.normal(size=120)
        y = 1 + x + rng.normal(size=20)[g] * (x + 0.3) + rng.normal(size=120)
        z = (x + origin) * unit
        X = np.column_stack([np.ones(120), z])
        centred = np.column_stack([np.ones(120), x])
        got, plain = fit(y, X, [Term(g, X)]), fit(y, centred, [Term(g, centred)])
        assert got.criterion + 2 * np.log(1 / unit) == pytest.approx(plain.criterion, abs=1e-5)
        assert got.is_singular == plain.is_singular
