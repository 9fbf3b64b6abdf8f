"""Tables of F tests on unbalanced data, against lmerTest and pbkrtest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import LmerResult, ModelError, RankWarning, lmer
from fastlmm_core.inference.contrasts import containing_terms, term_hypotheses
from unbalanced_cake import unbalanced_cake


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    return unbalanced_cake()


@pytest.fixture(scope="module")
def factorial(data: pd.DataFrame) -> LmerResult:
    return lmer("angle ~ recipe * temperature + x + (1 | replicate)", data)


@pytest.fixture(scope="module")
def slopes(data: pd.DataFrame) -> LmerResult:
    """A singular fit: a correlation of one."""
    return lmer("angle ~ recipe * x + temperature + (x | replicate)", data)


# lmerTest 3.1.3 and pbkrtest 0.5.2, optimiser's tolerance at 1e-9: DenDF and F of recipe, temperature, x and the
# interaction (x second in the model of slopes)
FACTORIAL = {
    (1, "satterthwaite"): ([164.64215, 164.37195, 164.24476, 164.36811], [2.18157, 12.14467, 0.71620, 0.79756]),
    (1, "kenward-roger"): ([164.61782, 164.34397, 164.21698, 164.34175], [2.18098, 12.13959, 0.71606, 0.79742]),
    (2, "satterthwaite"): ([164.64176, 164.37283, 164.22597, 164.36944], [1.94626, 12.27686, 0.75521, 0.79756]),
    (2, "kenward-roger"): ([164.61735, 164.34490, 164.19816, 164.34175], [1.94584, 12.27162, 0.75507, 0.79742]),
    (3, "satterthwaite"): ([164.64753, 164.36854, 164.22597, 164.36944], [2.04875, 12.42916, 0.75521, 0.79756]),
    (3, "kenward-roger"): ([164.61901, 164.34155, 164.19816, 164.34175], [2.04831, 12.42431, 0.75507, 0.79742]),
}
SLOPES = {
    (1, "satterthwaite"): ([172.681734, 70.984108, 172.350614, 172.529864], [2.31007, 0.00727, 12.23286, 0.04268]),
    (1, "kenward-roger"): ([167.670087, 13.206024, 170.125430, 170.204356], [2.28134, 0.00724, 12.02657, 0.04093]),
    (2, "satterthwaite"): ([172.34369, 72.24889, 172.35657, 172.52948], [0.50551, 0.66819, 12.13627, 0.04268]),
    (2, "kenward-roger"): ([169.850777, 13.549499, 170.284890, 170.204356], [0.49880, 0.66473, 11.93129, 0.04093]),
    (3, "satterthwaite"): ([172.343695, 72.616334, 172.356569, 172.529479], [0.50551, 0.66166, 12.13627, 0.04268]),
    (3, "kenward-roger"): ([169.85078, 13.66206, 170.28489, 170.20436], [0.49880, 0.65824, 11.93129, 0.04093]),
}


@pytest.mark.parametrize(("type", "ddf"), sorted(FACTORIAL))
def test_unbalanced_factorial(factorial: LmerResult, type: int, ddf: str) -> None:
    table = factorial.anova(type, ddf)
    den_df, F = FACTORIAL[type, ddf]
    assert list(table.index) == ["recipe", "temperature", "x", "recipe:temperature"]
    assert list(table.columns) == ["sum_sq", "mean_sq", "num_df", "den_df", "F", "p"]
    assert list(table["num_df"]) == [2, 5, 1, 10]
    np.testing.assert_allclose(table["den_df"], den_df, rtol=1e-6)
    np.testing.assert_allclose(table["F"], F, rtol=2e-5)
    np.testing.assert_allclose(table["sum_sq"], table["mean_sq"] * table["num_df"])


@pytest.mark.parametrize(("type", "ddf"), sorted(SLOPES))
def test_covariate_by_factor_and_a_singular_fit(slopes: LmerResult, type: int, ddf: str) -> None:
    table = slopes.anova(type, ddf)
    den_df, F = SLOPES[type, ddf]
    assert list(table.index) == ["recipe", "x", "temperature", "recipe:x"]
    np.testing.assert_allclose(table["den_df"], den_df, rtol=1e-5)
    np.testing.assert_allclose(table["F"], F, rtol=2e-4, atol=1e-5)
    assert "singular" in table.attrs["notes"][0]


@pytest.mark.parametrize(
    ("recipe", "temperature"), [("sum", "helmert"), ("helmert", "poly"), ("SAS", "sum"), ("diff", "treatment")]
)
def test_type_3_is_the_same_under_any_coding(
    data: pd.DataFrame, factorial: LmerResult, recipe: str, temperature: str
) -> None:
    contrasts = {"recipe": recipe, "temperature": temperature}
    coded = lmer("angle ~ recipe * temperature + x + (1 | replicate)", data, contrasts=contrasts)
    for ddf in ("satterthwaite", "kenward-roger"):
        np.testing.assert_allclose(coded.anova(3, ddf), factorial.anova(3, ddf), rtol=1e-6)


def test_type_3_compares_unweighted_means(data: pd.DataFrame, factorial: LmerResult) -> None:
    cells = pd.MultiIndex.from_product([data[f].cat.categories for f in ("recipe", "temperature")])
    new = pd.DataFrame({"recipe": cells.get_level_values(0), "temperature": cells.get_level_values(1), "x": 0.0})
    X = factorial.design.rebuild(new, random=False).X
    means = X.reshape(3, 6, -1).mean(axis=1)  # of each recipe, over the temperatures
    kept = np.ones(X.shape[1], bool)
    rows = term_hypotheses(factorial.design, kept, 3)["recipe"]
    np.testing.assert_allclose(rows, means[1:] - means[0], atol=1e-12)


def test_without_an_intercept(data: pd.DataFrame) -> None:
    fit = lmer("angle ~ 0 + recipe + temperature + x:recipe + (1 | replicate)", data)
    # lmerTest
    one, two = fit.anova(1), fit.anova(2)
    np.testing.assert_allclose(one["F"], [126.27792, 12.24752, 0.25795], rtol=2e-5)
    np.testing.assert_allclose(one["den_df"], [33.54102, 172.36579, 172.43055], rtol=1e-6)
    np.testing.assert_allclose(two["F"], [65.87521, 12.29572, 0.25795], rtol=2e-5)
    np.testing.assert_allclose(two["den_df"], [59.240074, 172.373608, 172.430525], rtol=1e-6)
    # averaged over the temperatures, whatever their coding; lmerTest has the means at the first temperature
    three = fit.anova(3)
    coded = lmer(
        "angle ~ 0 + recipe + temperature + x:recipe + (1 | replicate)", data, contrasts={"temperature": "sum"}
    )
    np.testing.assert_allclose(three, coded.anova(3), rtol=1e-6)
    assert list(three["num_df"]) == [3, 5, 3]


def test_covariates_of_several_columns(data: pd.DataFrame) -> None:
    data = data.assign(v=np.cos(np.arange(len(data))))
    formula = "angle ~ recipe * poly(x, 2) * v + (1 | replicate)"
    plain = lmer(formula, data)
    coded = lmer(formula, data, contrasts={"recipe": "helmert"})
    np.testing.assert_allclose(plain.anova(), coded.anova(), rtol=1e-6)
    assert plain.anova()["num_df"].to_dict() == {
        "recipe": 2,
        "poly(x, 2)": 2,
        "v": 1,
        "recipe:poly(x, 2)": 4,
        "recipe:v": 2,
        "poly(x, 2):v": 2,
        "recipe:poly(x, 2):v": 4,
    }


def test_empty_cells(data: pd.DataFrame) -> None:
    formula = "angle ~ recipe * temperature + x + (1 | replicate)"
    holes = data[~((data["recipe"] == "B") & (data["temperature"] == "205"))]
    with pytest.warns(RankWarning):
        fit = lmer(formula, holes)
    # lmerTest
    table = fit.anova()
    assert list(table["num_df"]) == [2, 5, 1, 9]
    np.testing.assert_allclose(table["F"], [2.00969, 12.64389, 0.44316, 0.92622], rtol=2e-5)
    np.testing.assert_allclose(table["den_df"], [154.48789, 154.38538, 154.35473, 154.40679], rtol=1e-4)
    np.testing.assert_allclose(fit.anova(1)["F"], [2.15678, 12.39945, 0.41434, 0.92622], rtol=2e-5)
    np.testing.assert_allclose(fit.anova(2)["F"], [1.90524, 12.48391, 0.44316, 0.92622], rtol=2e-5)
    with pytest.warns(RankWarning):
        coded = lmer(formula, holes, contrasts={"recipe": "sum", "temperature": "poly"})
    np.testing.assert_allclose(coded.anova(), table, rtol=1e-5)

    first = data[~((data["recipe"] == "A") & (data["temperature"] == "185"))]
    with pytest.warns(RankWarning):
        table = lmer(formula, first).anova()
    np.testing.assert_allclose(table["F"], [1.74713, 13.37352, 0.51808, 1.02074], rtol=2e-5)


def test_aliased_covariates(data: pd.DataFrame) -> None:
    with pytest.warns(RankWarning):
        fit = lmer("angle ~ x + twice + (1 | replicate)", data.assign(twice=2 * data["x"]))
    alone = lmer("angle ~ x + (1 | replicate)", data).anova()
    for type in (1, 2, 3):
        table = fit.anova(type)
        if type == 1:
            np.testing.assert_allclose(table.loc[["x"]], alone, rtol=1e-6)
        else:  # beside the other, neither explains anything
            assert table.loc["x", "num_df"] == 0
        assert table.loc["twice", "num_df"] == 0
        assert np.isnan(table.loc["twice", "F"])


def test_containment_needs_the_same_covariates(slopes: LmerResult) -> None:
    assert containing_terms(slopes.design.spec) == {
        "recipe": [],
        "x": ["recipe:x"],
        "temperature": [],
        "recipe:x": [],
    }


def test_unknown_type(factorial: LmerResult) -> None:
    with pytest.raises(ModelError, match="anova type 4 does not exist"):
        factorial.anova(4)


def test_drop1(factorial: LmerResult, slopes: LmerResult) -> None:
    table = factorial.drop1()
    assert list(table.index) == ["x", "recipe:temperature"]
    pd.testing.assert_frame_equal(table, factorial.anova().loc[table.index], rtol=1e-6)
    assert list(slopes.drop1().index) == ["temperature", "recipe:x"]


def test_drop1_by_likelihood(data: pd.DataFrame, factorial: LmerResult) -> None:
    table = factorial.drop1(test="chisq")
    smaller = lmer("angle ~ recipe + temperature + x + (1 | replicate)", data, reml=False)
    full = factorial.refit_ml()
    row = table.loc["recipe:temperature"]
    assert row["chisq"] == pytest.approx(smaller.criterion - full.criterion, rel=1e-6)
    assert row["df"] == 10
    assert row["aic"] == pytest.approx(smaller.aic)
    assert table.loc["<none>", "deviance"] == pytest.approx(full.criterion)
    with pytest.raises(ModelError, match="test 'Rao' does not exist"):
        factorial.drop1(test="Rao")
    with pytest.raises(ModelError, match=r"compare them with anova\(m0, m1\)"):
        lmer("angle ~ 0 + recipe + temperature + (1 | replicate)", data).drop1()


def test_drop1_with_a_dummy_a_level(data: pd.DataFrame) -> None:
    # lmerTest tests these: the columns of the other terms stay as they are
    means = lmer("angle ~ 0 + recipe + x + (1 | replicate)", data)
    pd.testing.assert_frame_equal(means.drop1(), means.anova(type=2), rtol=1e-6)
    with pytest.warns(RankWarning):
        cells = lmer("angle ~ x + recipe:temperature + (1 | replicate)", data)
    smaller = lmer("angle ~ x + (1 | replicate)", data, reml=False)
    table = cells.drop1(test="chisq")
    assert table.loc["recipe:temperature", "deviance"] == pytest.approx(smaller.criterion)
    assert table.loc["recipe:temperature", "df"] == cells.core.rank - 2
    assert list(lmer("angle ~ recipe / x + (1 | replicate)", data).drop1().index) == ["recipe:x"]
