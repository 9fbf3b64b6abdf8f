"""What can be asked of a fit whose columns depend on one another: cells without rows, and columns given twice."""

from __future__ import annotations

import warnings
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlmm_core import LmerResult, RankWarning, lmer, load_dataset

OATS = Path(__file__).parents[1] / "golden" / "oats.csv"
VARIETIES = ("Golden.rain", "Marvellous", "Victory")
NITROGEN = ("0.0cwt", "0.2cwt", "0.4cwt", "0.6cwt")
# emmeans 1.8.4 on lme4's fit without Golden.rain x 0.6cwt, varieties within nitrogen; every SE is the same
MEANS = [
    80.0,
    86.6666667,
    71.5,
    98.5,
    108.5,
    89.6666667,
    114.6666667,
    117.1666667,
    110.8333333,
    np.nan,
    126.8333333,
    118.5,
]
SE, DF = 9.139453163, {"satterthwaite": 14.62972671, "kenward-roger": 14.617728}


def quietly(formula: str, data: pd.DataFrame, **options: object) -> LmerResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)
        return lmer(formula, data, **options)  # type: ignore[arg-type]


def oats(varieties: tuple[str, ...] = VARIETIES, nitrogen: tuple[str, ...] = NITROGEN) -> pd.DataFrame:
    """Without Golden.rain x 0.6cwt, levels in any order."""
    data = pd.read_csv(OATS, comment="#")
    data = data[~((data.V == "Golden.rain") & (data.N == "0.6cwt"))]
    return data.assign(V=pd.Categorical(data.V, varieties), N=pd.Categorical(data.N, nitrogen))


def cells() -> pd.DataFrame:
    grid = pd.MultiIndex.from_product([NITROGEN, VARIETIES], names=["N", "V"]).to_frame(index=False)
    return grid[["V", "N"]]


def rows_of(fit: LmerResult, cells: pd.DataFrame) -> np.ndarray:
    return np.asarray(fit.design.rebuild(cells, random=[]).X)


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
@pytest.mark.parametrize("order", list(permutations(range(3)))[:4])
def test_cell_means_of_oats_are_emmeans(order: tuple[int, ...], ddf: str) -> None:
    fit = quietly(
        "Y ~ V * N + (1 | B/V)", oats(tuple(VARIETIES[k] for k in order), NITROGEN[order[0] :] + NITROGEN[: order[0]])
    )
    table = fit.t_test(rows_of(fit, cells()), ddf=ddf)
    np.testing.assert_allclose(table["estimate"], MEANS, rtol=1e-8)
    np.testing.assert_allclose(table["std_error"], np.where(np.isnan(MEANS), np.nan, SE), rtol=1e-6)
    np.testing.assert_allclose(table["df"], np.where(np.isnan(MEANS), np.nan, DF[ddf]), rtol=2e-6)
    assert table["p"].isna().tolist() == np.isnan(MEANS).tolist()
    (note,) = table.attrs["notes"]
    assert note.startswith("not estimable: ")
    assert note.endswith("linearly on other columns")
    assert repr(table).endswith(note)


def test_tests_of_oats_are_lmertests() -> None:
    """lmerTest 3.1.3; it writes type 2 of V in another way than type 3, which moves its 10.743 degrees to 10.801."""
    fit = quietly("Y ~ V * N + (1 | B/V)", oats())
    for type in ("II", "III"):
        table = fit.anova(type)
        np.testing.assert_allclose(table["F"], [1.6658416558, 31.7974299340, 0.3555647624], rtol=2e-5)
        np.testing.assert_allclose(table["den_df"], [10.743, 40.44810162, 40.44810162], rtol=6e-3)
        np.testing.assert_allclose(table["sum_sq"], [584.0706066, 16723.0277778, 311.6666667], rtol=2e-5)
        assert table["num_df"].tolist() == [2, 3, 5]
        (note,) = table.attrs["notes"]
        assert note.startswith("V:N: 1 of 12 cells is empty")
        assert note in repr(table)
        assert note in table._repr_html_()
    np.testing.assert_allclose(fit.anova(2), fit.anova(3), rtol=1e-8)
    first = fit.anova("1")
    np.testing.assert_allclose(first["F"], [2.1649815043, 31.7974299340, 0.3555647624], rtol=2e-5)


def test_types_2_and_3_of_the_same_question_have_the_same_answer_under_any_coding() -> None:
    """lmerTest's type 3 of the additive model, with contrasts that sum to zero: 10.698707 degrees for V."""
    for coding in ("treatment", "sum", "helmert"):
        fit = quietly("Y ~ V + N + (1 | B/V)", oats(), contrasts={"V": coding, "N": coding})
        for type in (2, 3):
            table = fit.anova(type)
            np.testing.assert_allclose(table["F"], [1.66720488, 34.22466544], rtol=2e-5)
            np.testing.assert_allclose(table["den_df"], [10.698707, 45.41792274], rtol=2e-5)
        np.testing.assert_allclose(fit.drop1(), fit.anova(3), rtol=1e-8)


