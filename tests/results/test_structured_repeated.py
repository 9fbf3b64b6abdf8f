"""Residual structures of rows that all but repeat one value: right, or an error."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import NumericalError, lmer


def repeated(noise: float) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    d = pd.DataFrame({"k": np.repeat(np.arange(20), 6), "t": np.tile(range(6), 20), "x": rng.normal(size=120)})
    d["y"] = d.x + rng.normal(size=20)[d.k] + noise * rng.normal(size=120)
    return d


@pytest.mark.parametrize("noise", [1e-7, 1e-9])
@pytest.mark.parametrize(
    ("formula", "options"),
    [
        ("y ~ x + (1 | k)", {"residual": "ar1(t | k)"}),
        ("y ~ x + (1 | k)", {"dispersion": "~ x"}),
        ("y ~ x", {"residual": "cs(t | k)"}),
    ],
)
def test_too_few_digits_are_an_error(formula, options, noise):
    with pytest.raises(NumericalError, match="all but determine one another: what is left is"):
        lmer(formula, repeated(noise), **options)


@pytest.mark.parametrize("options", [{"residual": "ar1(t | k)"}, {"dispersion": "~ x"}])
def test_small_residuals_are_fitted(options):
    fit = lmer("y ~ x + (1 | k)", repeated(1e-4), **options)
    plain = lmer("y ~ x + (1 | k)", repeated(1e-4))
    assert fit.sigma == pytest.approx(plain.sigma, rel=0.05)
    assert fit.criterion < plain.criterion + 1e-3
