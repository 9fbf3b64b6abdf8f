"""Marginal means beside empty cells, and tests of covariates' terms: figures of emmeans 1.8.4 on lmerTest 3.1.3."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import LmerResult, lmer, load_dataset
from fastlmm_core.errors import RankWarning
from fastlmm_core.inference.multiplicity import stepwise


@pytest.fixture(scope="module")
def cakes() -> LmerResult:
    cake = load_dataset("cake")
    cake = cake[~((cake["recipe"] == "C") & (cake["temperature"].astype(str) == "225"))]
    with pytest.warns(RankWarning):
        return lmer("angle ~ recipe * temperature + (1 | recipe:replicate)", cake)


@pytest.mark.parametrize(
    ("adjust", "p", "lower"),
    [
        ("sidak", 0.9029606823, -4.478956374),
        ("scheffe", 0.8272866715, -4.600748239),
        ("bonferroni", 1.0, -4.495637146),
    ],
)
def test_rows_without_values_stay_in_the_family(cakes: LmerResult, adjust: str, p: float, lower: float) -> None:
    table = cakes.emmeans("recipe").pairs(adjust=adjust).to_frame()
    assert table["p"].isna().tolist() == [False, True, True]
    np.testing.assert_allclose(table.loc[0, ["p", "lower"]].astype(float), [p, lower], rtol=1e-6)


@pytest.mark.parametrize("how", ["bonferroni", "holm", "hochberg", "hommel", "BH", "BY"])
def test_counted_tests_without_a_result_are_as_good_as_a_p_of_one(how: str) -> None:
    p = np.array([0.03, np.nan, 0.01, np.nan])
    expected = stepwise(np.array([0.03, 1.0, 0.01, 1.0]), how)
    np.testing.assert_array_equal(stepwise(p, how, counted=True)[[0, 2]], expected[[0, 2]])


def test_what_is_determined_of_rows_that_are_not_is_tested(cakes: LmerResult) -> None:
    table = cakes.joint_tests()
    assert table["num_df"].tolist() == [1, 4, 9]
    np.testing.assert_allclose(table["F"], [0.381, 19.857, 1.058], atol=5e-4)
    np.testing.assert_allclose(table["den_df"], [41.53, 195.94, 195.94], atol=6e-3)
    backwards = cakes.emmeans("recipe").contrast({"C - A": [-1, 0, 1], "C - B": [0, -1, 1]}).joint()  # of neither alone
    assert backwards.num_df == 1
    assert pytest.approx(float(table["F"][0]), rel=1e-9) == backwards.F


def test_terms_of_covariates_are_tested() -> None:
    fit = lmer("angle ~ recipe * temp + (1 | recipe:replicate)", load_dataset("cake"))
    table = fit.joint_tests()
    assert table["term"].tolist() == ["recipe", "temp", "recipe:temp"]
    np.testing.assert_allclose(table["F"], [0.249, 94.163, 0.042], atol=5e-4)
    np.testing.assert_allclose(table["p"], [0.7809, 0.0, 0.9592], atol=5e-5)


def test_two_covariates_have_a_joint_term() -> None:
    rng = np.random.default_rng(0)
    data = pd.DataFrame(rng.normal(size=(90, 3)), columns=["x", "w", "y"]).assign(g=np.arange(90) % 9)
    fit = lmer("y ~ x * w + (1 | g)", data)
    table = fit.joint_tests().set_index("term")
    assert table.loc["x:w", "F"] == pytest.approx(fit.anova(3).loc["x:w", "F"], rel=1e-6)


def test_regridded_means_without_values_have_none() -> None:
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"a": np.tile(list("aabb"), 20), "b": np.tile(list("stst"), 20), "g": np.arange(80) % 8})
    data = data[(data["a"] != "b") | (data["b"] != "t")].assign(y=lambda d: rng.gamma(3.0, 1.0, len(d)))
    with pytest.warns(RankWarning):
        fit = lmer("sqrt(y) ~ a * b + (1 | g)", data)
    means = fit.emmeans("a").regrid()
    assert np.isfinite(means.estimate).tolist() == [True, False]
    assert means.pairs().to_frame()["estimate"].isna().all()


def test_means_over_a_nested_factor_are_over_the_levels_within() -> None:
    """As emmeans, which finds the nesting too; its tests of a / b are those of the sequential table where balanced."""
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"g": np.repeat(range(12), 10), "b": np.tile(list("pqrst"), 24)})
    data["a"] = np.where(data["b"].isin(["p", "q"]), "u", "v")
    data["y"] = rng.normal(size=120) + rng.normal(size=12)[data["g"]] + (data["b"] == "q")
    with pytest.warns(RankWarning):
        fit = lmer("y ~ a / b + (1 | g)", data)
    means = fit.emmeans("a")
    np.testing.assert_allclose(means.estimate, data.groupby("a")["y"].mean(), rtol=1e-9)
    np.testing.assert_allclose(means.to_frame()["df"], fit.emmeans("a", weights="flat").to_frame()["df"])
    assert "b is nested in a" in means.to_frame().attrs["notes"]
    tests, table = fit.joint_tests().set_index("term"), fit.anova(1)
    assert tests.index.tolist() == ["a", "a:b"]
    assert tests["num_df"].tolist() == [1, 3]
    np.testing.assert_allclose(tests["F"], table["F"], rtol=1e-6)
    crossed = lmer("y ~ a + b + (1 | g)", data.assign(b=data["b"].map(dict(zip("pqrst", "pqppq", strict=True)))))
    assert not any("nested" in note for note in crossed.emmeans("a").to_frame().attrs["notes"])