# ---------------------------------------------------------------------------------- terms whose removal changes nothing


def test_a_term_that_others_span_has_no_test() -> None:
    rng = np.random.default_rng(1)
    g, x = np.repeat(range(12), 10), rng.normal(size=120)
    data = pd.DataFrame({"x": x, "x2": 2 * x, "g": g, "y": x + rng.normal(size=12)[g] + rng.normal(size=120)})
    fit = quietly("y ~ x + x2 + (1 | g)", data)
    for table in (fit.anova(2), fit.anova(3), fit.drop1()):
        assert table["num_df"].tolist() == [0, 0]
        assert table[["F", "p", "sum_sq"]].isna().all(axis=None)
        assert "x and x2: nothing to test" in repr(table)
    assert fit.anova(1)["num_df"].tolist() == [1, 0]
    assert fit.drop1(test="chisq").loc[["x", "x2"], "df"].tolist() == [0.0, 0.0]
    assert fit.drop1(test="chisq")["p"].isna().all()


def test_a_number_beside_the_factor_made_of_it() -> None:
    fit = quietly("angle ~ recipe + temp + temperature + (1 | recipe:replicate)", load_dataset("cake"))
    plain = lmer("angle ~ recipe + temperature + (1 | recipe:replicate)", load_dataset("cake")).anova()
    for table in (fit.anova(2), fit.anova(3), fit.drop1()):
        assert table["num_df"].tolist() == [2, 0, 4]
        assert table.loc["temp", ["F", "p"]].isna().all()
        np.testing.assert_allclose(table.loc["recipe"].astype(float), plain.loc["recipe"].astype(float), rtol=1e-6)
        assert "temperature: 4 of 5 degrees of freedom are left" in repr(table)
    assert fit.drop1(test="chisq")["df"].tolist()[1:] == [2.0, 0.0, 4.0]


@given(st.integers(0, 2**32 - 1))
def test_rank_decides_the_degrees_of_freedom(seed: int) -> None:
    """Whatever the columns and their order: what a term adds to the rank of all others."""
    rng = np.random.default_rng(seed)
    n = 48
    a, b = rng.integers(0, 3, n), rng.integers(0, 3, n)
    b = np.where((a == 2) & (b == 1), 0, b)  # an empty cell
    x, z = rng.normal(size=(2, n))
    data = pd.DataFrame({"a": pd.Categorical(a), "b": pd.Categorical(b), "x": x, "z": z, "g": np.arange(n) % 8})
    data = data.assign(w=x - 3.0 * z, v=1e6 * x + 5.0, c=pd.Categorical(a == 2), y=rng.normal(size=n) + 0.3 * data.g)
    terms = list(rng.permutation(["a", "b", "x", "z", "w", "v", "c", "a:b"])[: rng.integers(3, 8)])
    if "a:b" in terms:
        terms = [*(t for t in terms if t not in ("a", "b", "a:b")), "a", "b", "a:b"]
    fit = quietly(f"y ~ {' + '.join(terms)} + (1 | g)", data)
    columns = {name: np.arange(fit.design.X.shape[1])[where] for name, where in fit.design.x_terms}
    norms = np.linalg.norm(fit.design.X, axis=0)
    unit = fit.design.X / np.where(norms > 0, norms, 1.0)
    second, third, dropped = fit.anova(2), fit.anova(3), fit.drop1()
    for term in terms:
        contained = [other for other in terms if other != term and set(term.split(":")) < set(other.split(":"))]
        others = [j for name, where in columns.items() if name not in (term, *contained) for j in where]
        gain = np.linalg.matrix_rank(unit[:, [*others, *columns[term]]]) - np.linalg.matrix_rank(unit[:, others])
        assert second.loc[term, "num_df"] == gain
        if not contained:
            assert third.loc[term, "num_df"] == dropped.loc[term, "num_df"] == gain
    for table in (second, third, dropped):
        assert (table["p"].isna() == (table["num_df"] == 0)).all()


# ------------------------------------------------------------------------------------------------ rows that add nothing


@pytest.mark.parametrize("ddf", ["satterthwaite", "KR", "residual", "normal"])
def test_rows_that_follow_from_others_change_nothing(ddf: str) -> None:
    fit = lmer("angle ~ recipe * temperature + (1 | recipe:replicate)", load_dataset("cake").iloc[7:])
    rng = np.random.default_rng(5)
    p = len(fit.params)
    rows = np.eye(p)[[1, 2, 4, 9]] * np.array([1.0, 1e-3, 1e4, 1.0])[:, None]
    plain = fit.f_test(rows, ddf=ddf)
    more = np.vstack([rows, rng.normal(size=(5, 4)) @ rows, np.zeros(p), rows[::-1]])
    for given_rows in (more, (more, np.zeros(len(more)))):
        found = fit.f_test(given_rows, ddf=ddf)
        assert found.num_df == plain.num_df == 4
        np.testing.assert_allclose([found.F, found.den_df, found.p], [plain.F, plain.den_df, plain.p], rtol=1e-7)
    values = rng.normal(size=4)
    mix = rng.normal(size=(3, 4))
    one = fit.f_test((rows, values), ddf=ddf)
    both = fit.f_test((np.vstack([rows, mix @ rows]), np.concatenate([values, mix @ values])), ddf=ddf)
    np.testing.assert_allclose([both.F, both.den_df], [one.F, one.den_df], rtol=1e-7)


