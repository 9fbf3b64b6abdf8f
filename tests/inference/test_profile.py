from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from fastlmm_core import Control, ConvergenceWarning, IdentifiabilityWarning, LmerResult, ModelError, lmer, load_dataset
from fastlmm_core.inference.profile import profile
from golden_models import SMALL, golden

PROFILED = [name for name in SMALL if golden(name).get("profile_ci_ml")]


def table(figures: dict[str, Any]) -> pd.DataFrame:
    data = load_dataset(figures["data"])
    for column, meta in figures["columns"].items():
        if meta["type"] == "factor" and meta["levels"]:
            data[column] = pd.Categorical(data[column].astype(str), categories=meta["levels"])
    return data


@pytest.mark.parametrize("name", PROFILED)
def test_intervals_are_lme4s(name: str) -> None:
    """To a thousandth of the width; lme4's own are interpolated."""
    figures = golden(name)
    fit = lmer(figures["py_formula"], table(figures), reml=figures["REML"])
    ours = fit.conf_int("profile").to_numpy()
    theirs = figures["profile_ci_ml"]
    assert len(ours) == len(theirs)
    for limits, row in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(limits, [row["lo"], row["hi"]], rtol=0, atol=1e-3 * (row["hi"] - row["lo"]))
    variances = [n for n in fit.conf_int("profile", parm="theta_").index if n != "sigma"]
    assert variances == [r["par"].replace("(Intercept)", "Intercept") for r in theirs if re.match("sd_|cor_", r["par"])]


# ------------------------------------------------------------------------------------------- against dense maximisation


def unbalanced(seed: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(7), [3, 5, 6, 4, 7, 5, 6])
    h = rng.integers(0, 4, len(g))
    x = rng.normal(1.0, 1.0, len(g))
    u = rng.normal(size=(7, 2)) @ np.array([[1.0, 0.3], [0.0, 0.8]])
    y = 1.0 + 0.5 * x + u[g, 0] + u[g, 1] * x + 0.7 * rng.normal(size=4)[h] + 0.6 * rng.normal(size=len(g))
    return pd.DataFrame({"y": y, "x": x, "g": g, "h": h, "w": rng.uniform(0.5, 2.0, len(g)), "o": np.sin(x)})


@pytest.fixture(scope="module")
def small() -> tuple[LmerResult, pd.DataFrame]:
    data = unbalanced()
    return lmer("y ~ x + (x | g) + (1 | h)", data, weights="w", offset="o", reml=False), data


def dense_deviance(data: pd.DataFrame, held: dict[str, float]) -> Callable[[np.ndarray], float]:
    """-2 log L with beta maximised out (or held), the variance parameters held or free on an unbounded scale."""
    free = [name for name in ("sd0", "sd1", "cor", "sdh", "sigma") if name not in held]
    g, h = data.g.to_numpy(), data.h.to_numpy()
    x, y = data.x.to_numpy(), data.y.to_numpy() - data.o.to_numpy()
    same_g, same_h = g[:, None] == g[None, :], h[:, None] == h[None, :]
    X = np.column_stack([np.ones(len(y)), x])
    for j, name in enumerate(("b0", "b1")):
        if name in held:
            y = y - X[:, j] * held[name]
    X = X[:, [j for j, name in enumerate(("b0", "b1")) if name not in held]]

    def deviance(v: np.ndarray) -> float:
        value = dict(held)
        for name, item in zip(free, v, strict=True):
            value[name] = np.sin(item) if name == "cor" else np.exp(item)
        cov = value["cor"] * value["sd0"] * value["sd1"]
        s = np.array([[value["sd0"] ** 2, cov], [cov, value["sd1"] ** 2]])
        z = np.column_stack([np.ones(len(x)), x])
        V = (z @ s @ z.T) * same_g + value["sdh"] ** 2 * same_h + np.diag(value["sigma"] ** 2 / data.w.to_numpy())
        L = np.linalg.cholesky(V)
        r, Q = np.linalg.solve(L, y), np.linalg.solve(L, X)
        r = r - Q @ np.linalg.lstsq(Q, r, rcond=None)[0]
        return float(len(y) * np.log(2 * np.pi) + 2 * np.log(np.diag(L)).sum() + r @ r)

    return deviance


