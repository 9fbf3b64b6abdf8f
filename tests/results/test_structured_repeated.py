"""Residual structures of rows that all but repeat one value: right, or an error."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import ConvergenceWarning, NumericalError, lmer


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


@pytest.mark.parametrize("noise", [1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7])
@pytest.mark.parametrize("options", [{"residual": "ar1(t | k)"}, {"residual": "csh(t | k)"}, {"dispersion": "~ x"}])
def test_small_residuals_are_fitted_or_refused(options, noise):
    d = repeated(noise)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            fit = lmer("y ~ x + (1 | k)", d, **options)
    except (NumericalError, ConvergenceWarning):
        assert noise < (1e-4 if "csh" in str(options) else 3e-5)
        return
    plain = lmer("y ~ x + (1 | k)", d)
    assert fit.criterion < plain.criterion + 1e-2
    if "csh" not in str(options):  # whose correlation says the same as the random effects
        assert fit.sigma == pytest.approx(plain.sigma, rel=0.15)
