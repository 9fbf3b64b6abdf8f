from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import norm

from fastlmm_core import DataError, LmerResult, ModelError, lmer, load_dataset
from fastlmm_core.inference.intervals import bootstrap_limits


@pytest.fixture(scope="module")
def fit() -> LmerResult:
    return lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))


@pytest.fixture(scope="module")
def draws(fit: LmerResult) -> pd.DataFrame:
    return fit.bootstrap(2000, seed=1)


def test_wald(fit: LmerResult) -> None:
    ci = fit.conf_int(level=0.9, ddf="normal")
    assert list(ci.columns) == ["lower", "upper"]
    assert list(ci.index) == [
        "sd_Intercept|Subject",
        "cor_Days.Intercept|Subject",
        "sd_Days|Subject",
        "sigma",
        "Intercept",
        "Days",
    ]
    assert ci.iloc[:4].isna().all(axis=None)
    expected = fit.params.to_numpy()[:, None] + norm.ppf([0.05, 0.95]) * fit.bse.to_numpy()[:, None]
    np.testing.assert_allclose(ci.iloc[4:], expected, rtol=1e-10)


def test_wald_with_degrees_of_freedom(fit: LmerResult) -> None:
    normal, t = fit.conf_int(parm="Days", ddf="normal"), fit.conf_int(parm="Days")
    # lmerTest: 17 degrees of freedom
    ratio = (t.upper - t.lower).iloc[0] / (normal.upper - normal.lower).iloc[0]
    np.testing.assert_allclose(ratio, 2.109816 / norm.ppf(0.975), rtol=1e-4)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("ddf", ["satterthwaite", "residual", "normal"])
def test_intervals_agree_with_the_tests_beside_them(reml: bool, ddf: str) -> None:
    """A limit at zero is where the summary's p-value is 1 - level; `tidy` has the same limits."""
    fit = lmer("angle ~ recipe * temp + (1 | recipe:replicate)", load_dataset("cake"), reml=reml)
    limits, tidy = fit.conf_int(parm="beta_", ddf=ddf), fit.tidy("fixed", conf_int=True, ddf=ddf)  # type: ignore[arg-type]
    np.testing.assert_allclose(limits, tidy[["conf_low", "conf_high"]], rtol=1e-6)
    coefficients = fit.summary(ddf).coefficients
    for name, p in coefficients["p"].items():
        if p > 1e-9:
            at_p = fit.conf_int(level=1.0 - p, parm=str(name), ddf=ddf).loc[name]  # type: ignore[arg-type]
            np.testing.assert_allclose(np.abs(at_p).min(), 0.0, atol=1e-6 * np.ptp(at_p))
    if ddf == "satterthwaite":
        pd.testing.assert_frame_equal(limits, fit.conf_int(parm="beta_"))


@pytest.mark.parametrize("kind", ["percentile", "basic", "norm", "bca"])
def test_bootstrap_intervals_are_near_the_profile(fit: LmerResult, draws: pd.DataFrame, kind: str) -> None:
    ours = fit.conf_int("boot", draws=draws, kind=kind)  # type: ignore[arg-type]
    other = fit.conf_int("profile")
    assert list(ours.index) == list(other.index)
    width = other.upper - other.lower
    near = ["sd_Days|Subject", "sigma", "Intercept", "Days"]
    assert (np.abs(ours - other).max(axis=1) / width)[near].max() < 0.25
    assert (ours.lower < ours.upper).all()


def test_bootstrap_is_made_where_none_is_given(fit: LmerResult) -> None:
    made = fit.conf_int("boot", 0.8, "Days", n=100, seed=3)
    pd.testing.assert_frame_equal(made, fit.conf_int("boot", 0.8, "Days", draws=fit.bootstrap(100, seed=3)))


def test_limits_against_scipy() -> None:
    """The mean of a skewed sample: SciPy's bootstrap distribution and its jackknife."""
    sample = np.random.default_rng(0).exponential(size=40)
    for kind, method in (("percentile", "percentile"), ("basic", "basic"), ("bca", "BCa")):
        theirs = scipy_bootstrap((sample,), np.mean, method=method, n_resamples=4000, rng=np.random.default_rng(1))
        left_out = (sample.sum() - sample)[:, None] / 39
        ours = bootstrap_limits(
            theirs.bootstrap_distribution[:, None],
            np.array([sample.mean()]),
            0.95,
            kind,  # type: ignore[arg-type]
            left_out,
        )[0]
        width = theirs.confidence_interval.high - theirs.confidence_interval.low
        np.testing.assert_allclose(ours, list(theirs.confidence_interval), atol=0.01 * width)


def test_normal_limits_are_rs_boot_ci() -> None:
    """boot.ci(type="norm"): 2 t0 - mean(t) and normal quantiles of sd(t), with n - 1."""
    values = np.random.default_rng(3).gamma(2.0, size=(500, 1))
    limits = bootstrap_limits(values, np.array([2.1]), 0.9, "norm")[0]
    centre, half = 4.2 - values.mean(), 1.6448536269514722 * values.std(ddof=1)
    np.testing.assert_allclose(limits, [centre - half, centre + half], rtol=1e-12)


def test_names_in_other_spellings(fit: LmerResult, draws: pd.DataFrame) -> None:
    for method, kind in (("Boot", "perc"), ("bootstrap", "percentile"), ("boot", "Percentile")):
        given = fit.conf_int(method, draws=draws, kind=kind)  # type: ignore[arg-type]
        pd.testing.assert_frame_equal(given, fit.conf_int("boot", draws=draws))
    kenward = fit.conf_int(parm="beta_", ddf="kenward-roger")
    for ddf in ("KR", "Kenward-Roger", "kenward_roger"):
        pd.testing.assert_frame_equal(kenward, fit.conf_int("Wald", parm="beta_", ddf=ddf))  # type: ignore[arg-type]


def test_limits_stay_in_the_range_of_the_parameter() -> None:
    fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
    draws = fit.bootstrap(400, seed=1)
    for kind in ("percentile", "basic", "norm", "bca"):
        ci = fit.conf_int("boot", 0.99, draws=draws, kind=kind)  # type: ignore[arg-type]
        assert (ci.lower[["sd_Intercept|Batch", "sigma"]] >= 0.0).all()


def test_undefined_draws_are_left_out() -> None:
    draws = np.column_stack([np.r_[np.nan, np.linspace(0.0, 1.0, 101)], np.full(102, np.nan)])
    limits = bootstrap_limits(draws, np.array([0.5, 0.5]), 0.9, "percentile")
    np.testing.assert_allclose(limits[0], [0.05, 0.95])
    assert np.isnan(limits[1]).all()
    assert np.isnan(bootstrap_limits(draws, np.array([np.nan, 0.5]), 0.9, "percentile")[0]).all()


def test_refusals(fit: LmerResult, draws: pd.DataFrame) -> None:
    with pytest.raises(ModelError, match="'score'"):
        fit.conf_int("score")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="'normal'"):
        fit.conf_int("boot", draws=draws, kind="normal")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="between 0 and 1"):
        fit.conf_int(level=95)
    with pytest.raises(ModelError, match="no parameter"):
        fit.conf_int(parm="Day")
    with pytest.raises(DataError, match="no column 'sigma'"):
        fit.conf_int("boot", parm="sigma", draws=draws[["Days"]])