def test_a_covariate_far_from_zero_leaves_both_rows() -> None:
    data = load_dataset("sleepstudy")
    near = lmer("Reaction ~ Days + (1 | Subject)", data).f_test("Intercept = 0, Days = 0")
    far = lmer("Reaction ~ Days + (1 | Subject)", data.assign(Days=data.Days + 1e5))
    found = far.f_test([[1.0, 1e5], [0.0, 1.0]])
    assert found.num_df == near.num_df == 2
    np.testing.assert_allclose(found.F, near.F, rtol=1e-4)
    assert far.f_test("Intercept = 0, Days = 0").num_df == 2


def test_a_joint_test_with_a_row_that_is_not_estimable() -> None:
    fit = quietly("Y ~ V * N + (1 | B/V)", oats())
    rows = rows_of(fit, cells())
    good = np.delete(rows, 9, axis=0)
    assert fit.f_test(good[1:] - good[0]).num_df == 10
    found = fit.f_test(rows[1:] - rows[0])
    assert np.isnan(found.F)
    assert np.isnan(found.p)
    assert "not estimable" in repr(found)


# --------------------------------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("interval", [None, "confidence", "prediction"])
@pytest.mark.parametrize("order", list(permutations(range(3)))[:4])
def test_predictions_of_oats_are_emmeans(order: tuple[int, ...], interval: str | None) -> None:
    data = oats(tuple(VARIETIES[k] for k in order), NITROGEN[order[0] :] + NITROGEN[: order[0]])
    fit = quietly("Y ~ V * N + (1 | B/V)", data)
    found = fit.predict(cells(), re_form="none", interval=interval)  # type: ignore[arg-type]
    values = found if interval is None else found["fit"]
    np.testing.assert_allclose(values, MEANS, rtol=1e-8)
    assert found.attrs["notes"][0].startswith("1 of 12 rows is not estimable (NaN), as V[T.")
    if interval is not None:
        assert found.isna().all(axis=1).tolist() == np.isnan(MEANS).tolist()
    if interval == "confidence":
        np.testing.assert_allclose(found["std_error"].dropna(), SE, rtol=1e-6)
    assert not fit.predict(interval=interval).isna().any(axis=None)  # type: ignore[union-attr]
    assert not fit.predict(data).isna().any()


@given(st.integers(0, 2**32 - 1))
def test_predictions_do_not_depend_on_the_column_dropped(seed: int) -> None:
    """A row is a number where it adds nothing to the rank of X, the same under any order of terms and levels."""
    rng = np.random.default_rng(seed)
    n = 40
    data = pd.DataFrame({"a": rng.integers(0, 3, n), "b": rng.integers(0, 3, n), "x": rng.normal(size=n)})
    data = data[~((data.a == 1) & (data.b == 2))].assign(w=lambda d: 2.0 * d.x - 1e3, g=lambda d: np.arange(len(d)) % 6)
    data["y"] = rng.normal(size=len(data)) + data.x
    new = pd.DataFrame({"a": rng.integers(0, 3, 9), "b": rng.integers(0, 3, 9), "x": rng.normal(size=9)})
    new["w"] = 2.0 * new.x - np.where(rng.random(9) < 0.5, 1e3, 999.0)
    answers = []
    for terms in (["a", "b", "a:b", "x", "w"], ["w", "b", "x", "a", "b:a"]):
        levels = [rng.permutation(3) for _ in "ab"]
        coded = [
            table.assign(**{name: pd.Categorical(table[name], order) for name, order in zip("ab", levels, strict=True)})
            for table in (data, new)
        ]
        fit = quietly(f"y ~ {' + '.join(terms)} + (1 | g)", coded[0])
        rows = fit.design.rebuild(coded[1], random=[]).X
        assert rows is not None
        norms = np.linalg.norm(fit.design.X, axis=0)
        unit = np.where(norms > 0.0, norms, 1.0)
        rank = np.linalg.matrix_rank(fit.design.X / unit)
        adds = [np.linalg.matrix_rank(np.vstack([fit.design.X, row]) / unit) > rank for row in rows]
        found = fit.predict(coded[1], re_form="none", interval="confidence")
        assert found["fit"].isna().tolist() == adds
        answers.append(found.to_numpy())
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-5, atol=1e-7)
