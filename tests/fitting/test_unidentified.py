"""A variance that the criterion cannot see, from formula to tables."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import IdentifiabilityWarning, LmerResult, lmer, load_dataset


def tanks(seed: int) -> pd.DataFrame:
    """One tank a treatment."""
    rng = np.random.default_rng(seed)
    d = pd.DataFrame({"tank": np.repeat(list("ABCDEF"), 12), "time": np.tile(np.arange(12.0), 6)})
    d["trt"] = "t" + d.tank
    d["y"] = rng.normal(size=6)[pd.factorize(d.tank)[0]] + 0.1 * d.time + rng.normal(size=72)
    return d


def quiet(formula: str, data: Any, **options: Any) -> LmerResult:
    with pytest.warns(IdentifiabilityWarning):
        return lmer(formula, data, **options)


@pytest.mark.parametrize("formula", ["y ~ trt + time + (1 | tank)", "y ~ tank + time + (1 | tank)"])
@pytest.mark.parametrize("seed", range(3))
def test_one_tank_a_treatment(formula: str, seed: int) -> None:
    d = tanks(seed)
    with pytest.warns(IdentifiabilityWarning, match=r"variance of \(1 \| tank\)") as told:
        m = lmer(formula, d)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert m.converged
    assert m.theta.iloc[0] == 0.0
    assert not m.is_singular
    objective = lmer(formula, d, objective_only=True)
    for theta in (0.0, 0.3, 1.0, 30.0):
        assert objective([theta]) == pytest.approx(m.criterion, abs=1e-6)
    plain = np.linalg.lstsq(m.design.X, m.design.y, rcond=None)[0]
    np.testing.assert_allclose(m.params, plain, rtol=1e-8)
    touched = [name for name in m.params.index if name != "time"]
    for ddf in ("satterthwaite", "kenward-roger", "residual", "normal"):
        table = m.coef_table(ddf=ddf)
        assert table.loc[touched, ["std_error", "df", "t", "p"]].isna().all(axis=None)
        assert table.loc["time"].notna().all()
        assert m.t_test("time", ddf=ddf).p.iloc[0] == pytest.approx(table.loc["time", "p"])
        assert np.isnan(m.t_test(touched[1], ddf=ddf).p.iloc[0])
        assert np.isnan(m.f_test([touched[1], "time"], ddf=ddf).p)
    # what the data do determine is what least squares says of it
    r = m.design.y - m.design.X @ plain
    sigma2 = r @ r / (72 - 7)
    se = np.sqrt(sigma2 * np.linalg.inv(m.design.X.T @ m.design.X)[-1, -1])
    assert m.bse["time"] == pytest.approx(se, rel=1e-8)
    assert m.coef_table().loc["time", "df"] == pytest.approx(65.0, rel=1e-6)
    assert m.bse[touched].isna().all()
    assert m.cov_params().loc[touched].isna().all(axis=None)
    interval = m.conf_int(parm="beta_")
    assert interval.loc[touched].isna().all(axis=None)
    assert np.isfinite(interval.loc["time"]).all()
    tidy = m.tidy(conf_int=True).set_index("term")
    assert tidy.loc[touched, "p_value"].isna().all()
    assert np.isfinite(tidy.loc["time", "p_value"])
    tests = m.anova()
    assert np.isnan(tests.p.iloc[0])
    assert np.isfinite(tests.p.loc["time"])
    text = str(m.summary())
    assert "does not depend on the variance of (1 | tank)" in text.replace("\n", " ")
    report = m.convergence_report()
    assert not report.ok
    assert "(1 | tank)" in str(report)
    assert not report.negative


def test_the_same_factor_fixed_and_random_in_sleepstudy() -> None:
    ss = load_dataset("sleepstudy")
    ss["Subject"] = ss.Subject.astype(str)
    ss["f"] = np.tile(list("ab"), 90)
    m = quiet("Reaction ~ Days + C(Subject) + (1 | Subject)", ss)
    assert m.criterion == pytest.approx(1611.300722103386, rel=1e-9)
    m = quiet("Reaction ~ f + (1 | f)", ss)
    assert m.criterion == pytest.approx(1947.7631496921972, rel=1e-9)
    m = quiet("Reaction ~ Days + f + (1 | f) + (1 | Subject)", ss)
    assert m.criterion == pytest.approx(1781.166349, rel=1e-8)  # lme4
    np.testing.assert_allclose(m.params, [250.37005167, 10.38103153, 2.84639625], rtol=1e-6)
    assert m.bse.isna().tolist() == [True, False, True]


def test_slopes_and_nested_terms() -> None:
    rng = np.random.default_rng(4)
    d = tanks(4).assign(site=lambda d: d.tank.map(dict(zip("ABCDEF", "ppqqrr", strict=True))))
    d["y"] += rng.normal(size=6)[pd.factorize(d.tank)[0]] * d.time
    m = quiet("y ~ site + time + (1 | site/tank)", d)
    assert "(1 | site)" in " ".join(m.convergence_report().unidentified)
    assert m.bse.isna().tolist() == [True, True, True, False]
    smaller = lmer("y ~ site + time + (1 | site:tank)", d)
    assert m.criterion == pytest.approx(smaller.criterion, abs=1e-6)
    assert m.bse["time"] == pytest.approx(smaller.bse["time"], rel=1e-6)
    assert m.coef_table().loc["time", "df"] == pytest.approx(smaller.coef_table().loc["time", "df"], rel=1e-4)
    m = quiet("y ~ tank:time + (time | tank)", d)
    assert "time in (1 + time | tank)" in str(m.convergence_report())
    assert m.bse.isna().tolist() == [False] + 6 * [True]
    smaller = lmer("y ~ tank:time + (1 | tank)", d)
    assert m.criterion == pytest.approx(smaller.criterion, abs=1e-6)
    assert m.bse.iloc[0] == pytest.approx(smaller.bse.iloc[0], rel=1e-5)
    m = quiet("y ~ tank + (time | tank)", d)
    assert m.var_corr().to_frame().sdcor.iloc[1] > 0.1


def test_maximum_likelihood_sees_what_lies_in_the_span() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m = lmer("y ~ trt + time + (1 | tank)", tanks(0), reml=False)
    assert m.theta.iloc[0] == 0.0
    assert m.is_singular
    assert m.bse.notna().all()


@pytest.mark.parametrize("reml", [True, False])
def test_terms_that_say_the_same(reml: bool) -> None:
    ss = load_dataset("sleepstudy")
    ss["again"] = pd.Categorical(ss.Subject.astype(str).map(lambda s: "s" + s))
    small = lmer("Reaction ~ Days + (1 | Subject)", ss, reml=reml)
    slopes = lmer("Reaction ~ Days + (Days | Subject)", ss, reml=reml)
    for formula, like, held in (
        ("Reaction ~ Days + (1 | Subject) + (1 | again)", small, [False, True]),
        ("Reaction ~ Days + (1 | again) + (Days | Subject)", slopes, [True, False, False, False]),
        ("Reaction ~ Days + (Days | Subject) + (0 + Days | again)", slopes, [False, False, False, True]),
    ):
        m = quiet(formula, ss, reml=reml)
        assert m.criterion == pytest.approx(like.criterion, abs=1e-6)
        assert (m.theta == 0.0).tolist() == held
        np.testing.assert_allclose(m.bse, like.bse, rtol=1e-5)
        np.testing.assert_allclose(m.coef_table().df, like.coef_table().df, rtol=1e-3)


def test_directions_without_curvature_converge() -> None:
    """An empty cell in a random slope, a duplicated column."""
    rng = np.random.default_rng(1)
    n, g = 240, np.repeat(np.arange(24), 10)
    x, a = rng.normal(size=240), rng.integers(0, 2, 240)
    b = np.where(a == 1, 0, rng.integers(0, 2, n))
    d = pd.DataFrame({"x": x, "g": g})
    d["a"] = pd.Categorical(np.array(["p", "q"])[a])
    d["b"] = pd.Categorical(np.array(["u", "v"])[b])
    d["y"] = x + rng.normal(size=24)[g] * (1 + x) + rng.normal(size=n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = lmer("y ~ a * b + (a * b | g)", d)
        twice = lmer("y ~ x + (x + I(2 * x) | g)", d)
        seen = lmer("y ~ a * b + (a + b | g)", d)
    assert cells.converged
    assert len(cells.fit_log) < 60
    assert cells.criterion == pytest.approx(seen.criterion, abs=1e-5)
    assert twice.converged
    assert len(twice.fit_log) < 40
    once = lmer("y ~ x + (x | g)", d)
    assert twice.criterion == pytest.approx(once.criterion, abs=1e-6)
    np.testing.assert_allclose(twice.bse, once.bse, rtol=1e-5)


def test_tables_have_no_number_for_a_held_variance() -> None:
    d = tanks(0)
    m = quiet("y ~ trt + time + (time | tank)", d)
    vc = m.var_corr()
    assert np.isnan(vc["tank"].to_numpy()).tolist() == [[True, True], [True, False]]
    frame = vc.to_frame()
    assert frame.sdcor.isna().tolist() == [True, False, True, False]
    assert "variance of Intercept in (1 + time | tank)" in frame.attrs["notes"][0]
    assert str(vc).endswith(frame.attrs["notes"][0])
    assert m.tidy("ran_pars").estimate.isna().tolist() == [True, False, True, False]
    assert "NaN" in str(m.summary())
    assert m.conf_int(parm="sd_Intercept|tank").isna().all(axis=None)


def test_effects_of_a_variance_that_is_held_have_no_error() -> None:
    rng = np.random.default_rng(3)
    data = pd.DataFrame(
        {"site": np.repeat(list("abcd"), 30), "g": np.repeat(np.arange(12), 10), "x": rng.normal(size=120)}
    )
    data["y"] = data.x + rng.normal(size=12)[data.g] + rng.normal(size=120)
    with pytest.warns(IdentifiabilityWarning):
        fit = lmer("y ~ site + x + (1 | site) + (1 | g)", data)
    effects = fit.ranef()
    assert (effects[effects.grpvar == "site"].condval == 0.0).all()
    assert effects[effects.grpvar == "site"].condsd.isna().all()
    assert (effects[effects.grpvar == "g"].condsd > 0.0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert fit.influence("g").cov_ratio.isna().all()
