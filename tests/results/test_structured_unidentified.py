"""Structured models with parameters that no response can tell: they are named, and what depends on them is NaN."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import IdentifiabilityWarning, LmerResult, lmer


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    rng = np.random.default_rng(11)
    d = pd.DataFrame(
        {"site": np.repeat(list("ABCD"), 48), "k": np.repeat(np.arange(24), 8), "t": np.tile(range(8), 24)}
    )
    d["x"], d["trt"], d["k2"] = rng.normal(size=192), "t" + d.site, rng.integers(0, 15, 192)
    d["y"] = 0.5 * d.x + rng.normal(0, 0.7, 24)[d.k] + rng.normal(size=192)
    return d


def told(formula: str, data: pd.DataFrame, match: str, **options: object) -> LmerResult:
    with pytest.warns(IdentifiabilityWarning, match=match):
        return lmer(formula, data, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("formula", "options"),
    [
        ("y ~ trt + x + (1 | site)", {"residual": "ar1(t | k)"}),
        ("y ~ trt + x + (1 | site)", {"dispersion": "~ x"}),
        ("y ~ trt + x + (1 | site) + ar1(0 + factor(t) | k) + (1 | k2)", {}),
    ],
)
def test_the_fixed_effects_span_a_term(data, formula, options):
    m = told(formula, data, r"does not depend on var\(Intercept \| site\)", **options)
    lines = [name for name in m.params.index if name != "x"]
    table = m.coef_table()
    assert table.loc[lines, ["std_error", "p"]].isna().all(axis=None)
    assert np.isfinite(table.loc["x", ["std_error", "p"]].to_numpy(float)).all()
    assert m.cov_params().loc[lines].isna().all(axis=None)
    frame = m.var_corr().to_frame()
    assert frame[frame.grp == "site"].vcov.isna().all()
    assert "site" in frame.attrs["notes"][0]
    assert "NaN" in str(m.summary())
    conditional = m.ranef()
    assert conditional[conditional.grpvar == "site"].condsd.isna().all()
    assert conditional[conditional.grpvar != "site"].condsd.notna().all()
    if hasattr(m.core, "model") and "residual" in options:
        printed = m.covariance_parameters()
        assert printed.loc["var Intercept | site"].iloc[1:].isna().all()
        assert printed.drop(index="var Intercept | site").notna().all(axis=None)
    without = lmer(formula.replace(" + (1 | site)", ""), data, **options)
    assert m.criterion == pytest.approx(without.criterion, abs=1e-4)
    assert table.loc["x", "std_error"] == pytest.approx(without.bse["x"], rel=1e-4)


@pytest.mark.parametrize(
    ("formula", "options"),
    [
        ("y ~ x + (1 | k) + (1 | k)", {"residual": "ar1(t | k)"}),
        ("y ~ x + (1 | k) + (1 | k)", {"dispersion": "~ x", "reml": False}),
        ("y ~ x + us(x | k) + homcs(x | k) + (1 | k2)", {}),
    ],
)
def test_terms_that_say_the_same(data, formula, options):
    m = told(formula, data, r"fewer combinations of these than there are: var\(Intercept \| k\)", **options)
    assert m.coef_table().p.notna().all()
    frame = m.var_corr().to_frame()
    assert frame[frame.grp.str.startswith("k") & (frame.grp != "k2")].vcov.isna().any()


def test_a_residual_correlation_within_levels_of_a_fixed_factor(data):
    m = told("y ~ factor(k)", data, "residuals' covariance", residual="cs(t | k)")
    assert m.coef_table().p.isna().all()


@pytest.mark.parametrize("structure", ["cs", "csh", "ar1", "ar1h", "toep", "toeph", "ad", "us", "exp"])
@pytest.mark.parametrize("reml", [True, False])
def test_sound_structures_are_not_suspected(data, structure, reml):
    with warnings.catch_warnings():
        warnings.simplefilter("error", IdentifiabilityWarning)
        lmer("y ~ trt * x", data, residual=f"{structure}(t | k)", reml=reml)


@pytest.mark.parametrize("reml", [True, False])
def test_two_visits_do_not_tell_slopes_from_correlations(data, reml):
    two = data[data.t < 2]
    m = told("y ~ x + diag(t | k)", two, "fewer combinations", residual="ar1(t | k)", reml=reml)
    assert np.isfinite(m.coef_table(ddf="residual").loc["x", "std_error"])


def test_effects_are_not_counted_beside_a_residual_structure(data):
    # as many effects as rows, which nlme's lme fits too: half of the subjects have three visits, half of them one
    few = data[(data.k < 20) & (data.t < np.where(data.k < 10, 3, 1))]
    assert 2 * few.k.nunique() == len(few)
    fit = lmer("y ~ x + diag(t | k)", few, residual="exp(t | k)", reml=False)
    alone = lmer("y ~ x", few, residual="exp(t | k)", reml=False)
    assert fit.criterion <= alone.criterion + 1e-6


def test_a_correlation_of_effects_that_are_zero_is_not_shown(data):
    m = lmer("y ~ trt * C(t % 2) + cs(0 + C(t % 2) | site)", data, reml=False)
    printed = m.covariance_parameters()
    assert printed.loc[["var C(t % 2)[0] | site", "var C(t % 2)[1] | site"], "estimate"].tolist() == [0.0, 0.0]
    assert printed.loc["rho | site", ["estimate", "std_error", "lower", "upper"]].isna().all()
    assert printed.loc["var Residual"].notna().all()
