"""Power by simulation against noncentral distributions, and models with given parameters."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import stats

from fastlmm_core import (
    DataError,
    FastLMMWarning,
    FormulaError,
    LmerResult,
    ModelError,
    expand,
    glmer,
    hypothetical,
    lmer,
    load_dataset,
    power,
    power_curve,
)


def design(subjects: int, rows: int, groups: int = 2) -> pd.DataFrame:
    return pd.DataFrame(
        [(f"s{s:02d}", "abcd"[s % groups], t) for s in range(subjects) for t in range(rows)],
        columns=["subject", "group", "time"],
    )


def two_groups(delta: float, subjects: int = 24, rows: int = 4) -> LmerResult:
    return hypothetical(
        "y ~ group + (1 | subject)",
        design(subjects, rows),
        params={"Intercept": 10.0, "group[T.b]": delta},
        sd={"subject": 1.0},
        sigma=1.0,
    )


def slopes(delta: float, subjects: int = 20) -> LmerResult:
    return hypothetical(
        "y ~ group * time + (time | subject)",
        design(subjects, 5),
        params={"Intercept": 10.0, "time": 0.5, "group[T.b]": 1.0, "group[T.b]:time": delta},
        sd={"subject": {"Intercept": 1.0, "time": 0.5}},
        cor={("subject", "Intercept", "time"): 0.3},
    )


def exact(ncp: float, df: float) -> float:
    c = stats.t.ppf(0.975, df)
    return float(stats.nct.sf(c, df, ncp) + stats.nct.cdf(-c, df, ncp))


@pytest.mark.parametrize("delta", [0.0, 1.2])
@pytest.mark.parametrize("ddf", ["satterthwaite", "fixed"])
def test_t_test_of_a_balanced_design(delta: float, ddf: str) -> None:
    n = 4000
    truth = exact(delta / np.sqrt(2 * (1 + 1 / 4) / 12), 22)
    found = power(two_groups(delta), "group[T.b]", n=n, seed=1, ddf=ddf).table().iloc[0]
    assert abs(found["power"] - truth) < 3 * np.sqrt(truth * (1 - truth) / n)
    assert found["lower"] < truth < found["upper"]
    assert abs(found["bias"]) < 4 * np.sqrt(2 * 1.25 / 12 / n)
    if delta:
        assert found["type_s"] == 0.0
        assert found["type_m"] > 1.0


def test_slopes_and_f_test() -> None:
    n = 3000
    truth = exact(0.6 / np.sqrt(2 * (0.25 + 1 / 10) / 10), 18)
    found = power(slopes(0.6), ["group[T.b]:time", "group:time", "group[T.b]:time = 0"], n=n, seed=1)
    table = found.table()
    assert abs(table["power"].iloc[0] - truth) < 3 * np.sqrt(truth * (1 - truth) / n)
    assert table["power"].nunique() == 1  # the same test three times
    assert 0.0 < found.share_singular < 0.3
    assert "singular fits" in repr(found)
    assert (found.table(alpha=0.001)["power"] < table["power"]).all()


def test_several_rows_at_once() -> None:
    model = hypothetical(
        "y ~ group + (1 | subject)",
        design(32, 3, groups=4),
        params={"group[T.b]": 0.5, "group[T.c]": 1.0, "group[T.d]": 1.2},
        sd={"subject": 0.8},
    )
    means = np.array([0.0, 0.5, 1.0, 1.2])
    noncentral = 8 * np.sum((means - means.mean()) ** 2) / (0.64 + 1 / 3)
    truth = float(stats.ncf.sf(stats.f.ppf(0.95, 3, 28), 3, 28, noncentral))
    pairs = model.emmeans("group").pairs()
    found = power(model, ["group", pairs, "y ~ 1 + (1 | subject)"], n=2000, seed=3).table()
    assert abs(found.loc["group", "power"] - truth) < 3.5 * np.sqrt(truth * (1 - truth) / 2000)
    assert found.loc["any of 6", "power"] >= found.loc["a - d", "power"] >= found.loc["all of 6", "power"]
    assert found.loc["a - d", "truth"] == pytest.approx(-1.2)
    assert found.loc["y ~ 1 + (1 | subject)", "power"] > found.loc["group", "power"]  # too liberal in small samples


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_p_values_are_those_of_refits(ddf: str) -> None:
    model = slopes(0.6, 8)
    estimates = model.emtrends("time", "group").pairs()
    tests = ["group[T.b]:time", "group[T.b] = 0, group[T.b]:time = 0.5", estimates]
    found = power(model, tests, n=6, seed=5, ddf=ddf)
    for k, y in enumerate(model.simulate(6, seed=5).to_numpy().T):
        fit = model.refit(y)
        expected = [
            fit.coef_table(ddf)["p"]["group[T.b]:time"],
            fit.f_test("group[T.b] = 0, group[T.b]:time = 0.5", ddf=ddf).p,
            fit.emtrends("time", "group", ddf=ddf).pairs().to_frame()["p"].iloc[0],
        ]
        np.testing.assert_allclose(found.p.iloc[k], expected, rtol=1e-3, atol=1e-6)


def test_normal_quantiles_reject_too_often() -> None:
    p = power(two_groups(0.0, 12), "group[T.b]", n=2000, seed=1, ddf="normal").table()["power"].iloc[0]
    assert p > 0.06


def test_draws_do_not_depend_on_their_number() -> None:
    model = two_groups(0.5, 10)
    few, many = (power(model, "group", n=n, seed=2).p for n in (40, 90))
    np.testing.assert_allclose(few, many.iloc[:40], rtol=1e-6)


def test_fit_with_changed_coefficients(slopes: LmerResult) -> None:
    with pytest.warns(FastLMMWarning, match="taken for the truth"):
        power(slopes, "Days", n=20, seed=1)
    found = power(slopes, "Days", n=200, seed=1, params={"Days": 0.0}).table()
    assert found["power"].iloc[0] < 0.12
    assert found["truth"].iloc[0] == 0.0


def test_tests_that_cannot_be_done_fail_before_drawing() -> None:
    model = two_groups(1.0)
    with pytest.raises(FormulaError, match="no coefficient"):
        power(model, "grp", n=10**9)
    with pytest.raises(ModelError, match="not nested"):
        power(model, "y ~ time + (1 | subject)", n=10**9)
    with pytest.raises(DataError, match="params names"):
        power(model, "group", params={"grp": 1.0})
    with pytest.raises(DataError, match="one name"):
        power(model, ["group", "group"], n=10**9)
    with pytest.raises(ModelError, match="at least 1"):
        power(model, "group", n=0)
    with pytest.raises(ModelError, match="tests is empty"):
        power(model, [], n=5)


def test_parameters_are_as_given() -> None:
    model = slopes(0.6)
    assert "parameters as given" in repr(model)
    np.testing.assert_allclose(model.params, [10.0, 1.0, 0.5, 0.6])
    table = model.var_corr().to_frame()
    np.testing.assert_allclose(table["sdcor"], [1.0, 0.5, 0.3, 1.0])
    assert model.coef_table("kenward-roger")["df"].iloc[3] == pytest.approx(18.0)
    covariance = 2 * (0.25 + 1 / 10) / 10
    assert model.bse["group[T.b]:time"] == pytest.approx(np.sqrt(covariance))
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(again.params, model.params)


def test_a_variance_of_zero_and_a_correlation_of_one() -> None:
    data = design(10, 4)
    zero = hypothetical("y ~ time + (1 | subject)", data, params={}, sd={"subject": 0.0}, sigma=2.0)
    assert zero.is_singular
    assert zero.sigma == pytest.approx(2.0)
    one = hypothetical(
        "y ~ time + (time | subject)",
        data,
        params={},
        sd={"subject": {"Intercept": 1.0, "time": 0.5}},
        cor={("subject", "Intercept", "time"): 1.0},
    )
    np.testing.assert_allclose(one.theta, [1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"params": {"grp": 1.0}}, "params names 'grp'"),
        ({"sd": {}}, "nothing for subject"),
        ({"sd": {"item": 1.0, "subject": 1.0}}, "sd names 'item'"),
        ({"sd": {"subject": {"time": 1.0}}}, "whose effects are Intercept"),
        ({"sd": {"subject": -1.0}}, "0 or more"),
        ({"sigma": 0.0}, "sigma"),
        ({"cor": {("subject", "a", "b"): 0.5}}, "not two effects"),
    ],
)
def test_parameters_that_do_not_fit(changes: dict[str, object], words: str) -> None:
    arguments: dict[str, object] = {"params": {}, "sd": {"subject": 1.0}}
    with pytest.raises(DataError, match=words):
        hypothetical("y ~ group + (1 | subject)", design(6, 2), **(arguments | changes))  # type: ignore[arg-type]


def test_curve() -> None:
    model = two_groups(0.8, 10)
    curve = power_curve(model, "group", along={"subject": [10, 30, 60]}, n=300, seed=1)
    assert curve["power"].is_monotonic_increasing
    truth = exact(0.8 / np.sqrt(2 * (1 + 1 / 4) / 30), 58)
    assert abs(curve["power"].iloc[2] - truth) < 0.1
    rows = power_curve(model, lambda m: m.emmeans("group").pairs(), within={"subject": [2, 8]}, n=300, seed=1)
    assert rows["subject"].tolist() == [2, 8]
    with pytest.raises(ModelError, match="either along"):
        power_curve(model, "group")


def test_curve_of_a_fit(sleepstudy: pd.DataFrame) -> None:
    fit = lmer("Reaction ~ Days + (Days | Subject)", sleepstudy)
    curve = power_curve(fit, "Days", along={"Subject": [6, 12]}, n=50, seed=1, params={"Days": 4.0})
    assert curve["power"].between(0.1, 0.9).all()


def test_curve_of_a_model_with_a_coding_of_its_own() -> None:
    table = design(8, 3)
    coded = {"contrasts": {"group": "sum"}}
    known = hypothetical("y ~ group + (1 | subject)", table, params={"group[S.a]": 0.5}, sd={"subject": 1.0}, **coded)
    drawn = table.assign(y=known.design.y)
    for model in (known, lmer("y ~ group + (1 | subject)", drawn, **coded)):
        curve = power_curve(model, "group[S.a]", along={"subject": [8, 10]}, n=2, seed=1)
        assert curve["subject"].tolist() == [8, 10]


def test_more_levels_keep_the_proportions_of_groups() -> None:
    sorted_groups = design(6, 3).sort_values(["group", "subject", "time"])
    for number in (4, 6, 13):
        larger = expand(sorted_groups, {"subject": number})
        counts = larger.groupby("group")["subject"].nunique()
        assert larger["subject"].nunique() == number
        assert abs(counts["a"] - counts["b"]) <= 1
        assert (larger.groupby("subject").size() == 3).all()


def test_nested_levels_are_copied_under_new_names() -> None:
    data = pd.DataFrame({"batch": ["A", "A", "B", "B"], "sample": ["A1", "A2", "B1", "B2"], "x": [0.1, 0.2, 0.3, 0.4]})
    larger = expand(data, {"batch": 5})
    assert larger["sample"].nunique() == 10
    assert (larger.groupby("sample")["batch"].nunique() == 1).all()
    assert len(expand(pl.DataFrame(data.to_dict("list")), within={"batch": 5})) == 10
    with pytest.raises(DataError, match="no column 'batches'"):
        expand(data, {"batches": 3})
    with pytest.raises(DataError, match="whole number"):
        expand(data, {"batch": 0})


def test_generalised_fits_have_power_draw_by_draw() -> None:
    data = load_dataset("cbpp")
    fit = glmer("cbind(incidence, size - incidence) ~ period + (1 | herd)", data, "binomial")
    pairs, smaller = fit.emmeans("period").pairs(), "y ~ 1 + (1 | herd)"
    truth = {"period[T.2]": -0.6}
    found = power(fit, ["period[T.2]", "period", pairs, smaller], n=5, seed=3, params=truth)
    beta = fit.params.to_numpy().copy()
    beta[1] = -0.6
    null = glmer("cbind(incidence, size - incidence) ~ 1 + (1 | herd)", data, "binomial")
    for k, (_, y) in enumerate(fit.simulate(5, seed=3, params={"beta": beta}).items()):
        again = fit.refit(y)
        want = [again.coef_table()["p"].iloc[1], again.f_test(np.eye(4)[1:]).p]
        np.testing.assert_allclose(found.p.iloc[k, :2], want, rtol=1e-6)
        of_pairs = again.emmeans("period").pairs().to_frame()["p"]
        np.testing.assert_allclose(found.p.iloc[k, 2:8], of_pairs, rtol=1e-6, atol=1e-12)
        ratio = null.refit(y).criterion - again.criterion
        np.testing.assert_allclose(found.p[smaller].iloc[k], stats.chi2.sf(ratio, 3), rtol=1e-5)
    assert found.table().loc["period[T.2]", "truth"] == -0.6
    with pytest.raises(ModelError, match="ddf='normal'"):
        power(fit, "period", ddf="satterthwaite", params=truth)
    with pytest.raises(ModelError, match="linear models"):
        power_curve(fit, "period", along={"herd": [20]})


def test_an_ordinal_fit_has_power_against_a_smaller_formula() -> None:
    """The smaller model's intercept, which thresholds take the place of, was missed among the columns."""
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"g": np.repeat(np.arange(10), 8), "x": rng.normal(size=80), "y": rng.integers(0, 3, 80)})
    fit = glmer("y ~ x + (1 | g)", data, "ordinal")
    found = power(fit, ["x", "~ 1 + (1 | g)"], n=2, seed=1, params={"x": 0.5})
    null = glmer("y ~ 1 + (1 | g)", data, "ordinal")
    drawn = fit.simulate(2, seed=1, params={"beta": [0.5]})
    for p, (_, y) in zip(found.p["~ 1 + (1 | g)"], drawn.items(), strict=True):
        ratio = null.refit(y).criterion - fit.refit(y).criterion
        np.testing.assert_allclose(p, stats.chi2.sf(max(0.0, ratio), 1), rtol=1e-4)


def test_a_smaller_formula_is_asked_of_the_rows_of_the_larger(sleepstudy: pd.DataFrame) -> None:
    """Rows that only the larger fit left out, by its subset or its weights, made other models of the two."""
    some = sleepstudy[sleepstudy["Days"] > 2]
    options = {"n": 2, "seed": 1, "params": {"Days": 5.0}}
    large, small = "Reaction ~ Days + (1 | Subject)", "~ 1 + (1 | Subject)"
    want = power(lmer(large, some), f"Reaction {small}", **options).p[f"Reaction {small}"]  # type: ignore[arg-type]
    weights = np.where(sleepstudy["Days"] > 2, 1.0, 0.0)
    for fit in (lmer(large, sleepstudy, subset="Days > 2"), lmer(large, sleepstudy, weights=weights)):
        np.testing.assert_allclose(power(fit, small, **options).p[small], want, rtol=1e-6)  # type: ignore[arg-type]
    holes = sleepstudy.assign(hole=np.where(sleepstudy["Days"] == 5, np.nan, 1.0))
    with pytest.raises(DataError, match="missing"):
        power(lmer(large, holes), "~ hole + (1 | Subject)", **options)  # type: ignore[arg-type]
