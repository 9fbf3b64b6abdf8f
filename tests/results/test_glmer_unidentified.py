"""Random terms of generalised models that no response can tell apart, and correlations that mean nothing at a bound."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import FastLMMWarning, GlmerResult, IdentifiabilityWarning, glmer


def counts(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    d = pd.DataFrame({"k": np.repeat(np.arange(24), 8), "x": rng.normal(size=192), "one": 1.0})
    d["c"] = rng.poisson(np.exp(1 + 0.5 * d.x + rng.normal(0, 0.7, 24)[d.k] + rng.normal(0, 0.3, 24)[d.k] * d.x))
    d["b"] = (d.c > 3) * 1
    d["row"] = np.arange(192)
    return d


def quiet(formula: str, family: str, data: pd.DataFrame, **options: int) -> GlmerResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FastLMMWarning)
        return glmer(formula, data, family, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "left", "options"),
    [("poisson", "c", {}), ("binomial", "b", {}), ("binomial", "b", {"n_agq": 5}), ("negativebinomial", "c", {})],
)
@pytest.mark.parametrize(
    ("terms", "plain", "held"),
    [
        ("(1 | k) + (1 | k)", "(1 | k)", [1]),
        ("(0 + one | k) + (1 | k)", "(0 + one | k)", [1]),
        ("(1 | k) + (x | k)", "(x | k)", [0]),
        ("(x + I(2 * x - 3) | k)", "(x | k)", [2, 4, 5]),
        ("(0 + x | k) + (x || k)", "(0 + x | k) + (1 | k)", [2]),
    ],
)
def test_what_no_response_can_tell_is_held(family, left, options, terms, plain, held):
    d = counts()
    with pytest.warns(IdentifiabilityWarning, match=r"\| k\)"):
        m = glmer(f"{left} ~ x + {terms}", d, family, **options)
    simple = quiet(f"{left} ~ x + {plain}", family, d, **options)
    assert m.converged
    np.testing.assert_array_equal(m.theta.iloc[held], 0.0)
    if not options:  # quadrature along other axes is another approximation
        assert m.criterion == pytest.approx(simple.criterion, abs=1e-6)
        np.testing.assert_allclose(m.params, simple.params, atol=1e-4)
        np.testing.assert_allclose(m.bse, simple.bse, rtol=1e-3)
    frame = m.var_corr().to_frame()
    assert frame.vcov.isna().any()
    assert "the likelihood" in frame.attrs["notes"][0]
    assert "NaN" in str(m.summary())
    assert m.tidy("ran_pars").estimate.isna().any()


def test_a_level_a_row_is_not_the_residual() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", IdentifiabilityWarning)
        m = glmer("c ~ x + (1 | row) + (1 | k)", counts(), "poisson")
    assert m.var_corr().to_frame().vcov.notna().all()


def test_profiles_beside_a_held_variance():
    m, simple = (quiet(f"c ~ x + {terms}", "poisson", counts()) for terms in ("(1 | k) + (1 | k)", "(1 | k)"))
    limits = m.conf_int(method="profile")
    assert limits.loc["sd_Intercept|k.1"].isna().all()
    np.testing.assert_allclose(
        limits.drop(index="sd_Intercept|k.1"), simple.conf_int(method="profile").to_numpy(), rtol=1e-4
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_correlation_is_free_where_an_effect_may_be_zero(seed: int) -> None:
    """Its profile is never above the deviance of the model without the slope, whatever the correlation."""
    rng = np.random.default_rng(seed)
    g, x = np.repeat(np.arange(20), 8), np.tile(np.arange(8.0) - 3.5, 20)
    eta = 1.2 + 0.05 * x + rng.normal(0, 0.4, 20)[g] + rng.normal(0, 0.03, 20)[g] * x
    d = pd.DataFrame({"g": g, "x": x, "c": rng.poisson(np.exp(eta))})
    m, without = quiet("c ~ x + (x | g)", "poisson", d), quiet("c ~ x + (1 | g)", "poisson", d)
    curve = m.profile("cor_x.Intercept|g", level=0.95).curves[0]
    assert np.square(curve.zeta).max() <= without.criterion - m.criterion + 1e-4
    if without.criterion - m.criterion < 3.84:  # the 95 % quantile
        np.testing.assert_array_equal(m.conf_int("profile", parm=["cor_x.Intercept|g"]).to_numpy()[0], [-1.0, 1.0])