NAMES = {
    "sd_Intercept|g": "sd0",
    "cor_x.Intercept|g": "cor",
    "sd_x|g": "sd1",
    "sd_Intercept|h": "sdh",
    "sigma": "sigma",
    "Intercept": "b0",
    "x": "b1",
}


@pytest.mark.parametrize("name", list(NAMES))
def test_zeta_is_that_of_dense_maximisation(small: tuple[LmerResult, pd.DataFrame], name: str) -> None:
    fit, data = small
    curve = fit.profile(name, level=0.95)[name]
    vc = fit.var_corr().to_frame()
    first = dict(zip(("sd0", "sd1", "cor", "sdh", "sigma"), vc.sdcor, strict=True))
    for value in curve.value[[1, len(curve.value) // 2 + 1, -2]]:
        held = {NAMES[name]: float(value)}
        start = np.array([np.arcsin(v) if k == "cor" else np.log(v) for k, v in first.items() if k not in held])
        deviance = dense_deviance(data, held)
        found = min(
            minimize(deviance, start + shift, method="BFGS", options={"gtol": 1e-7}).fun for shift in (0.0, -0.3)
        )
        zeta = np.sign(value - curve.estimate) * np.sqrt(max(found - fit.criterion, 0.0))
        np.testing.assert_allclose(curve.zeta_at(value), zeta, atol=2e-5)


def test_slopes_are_those_of_zeta(small: tuple[LmerResult, pd.DataFrame]) -> None:
    """The exact slopes against differences of a profile with points close by."""
    fit, _ = small
    for curve in fit.profile(level=0.9):
        fine = profile(fit, curve.name, level=0.2)[curve.name]
        at = int(np.flatnonzero(curve.zeta == 0.0)[0])
        close = int(np.flatnonzero(fine.zeta == 0.0)[0])
        np.testing.assert_allclose(curve.slope[at], fine.slope[close], rtol=2e-3)
        values = fine.value[[0, -1]]
        np.testing.assert_allclose(curve.zeta_at(values), fine.zeta[[0, -1]], rtol=2e-3)


# ----------------------------------------------------------------------------------------------------------- boundaries


def test_variance_of_zero_is_profiled_upwards_only() -> None:
    fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff2"))
    curve = fit.profile("sd_Intercept|Batch", level=0.95)["sd_Intercept|Batch"]
    assert curve.estimate == curve.value[0] == 0.0
    ci = fit.conf_int("profile")
    assert ci.lower["sd_Intercept|Batch"] == 0.0
    np.testing.assert_allclose(ci.upper["sd_Intercept|Batch"], 2.084, atol=2e-3)  # lme4's


def test_correlation_reaches_its_bounds_and_three_columns_work() -> None:
    rng = np.random.default_rng(0)
    data = load_dataset("sleepstudy").assign(x=rng.normal(size=180), w=np.tile([0.5, 1.0, 2.0], 60))
    fit = lmer("Reaction ~ Days + x + (Days + x | Subject)", data, weights="w", offset=np.linspace(0.0, 9.0, 180))
    ci = fit.conf_int("profile")
    assert list(ci.index[:6]) == [
        "sd_Intercept|Subject",
        "cor_Days.Intercept|Subject",
        "cor_x.Intercept|Subject",
        "sd_Days|Subject",
        "cor_x.Days|Subject",
        "sd_x|Subject",
    ]
    assert list(ci.loc["cor_x.Days|Subject"]) == [-1.0, 1.0]
    assert ci.upper["cor_Days.Intercept|Subject"] == 1.0
    assert ci.lower["sd_x|Subject"] == 0.0
    # lme4's
    np.testing.assert_allclose(ci.loc["sd_Intercept|Subject"], [9.523, 33.545], atol=0.02)
    np.testing.assert_allclose(ci.loc["sd_Days|Subject"], [3.5562, 8.9307], atol=0.005)
    np.testing.assert_allclose(ci.upper["sd_x|Subject"], 18.975, atol=0.01)


def test_correlation_with_an_effect_that_does_not_vary_is_anything() -> None:
    rng = np.random.default_rng(8)
    g = np.repeat(np.arange(8), 6)
    x = np.tile(np.linspace(-1, 1, 6), 8)
    effects = rng.normal(size=(8, 1))
    noise = rng.normal(size=(8, 6))
    noise -= noise.mean(axis=1, keepdims=True)  # leaves nothing for the groups to vary by in the slope
    noise -= (noise @ x[:6])[:, None] * x[:6] / (x[:6] @ x[:6])
    data = pd.DataFrame({"y": (effects + noise).ravel(), "x": x, "g": g})
    fit = lmer("y ~ x + (x | g)", data)
    assert fit.is_singular
    ci = fit.conf_int("profile")
    assert list(ci.loc["cor_x.Intercept|g"]) == [-1.0, 1.0]
    assert ci.lower["sd_x|g"] == 0.0


@pytest.mark.filterwarnings("ignore::fastlmm_core.errors.IdentifiabilityWarning")
def test_confounded_terms_have_the_lower_of_two_optima() -> None:
    """Two intercepts on one factor: holding one leaves the other to take its place, until it is used up."""
    data = unbalanced(5).drop(columns="h")
    with pytest.warns(IdentifiabilityWarning, match=r"cannot tell the variance of \(1 \| g\)"):
        fit = lmer("y ~ x + (1 | g) + (x | g)", data)
    for curve in fit.profile("theta_"):
        assert (np.diff(curve.zeta) > -1e-3).all()
    alone = lmer("y ~ x + (x | g)", data).conf_int("profile")
    both = fit.conf_int("profile")
    np.testing.assert_allclose(both.loc["sigma"], alone.loc["sigma"], rtol=1e-3)
    np.testing.assert_allclose(both.upper["sd_x|g.1"], alone.upper["sd_x|g"], rtol=0.02)


def test_units_and_origins_do_not_matter() -> None:
    data = load_dataset("sleepstudy")
    plain = lmer("Reaction ~ Days + (Days | Subject)", data).conf_int("profile")
    moved = data.assign(Days=data.Days * 1e6, Reaction=data.Reaction * 1e-5)
    scaled = lmer("Reaction ~ Days + (Days | Subject)", moved).conf_int("profile")
    factor = np.array([1e-5, 1.0, 1e-11, 1e-5, 1e-5, 1e-11])
    width = (plain.upper - plain.lower).to_numpy()
    assert np.all(np.abs(scaled.to_numpy() / factor[:, None] - plain.to_numpy()) < 1e-4 * width[:, None])


def test_a_dropped_coefficient_has_no_profile() -> None:
    data = load_dataset("sleepstudy").assign(twice=lambda d: 2 * d.Days)
    with pytest.warns(UserWarning, match="twice"):
        fit = lmer("Reaction ~ Days + twice + (1 | Subject)", data)
    ci = fit.conf_int("profile")
    assert ci.loc["twice"].isna().all()
    assert np.isfinite(ci.drop("twice").to_numpy()).all()


def test_large_crossed_factors_use_their_tail() -> None:
    rng = np.random.default_rng(4)
    n = 3000
    a, b = rng.integers(0, 60, n), rng.integers(0, 40, n)
    y = rng.normal(size=60)[a] + 0.5 * rng.normal(size=40)[b] + rng.normal(size=n)
    ci = lmer("y ~ 1 + (1 | a) + (1 | b)", pd.DataFrame({"y": y, "a": a, "b": b})).conf_int("profile")
    for name, true in {"sd_Intercept|a": 1.0, "sd_Intercept|b": 0.5, "sigma": 1.0, "Intercept": 0.0}.items():
        assert ci.lower[name] - 0.15 < true < ci.upper[name] + 0.15
        assert ci.upper[name] - ci.lower[name] < 0.8


# ---------------------------------------------------------------------------------------------------- the object itself


def test_profile_object() -> None:
    fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
    pr = fit.profile()
    assert [c.name for c in pr] == ["sd_Intercept|Batch", "sigma", "Intercept"]
    assert len(pr) == 3
    frame = pr.to_frame()
    assert list(frame.columns) == ["parameter", "value", "zeta", "deviance"]
    np.testing.assert_allclose(frame.deviance.min(), fit.refit_ml().criterion, atol=1e-8)
    for curve in pr:
        assert (np.diff(curve.zeta) > 0).all()
        for zeta in (-1.0, 0.3, 1.7):
            if curve.zeta[0] < zeta:
                np.testing.assert_allclose(curve.zeta_at(curve.value_at(zeta)), zeta, atol=1e-8)
    assert np.isnan(pr["sigma"].zeta_at(1e6))
    pd.testing.assert_frame_equal(pr.conf_int(), fit.conf_int("profile"), atol=0.05)
    with pytest.raises(KeyError, match="sd_Intercept"):
        pr["Batch"]
    with pytest.raises(ModelError, match="higher level"):
        pr["sigma"].value_at(9.0)
    with pytest.raises(ModelError, match="between 0 and 1"):
        fit.profile(level=95)


def test_a_fit_that_is_no_optimum_is_told() -> None:
    fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"), reml=False)
    theta = fit.core.theta * 1.3
    wrong = replace(fit, core=replace(fit.core, theta=theta, criterion=fit.core.objective()(theta)))
    with pytest.warns(ConvergenceWarning, match="below the fit's"):
        wrong.profile("sigma")


def test_progress_is_shown_on_request(capfd: pytest.CaptureFixture[str]) -> None:
    fit = lmer("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
    fit.profile("sigma")
    assert capfd.readouterr() == ("", "")
    fit.profile("sigma", progress=True)
    assert "profile" in capfd.readouterr().err


def test_golden_files_are_there() -> None:
    assert len(PROFILED) >= 7
    assert json.loads((Path(__file__).parents[1] / "golden" / "pastes_nested.json").read_text())["profile_ci_ml"]


@pytest.mark.parametrize("name", ["Pastes", "sleepstudy"])
def test_profiling_a_fit_plans_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit's own plan serves every path, that of a column turned to the front too."""
    formula = {"Pastes": "strength ~ 1 + (1 | batch/cask)", "sleepstudy": "Reaction ~ Days + (Days | Subject)"}[name]
    result = lmer(formula, load_dataset(name), reml=False)

    def refuse(*args: object) -> None:
        raise AssertionError("a plan was made")

    monkeypatch.setattr(sys.modules["fastlmm_core.core.criterion"], "plan", refuse)
    assert not result.profile(level=0.9).conf_int(0.9).isna().any().any()


@pytest.mark.parametrize("engine", ["dense", "sparse", "cholmod"])
def test_profiles_are_those_of_any_engine(engine: str) -> None:
    """Nested factors, whose model Hessian in a standard deviation is negative a little below its estimate."""
    data = load_dataset("Pastes")
    intervals = [
        lmer("strength ~ 1 + (1 | batch/cask)", data, control=Control(engine=name)).profile(level=0.95).conf_int(0.95)
        for name in ("auto", engine)
    ]
    np.testing.assert_allclose(*(table.to_numpy() for table in intervals), rtol=1e-5, atol=1e-5)
