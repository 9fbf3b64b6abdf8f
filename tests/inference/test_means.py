"""Marginal means, slopes and contrasts: R's figures, and what must hold for any data."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlmm_core import DataError, FormulaError, LmerResult, ModelError, glmer, lmer, load_dataset

GOLDEN = {r["id"]: r for r in json.loads((Path(__file__).parents[1] / "golden" / "after" / "means.json").read_text())}
R_NAMES = {"trt.vs.ctrl": "trt_vs_ctrl", "trt.vs.ctrlk": "trt_vs_ctrl", "trt.vs.ctrl1": "trt_vs_ctrl"}


def listed(x: Any) -> list[Any]:
    return [] if x in (None, {}) else x if isinstance(x, list) else [x]


def golden_fit(record: dict[str, Any]) -> LmerResult:
    data = pd.DataFrame(record["data"])
    for name, column in record["columns"].items():
        if column["type"] == "factor":
            data[name] = pd.Categorical(data[name], categories=column["levels"], ordered=column["ordered"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        return lmer(record["formula"], data, reml=record["reml"], weights=record["weights"])


def numbers(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([np.nan if row.get(name) in (None, "NA") else float(row[name]) for row in rows])


def compare(found: pd.DataFrame, rows: list[dict[str, Any]], adjust: str, accurate: dict[str, Any] | None) -> None:
    found = found.rename(columns={"ratio": "estimate"})
    se = np.nanmax(numbers(rows, "std_error"))
    np.testing.assert_allclose(found["estimate"], numbers(rows, "estimate"), rtol=1e-5, atol=1e-5 * se)
    np.testing.assert_allclose(found["std_error"], numbers(rows, "std_error"), rtol=2e-5)
    np.testing.assert_allclose(found["df"], numbers(rows, "df"), rtol=3e-3, atol=0.02)
    np.testing.assert_allclose(found["t"], numbers(rows, "t"), rtol=1e-4, atol=1e-4)
    if accurate is not None:  # emmeans truncates the degrees of freedom
        truncated = np.abs(1 / numbers(rows, "df") - 1 / np.array(accurate["df_used"]))
        assert (np.abs(found["p"] - np.array(accurate["p"])) < 5e-4 + truncated).all()
        return
    np.testing.assert_allclose(found["p"], numbers(rows, "p"), rtol=3e-3, atol=3e-6)
    if adjust != "BH" and np.isfinite(numbers(rows, "lower")).any():
        np.testing.assert_allclose(found["lower"], numbers(rows, "lower"), atol=2e-3 * se)
        np.testing.assert_allclose(found["upper"], numbers(rows, "upper"), atol=2e-3 * se)


@pytest.mark.parametrize("name", list(GOLDEN))
def test_figures_are_emmeans(name: str) -> None:
    record = GOLDEN[name]
    fit = golden_fit(record)
    for q in record["queries"]:
        specs = "1" if listed(q["specs"]) in ([], ["1"]) else listed(q["specs"])
        arguments: dict[str, Any] = {
            "by": listed(q["by"]) or None,
            "at": {k: listed(v) for k, v in (q["at"] or {}).items()} or None,
            "weights": q["weights"],
            "ddf": q["ddf"],
        }
        if q["kind"] == "slopes":
            estimates = fit.emtrends(q["variable"], specs, **arguments)
        elif q["bias_adjust"]:
            means = fit.emmeans(specs, **arguments)
            estimates = means.transform("response", bias_adjust=True, sigma=q["sigma_total"])
        else:
            estimates = fit.emmeans(specs, scale=q["scale"], **arguments)
        compare(estimates.to_frame(), q["rows"], "none", None)
        for c in q["contrasts"]:
            chosen: dict[str, Any] = {"adjust": c["adjust"], "by": listed(c["by"])}
            if c["interaction"]:
                chosen["interaction"] = [R_NAMES.get(m, m) for m in listed(c["interaction"])]
            else:
                method = c["method"]
                chosen["method"] = method if isinstance(method, dict) else R_NAMES.get(method, method)
                if chosen["method"] == "trt_vs_ctrl":
                    chosen["ref"] = -1 if method == "trt.vs.ctrlk" else (c["ref"] or 1) - 1
            found = estimates.contrast(**chosen)
            compare(found.to_frame(), c["rows"], c["adjust"], c.get("mvt_accurate"))
            if "contrast" in c["rows"][0]:
                assert found.labels["contrast"].tolist() == [row["contrast"] for row in c["rows"]]


@pytest.fixture(scope="module")
def cake() -> pd.DataFrame:
    return load_dataset("cake")


@pytest.fixture(scope="module")
def cakes(cake: pd.DataFrame) -> LmerResult:
    return lmer("angle ~ recipe * temperature + (1 | recipe:replicate)", cake)


def test_balanced_means_are_cell_means(cake: pd.DataFrame, cakes: LmerResult) -> None:
    frame = cakes.emmeans(["recipe", "temperature"]).to_frame()
    cells = cake.groupby(["temperature", "recipe"], observed=True)["angle"].mean()
    np.testing.assert_allclose(frame["estimate"], cells.to_numpy(), rtol=1e-9)


def unbalanced(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    n = 90
    data = pd.DataFrame(
        {
            "a": rng.choice(list("uvw"), n, p=[0.5, 0.3, 0.2]),
            "b": rng.choice(["k", "l"], n),
            "x": rng.normal(3.0, 2.0, n),
            "g": rng.integers(0, 12, n),
        }
    )
    return data.assign(y=rng.normal(size=n) + 0.3 * data.x + rng.normal(size=12)[data.g])


@given(
    seed=st.integers(0, 5),
    coding=st.sampled_from(["sum", "helmert", "poly", "SAS"]),
    scale=st.floats(0.01, 100.0),
    order=st.permutations(["u", "v", "w"]),
)
@settings(max_examples=12)
def test_coding_order_and_units_do_not_matter(seed: int, coding: str, scale: float, order: list[str]) -> None:
    data = unbalanced(seed)
    formula = "y ~ a * b + x + (1 | g)"
    one = lmer(formula, data).emmeans("a", by="b").to_frame()
    other_data = data.assign(a=pd.Categorical(data.a, categories=order), x=scale * data.x + 7.0)
    other = lmer(formula, other_data, contrasts={"a": coding}).emmeans("a", by="b").to_frame()
    keys = ["b", "a"]
    one, other = (f.assign(a=f.a.astype(str)).sort_values(keys) for f in (one, other))
    for name in ("estimate", "std_error", "lower", "upper"):
        np.testing.assert_allclose(other[name], one[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other["df"], one["df"], rtol=1e-3)


def test_pairs_within_groups_are_some_of_all_pairs(cakes: LmerResult) -> None:
    within = cakes.emmeans("recipe", by="temperature").pairs(adjust="none").to_frame()
    every = cakes.emmeans(["recipe", "temperature"]).contrast("pairwise", adjust="none").to_frame()
    first = within.iloc[0]
    same = every[every["contrast"] == "A temperature175 - B temperature175"].iloc[0]
    for name in ("estimate", "std_error", "df", "t", "p"):
        assert first[name] == pytest.approx(same[name], rel=1e-9)


def test_tukey_is_the_largest_t_of_a_balanced_design(cake: pd.DataFrame) -> None:
    means = lmer("angle ~ recipe + temperature + (1 | recipe:replicate)", cake).emmeans("temperature")
    tukey, largest = means.pairs().to_frame(), means.pairs(adjust="mvt").to_frame()
    np.testing.assert_allclose(largest["p"], tukey["p"], atol=4e-4)
    np.testing.assert_allclose(largest["lower"], tukey["lower"], atol=4e-3 * tukey["std_error"].max())


def test_means_at_values_are_predictions() -> None:
    fit = lmer("y ~ a * b + poly(x, 2) + (1 | g)", unbalanced())
    at = {"a": ["w"], "b": "k", "x": [1.0, 2.5]}
    frame = fit.emmeans(["a", "b", "x"], at=at).to_frame()
    expected = fit.predict(frame[["a", "b", "x"]].astype({"a": str, "b": str}), re_form="none")
    np.testing.assert_allclose(frame["estimate"], expected)


def test_effects_sum_to_zero(cakes: LmerResult) -> None:
    effects = cakes.emmeans("temperature").contrast("eff")
    assert abs(effects.estimate.sum()) < 1e-9
    assert effects.adjust == "none"


def test_average_over_the_rows_is_that_of_predictions() -> None:
    data = unbalanced()
    fit = lmer("y ~ a * b + log(abs(x) + 1) + (1 | g)", data)
    frame = fit.emmeans("a", over="data").to_frame()
    expected = [fit.predict(data.assign(a=level), re_form="none").mean() for level in "uvw"]
    np.testing.assert_allclose(frame["estimate"], expected)
    slope = fit.emtrends("x", over="data", data=data).to_frame()["estimate"].iloc[0]
    h = 1e-5
    up, down = (fit.predict(data.assign(x=data.x + s), re_form="none").mean() for s in (h, -h))
    assert slope == pytest.approx((up - down) / (2 * h), rel=1e-5)


def test_missing_responses_do_not_move_the_covariate() -> None:
    data = unbalanced()
    data.loc[data.x > 4.0, "y"] = np.nan
    fit = lmer("y ~ a + x + (1 | g)", data)
    whole = data.dropna()
    at_mean = fit.emmeans("a", at={"x": whole.x.mean()}).to_frame()["estimate"]
    np.testing.assert_allclose(fit.emmeans("a").to_frame()["estimate"], at_mean)
    at_median = fit.emmeans("a", at={"x": whole.x.median()}).to_frame()["estimate"]
    np.testing.assert_allclose(fit.emmeans("a", cov_reduce="median").to_frame()["estimate"], at_median)
    reduced = fit.emmeans("a", cov_reduce=np.median, data=data).to_frame()["estimate"]
    np.testing.assert_allclose(reduced, at_median)


def test_table_changed_after_the_fit_does_not_matter() -> None:
    data = unbalanced()
    fit = lmer("y ~ a + x + (1 | g)", data)
    expected = lmer("y ~ a + x + (1 | g)", data.copy()).emmeans("a").to_frame()
    data["x"] *= 2.0
    data.loc[:, "a"] = "u"
    pd.testing.assert_frame_equal(fit.emmeans("a").to_frame(), expected)
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(fit)).emmeans("a").to_frame(), expected)
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(fit.emmeans("a"))).to_frame(), expected)


def test_slope_of_a_logarithm_by_the_chain_rule() -> None:
    data = unbalanced().assign(x=lambda d: np.exp(d.x / 4))
    fit = lmer("y ~ log(x) + (1 | g)", data)
    assert fit.emtrends("log(x)").estimate[0] == pytest.approx(fit.params["log(x)"], rel=1e-8)
    assert fit.emtrends("x", at={"x": 2.0}).estimate[0] == pytest.approx(fit.params["log(x)"] / 2.0, rel=1e-8)


def test_logarithms_become_ratios() -> None:
    data = unbalanced().assign(y=lambda d: np.exp(d.y))
    fit = lmer("log(y) ~ a + (1 | g)", data)
    link = fit.emmeans("a").pairs().to_frame()
    ratios = fit.emmeans("a", scale="response").pairs().to_frame()
    np.testing.assert_allclose(ratios["ratio"], np.exp(link["estimate"]))
    np.testing.assert_allclose(ratios["upper"], np.exp(link["upper"]))
    np.testing.assert_allclose(ratios["p"], link["p"])
    assert ratios["contrast"].tolist() == ["u / v", "u / w", "v / w"]
    differences = fit.emmeans("a", scale="response").regrid().pairs().to_frame()
    means = fit.emmeans("a", scale="response").to_frame()["estimate"]
    assert differences["estimate"].iloc[0] == pytest.approx(means[0] - means[1])


def test_mean_of_the_response_itself() -> None:
    """The lognormal mean: exp(eta + s^2 / 2), to second order."""
    fit = lmer("log(y) ~ a + (1 | g)", unbalanced().assign(y=lambda d: np.exp(0.05 * d.y)))
    total = np.sqrt(fit.sigma**2 + float(fit.core.L[0][0, 0] * fit.sigma) ** 2)
    eta = fit.emmeans("a").estimate
    adjusted = fit.emmeans("a", bias_adjust=True).to_frame()["estimate"]
    np.testing.assert_allclose(adjusted, np.exp(eta) * (1 + total**2 / 2), rtol=1e-9)


@pytest.mark.parametrize(("response", "inverse"), [("sqrt(y)", np.square), ("log(y + 1)", lambda e: np.exp(e) - 1)])
def test_other_transformations(response: str, inverse: Any) -> None:
    fit = lmer(f"{response} ~ a + (1 | g)", unbalanced().assign(y=lambda d: np.exp(d.y)))
    means = fit.emmeans("a", scale="response")
    np.testing.assert_allclose(means.to_frame()["estimate"], inverse(fit.emmeans("a").estimate))
    pairs = means.pairs()
    link = fit.emmeans("a").pairs().estimate
    if response == "sqrt(y)":
        np.testing.assert_allclose(pairs.to_frame()["estimate"], link)
        assert any("stay on the" in note for note in pairs.all_notes())
    else:  # of y + 1, as emmeans has it
        np.testing.assert_allclose(pairs.to_frame()["ratio"], np.exp(link))


def test_sides(cakes: LmerResult) -> None:
    pairs = cakes.emmeans("recipe").pairs(adjust="none")
    greater, less = (pairs.test(side=side).to_frame() for side in ("greater", "less"))
    np.testing.assert_allclose(greater["p"] + less["p"], 1.0)
    assert np.isinf(greater["upper"]).all()
    assert np.isinf(less["lower"]).all()
    inside = pairs.test(side="equivalence", delta=5.0).to_frame()
    above = pairs.test(side="noninferiority", delta=5.0).to_frame()
    below = pairs.test(side="nonsuperiority", delta=5.0).to_frame()
    np.testing.assert_allclose(inside["p"], np.maximum(above["p"], below["p"]))
    shifted = pairs.test(null=pairs.estimate).to_frame()
    np.testing.assert_allclose(shifted["p"], 1.0)


def test_joint_test_of_all_contrasts_is_the_analysis_of_variance(cakes: LmerResult) -> None:
    table = cakes.joint_tests().set_index("term")
    anova = cakes.anova()
    for name in ("recipe", "temperature", "recipe:temperature"):
        assert table.loc[name, "F"] == pytest.approx(anova.loc[name, "F"], rel=1e-6)
        assert table.loc[name, "den_df"] == pytest.approx(anova.loc[name, "den_df"], rel=1e-4)
    slopes = lmer("y ~ a * x + (1 | g)", unbalanced()).joint_tests(by="a")
    assert slopes["term"].tolist() == ["x"] * 3


def test_letters(cakes: LmerResult) -> None:
    frame = cakes.emmeans("temperature").letters()
    p = cakes.emmeans("temperature").pairs().to_frame().set_index("contrast")["p"]
    mark = dict(zip(frame["temperature"].astype(str), frame["group"], strict=True))
    for contrast, value in p.items():
        one, two = (part.removeprefix("temperature") for part in str(contrast).split(" - "))
        assert bool(set(mark[one]) & set(mark[two])) == (value >= 0.05)
    assert any("no evidence of equality" in note for note in frame.attrs["notes"])


def test_simple_contrasts(cakes: LmerResult) -> None:
    means = cakes.emmeans(["recipe", "temperature"])
    each = means.contrast("pairwise", simple="each")
    assert [len(e) for e in each] == [18, 45]
    pd.testing.assert_frame_equal(each[0].to_frame(), cakes.emmeans("recipe", by="temperature").pairs().to_frame())


def test_formula_text(cakes: LmerResult) -> None:
    pairs = cakes.emmeans("pairwise ~ recipe | temperature")
    pd.testing.assert_frame_equal(pairs.to_frame(), cakes.emmeans("recipe", by="temperature").pairs().to_frame())


def test_offsets_sit_at_their_mean() -> None:
    data = unbalanced().assign(base=lambda d: np.abs(d.x))
    by_name = lmer("y ~ a + offset(base) + (1 | g)", data).emmeans("a").estimate
    by_array = lmer("y ~ a + (1 | g)", data, offset=data.base.to_numpy()).emmeans("a").estimate
    np.testing.assert_allclose(by_array, by_name)
    fit = lmer("y ~ a + offset(np.log(base)) + (1 | g)", data)  # the mean of the logarithms, as emmeans has it
    by_array = lmer("y ~ a + (1 | g)", data, offset=np.log(data.base)).emmeans("a").estimate
    np.testing.assert_allclose(fit.emmeans("a").estimate, by_array)
    plain = fit.fixef.to_numpy() @ [[1, 1, 1], [0, 1, 0], [0, 0, 1]]
    np.testing.assert_allclose(fit.emmeans("a", at={"base": 2.0}).estimate, plain + np.log(2.0))
    np.testing.assert_allclose(fit.emmeans("a", offset=0).estimate, plain)
    with pytest.raises(DataError, match="one finite number"):
        fit.emmeans("a", offset="base")  # type: ignore[arg-type]


def test_numbers_as_a_factor() -> None:
    data = unbalanced().assign(dose=lambda d: d.g % 3)
    fit = lmer("y ~ C(dose) + (1 | g)", data)
    frame = fit.emmeans("dose").to_frame()
    assert frame["dose"].astype(int).tolist() == [0, 1, 2]
    assert fit.emmeans("dose").pairs().labels["contrast"].iloc[0] == "dose0 - dose1"
    assert fit.emmeans("dose", at={"dose": [2, 0]}).to_frame()["dose"].astype(int).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("specs", "arguments", "error", "words"),
    [
        ("aa", {}, DataError, "did you mean 'a'"),
        ("g", {}, DataError, "grouping factor"),
        ("y", {}, DataError, "the response"),
        ("a", {"at": {"a": "z"}}, DataError, "whose levels are u, v, w"),
        ("a", {"at": {"x": "high"}}, DataError, "numeric"),
        ("a", {"at": {"z": 1}}, DataError, "no 'z'"),
        ("a", {"weights": "equally"}, ModelError, "proportional"),
        ("a", {"level": 95}, ModelError, "between 0 and 1"),
        ("a", {"over": "rows"}, ModelError, "grid"),
        ("a", {"scale": "log"}, ModelError, "response"),
        ("a", {"cov_reduce": np.mean}, DataError, "pass data="),
        ("a", {"cov_reduce": lambda x: x, "data": unbalanced()}, DataError, "one finite number"),
    ],
)
def test_errors_say_what_to_do(specs: str, arguments: dict[str, Any], error: type, words: str) -> None:
    fit = lmer("y ~ a + b + x + (1 | g)", unbalanced())
    with pytest.raises(error, match=words):
        fit.emmeans(specs, **arguments)


def test_errors_of_slopes_and_contrasts(cakes: LmerResult) -> None:
    fit = lmer("y ~ a * x + (1 | g)", unbalanced())
    with pytest.raises(DataError, match="is a factor"):
        fit.emtrends("a")
    with pytest.raises(FormulaError, match="one covariate"):
        fit.emtrends("x * a")
    with pytest.raises(ModelError, match="do not exist"):
        fit.emmeans("a").contrast("everything")
    with pytest.raises(DataError, match="2 coefficients"):
        fit.emmeans("a").contrast({"d": [1, -1]})
    with pytest.raises(DataError, match="none of the levels"):
        fit.emmeans("a").contrast("trt_vs_ctrl", ref="q")
    with pytest.raises(ModelError, match="adjust"):
        fit.emmeans("a").pairs(adjust="tuckey")
    for alpha in (0.0, 2.0):
        with pytest.raises(ModelError, match="alpha must lie between 0 and 1"):
            fit.emmeans("a").letters(alpha=alpha)
    with pytest.raises(DataError, match="alpha must be a number, not 'a'"):
        fit.emmeans("a").letters(alpha="a")
    with pytest.raises(DataError, match="variable must be a text"):
        fit.emtrends(None)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no one slope"):
        lmer("log(y) ~ x + (1 | g)", unbalanced().assign(y=lambda d: np.exp(d.y))).emtrends("x").transform("response")


def test_large_grid_is_refused() -> None:
    fit = lmer("y ~ a + x + (1 | g)", unbalanced())
    with pytest.raises(ModelError, match="reference grid has 150,000 rows"):
        fit.emmeans("a", at={"x": np.arange(50_000)})


def test_printed_page() -> None:
    page = str(golden_means("oats_empty", "V", by="N"))
    assert "nonEst" in page
    assert "rows are not estimable" in page
    assert "N = 0.0cwt:" in page
    html = golden_means("oats_empty", "V", by="N")._repr_html_()
    assert html.count("<table>") == 4


def golden_means(name: str, specs: str, **arguments: Any) -> Any:
    return golden_fit(GOLDEN[name]).emmeans(specs, **arguments)


def test_drawings(cakes: LmerResult) -> None:
    mpl.use("Agg")
    means = cakes.emmeans(["temperature", "recipe"])
    assert len(means.plot("line").get_lines()) >= 3
    assert len(means.pairs().plot().get_yticklabels()) == 153
    with pytest.raises(ModelError, match="kind"):
        means.plot("bars")


def test_models_with_a_residual_structure() -> None:
    data = load_dataset("sleepstudy")
    one = lmer("Reaction ~ C(Days) + (1 | Subject)", data).emmeans("Days").pairs()
    other = lmer("Reaction ~ C(Days)", data, residual="cs(Days | Subject)").emmeans("Days").pairs()
    for name in ("estimate", "std_error", "df", "p"):
        np.testing.assert_allclose(other.to_frame()[name], one.to_frame()[name], rtol=1e-3, atol=1e-6)


def binary() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    n = 400
    data = pd.DataFrame({"a": rng.choice(list("uvw"), n), "x": rng.normal(size=n), "g": rng.integers(0, 25, n)})
    eta = 0.5 * (data.a == "v") - 0.4 * data.x + 0.7 * rng.normal(size=25)[data.g]
    return data.assign(y=(rng.uniform(size=n) < 1 / (1 + np.exp(-eta))).astype(int), k=rng.poisson(np.exp(0.5 * eta)))


def test_generalised_models() -> None:
    data = binary()
    fit = glmer("y ~ a * x + (1 | g)", data, "binomial")
    means = fit.emmeans("a", at={"x": 1.0})
    columns = pd.DataFrame({"a": list("uvw"), "x": 1.0})
    L = fit.design.rebuild(columns, random=False).X
    assert L is not None
    np.testing.assert_allclose(means.estimate, L @ fit.core.beta)
    np.testing.assert_allclose(means.std_error, np.sqrt(np.diag(L @ fit.core.cov_beta @ L.T)))
    assert np.isinf(means.df).all()
    probabilities = means.transform("response").to_frame()
    np.testing.assert_allclose(probabilities["estimate"], 1 / (1 + np.exp(-means.estimate)))
    ratios = means.transform("response").contrast("pairwise").to_frame()
    np.testing.assert_allclose(ratios["odds_ratio"], np.exp(means.pairs().estimate))
    differences = means.regrid().pairs().to_frame()["estimate"]
    assert differences.iloc[0] == pytest.approx(probabilities["estimate"][0] - probabilities["estimate"][1])
    with pytest.raises(ModelError, match="normal"):
        fit.emmeans("a", ddf="satterthwaite")
    rates = glmer("k ~ a + (1 | g)", data, "poisson").emmeans("a", scale="response").pairs()
    assert "ratio" in rates.to_frame()
    over = fit.emmeans("a", over="data", data=data).estimate
    assert over[0] == pytest.approx(fit.emmeans("a").estimate[0])  # the linear predictor is linear in x


def dated() -> pd.DataFrame:
    data = load_dataset("sleepstudy")
    date = pd.Timestamp("2020-01-01") + pd.to_timedelta(data["Days"], unit="D")
    return data.assign(date=date, month=date.dt.to_period("D"), late=date.where(data["Days"] > 4, date.min()))


def test_dates_are_averaged_and_shown_as_dates() -> None:
    data = dated()
    days = lmer("Reaction ~ Days + (1 | Subject)", data)
    date = lmer("Reaction ~ date + (1 | Subject)", data)
    at = {"date": ["2020-01-03", pd.Timestamp("2020-01-09")]}
    means = date.emmeans("date", at=at)
    np.testing.assert_allclose(means.estimate, days.emmeans("Days", at={"Days": [2, 8]}).estimate, rtol=1e-6)
    assert means.labels["date"].tolist() == [pd.Timestamp("2020-01-03"), pd.Timestamp("2020-01-09")]
    assert date.emmeans("date").labels["date"].tolist() == [pd.Timestamp("2020-01-05 12:00")]
    np.testing.assert_allclose(date.emtrends("date").estimate, days.params["Days"], rtol=1e-6)
    period = lmer("Reaction ~ month + (1 | Subject)", data)
    np.testing.assert_allclose(period.emmeans("1").estimate, days.emmeans("1").estimate, rtol=1e-9)
    factor = lmer("Reaction ~ factor(date) + (1 | Subject)", data).emmeans("date", at={"date": "2020-01-02"})
    assert factor.labels["date"].tolist() == [pd.Timestamp("2020-01-02")]


def test_calls_see_dates_in_the_grid() -> None:
    data = dated()
    days = lmer("Reaction ~ Days + (1 | Subject)", data)
    whole = lmer("Reaction ~ I((date - date.min()).dt.days) + (1 | Subject)", data)
    at = {"date": "2020-01-07"}
    np.testing.assert_allclose(
        whole.emmeans("date", at=at).estimate, days.emmeans("Days", at={"Days": 6}).estimate, rtol=1e-9
    )
    with pytest.raises(DataError, match="goes in steps, such as whole days"):
        whole.emtrends("date")
    passed = lmer("Reaction ~ I((date - date.min()) / pd.Timedelta('1D')) + (1 | Subject)", data)
    np.testing.assert_allclose(passed.emtrends("date").estimate, days.params["Days"], rtol=1e-6)


@pytest.mark.parametrize(
    "names", [("x.1", "a.1"), ("2nd x", "the a"), ("x+2", "a*3"), ("x:2", "a'3"), ("lambda", "for"), ("p", "C")]
)
def test_columns_may_have_any_name(names: tuple[str, str]) -> None:
    x, a = names
    plain = lmer("y ~ x * a + (1 | g)", unbalanced())
    fit = lmer(f"y ~ `{x}` * `{a}` + (1 | g)", unbalanced().rename(columns={"x": x, "a": a}))
    for own, same in (
        (fit.emmeans(a), plain.emmeans("a")),
        (fit.emmeans(f"~ `{a}`", at={x: 1.0}), plain.emmeans("a", at={"x": 1.0})),
        (fit.emtrends(x, a), plain.emtrends("x", "a")),
        (fit.emtrends(f"`{x}`", a), plain.emtrends("x", "a")),
    ):
        np.testing.assert_allclose(own.estimate, same.estimate, rtol=1e-9)
    np.testing.assert_allclose(fit.joint_tests()["F"], plain.joint_tests()["F"], rtol=1e-9)
    np.testing.assert_allclose(fit.t_test(f"2 * `{x}` = 1")["t"], plain.t_test("2 * x = 1")["t"], rtol=1e-9)
    curved = lmer(f"y ~ poly(`{x}`, 2) + C(`{a}`) + (1 | g)", unbalanced().rename(columns={"x": x, "a": a}))
    assert curved.criterion == pytest.approx(lmer("y ~ poly(x, 2) + C(a) + (1 | g)", unbalanced()).criterion)
    np.testing.assert_allclose(curved.emtrends(x).df > 0, True)
