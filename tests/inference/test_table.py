"""How tables print: every column in any terminal, p-values as the summary has them, the notes beneath."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pandas as pd
import polars as pl
import pytest

from fastlmm_core import LmerResult, anova, compare, lmer, load_dataset
from fastlmm_core.fitting.text import format_pvalue, listed
from fastlmm_core.inference.table import Table, table


@pytest.fixture(scope="module")
def fit() -> LmerResult:
    return lmer("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"), reml=False)


TABLES: dict[str, Callable[[LmerResult], pd.DataFrame]] = {
    "coef_table": lambda m: m.coef_table(),
    "t_test": lambda m: m.t_test("Days = 0, Intercept = 250"),
    "anova": lambda m: m.anova(),
    "drop1": lambda m: m.drop1(),
    "drop1, chisq": lambda m: m.drop1(test="chisq"),
    "ranova": lambda m: m.ranova(),
    "conf_int": lambda m: m.conf_int(),
    "profile": lambda m: m.conf_int("profile", parm="Days"),
    "tidy": lambda m: m.tidy(conf_int=True),
    "glance": lambda m: m.glance(),
    "augment": lambda m: m.augment(),
    "influence": lambda m: m.influence("Subject").to_frame(),
    "compare": lambda m: compare(m, lmer("Reaction ~ Days + (1 | Subject)", load_dataset("sleepstudy"), reml=False)),
    "anova of two": lambda m: anova(
        m, lmer("Reaction ~ Days + (1 | Subject)", load_dataset("sleepstudy"), reml=False), names=["a", "b"]
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_column_is_shown_however_narrow_the_terminal(name: str, fit: LmerResult) -> None:
    made = TABLES[name](fit)
    with pd.option_context("display.width", 40, "display.max_columns", 3):
        text, html = repr(made), made._repr_html_()  # type: ignore[operator]
    assert text == str(made)
    header = text.splitlines()[0].split()
    assert header == [str(column) for column in made.columns]
    assert all(f"<th>{column}</th>" in html for column in made.columns)


def test_pvalues_are_the_summarys(fit: LmerResult) -> None:
    shown = [line.split()[-1] for line in repr(fit.coef_table()).splitlines()[1:]]
    page = str(fit.summary()).splitlines()
    start = next(k for k, line in enumerate(page) if "Pr(>|t|)" in line)
    assert shown == [page[start + k].split()[-1] for k in (1, 2)]
    assert shown[0] == "<2e-16"


def test_notes_stand_beneath_and_in_attrs() -> None:
    made = table({"estimate": [1.0, 2.0], "p": [1e-20, np.nan]}, ["a", "b"], ["one note", "x < y"])
    assert repr(made).splitlines() == [
        "   estimate      p",
        "a       1.0 <2e-16",
        "b       2.0    NaN",
        "one note",
        "x < y",
    ]
    assert made.attrs["notes"] == ["one note", "x < y"]
    assert made.notes == ("one note", "x < y")
    assert "<p>x &lt; y</p>" in made._repr_html_()


def test_what_is_made_of_a_table_is_a_plain_frame() -> None:
    made = table({"p": [1e-20, 0.5]}, notes=["n"])
    assert type(made) is Table
    for plain in (made.round(3), made[["p"]], made.copy(), made.iloc[:1]):
        assert type(plain) is pd.DataFrame
        assert plain.attrs["notes"] == ["n"]
    again = pickle.loads(pickle.dumps(made))
    assert repr(again) == repr(made)
    pd.testing.assert_frame_equal(made, pd.DataFrame(made))


def test_long_tables_are_cut_as_pandas_cuts_them(fit: LmerResult) -> None:
    assert len(repr(fit.augment()).splitlines()) < 20


def test_words() -> None:
    assert [format_pvalue(v) for v in (0.04567, 1.5e-9, 2e-17, 1.0, np.nan)] == [
        "0.0457",
        "1.5e-09",
        "<2e-16",
        "1",
        "NaN",
    ]
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(list("abcdefgh"), 3) == "a, b, c and 5 more"


# --------------------------------------------------------------------------------------------------- labels met twice


@pytest.mark.parametrize("kind", ["twice", "constant", "two levels"])
def test_rows_are_matched_by_place_whatever_their_labels(kind: str) -> None:
    """Data put together by pd.concat have labels that occur twice; a join on them would multiply the rows."""
    one = load_dataset("sleepstudy")
    rng = np.random.default_rng(1)
    data = pd.concat([one, one.assign(Reaction=one.Reaction + rng.normal(size=180))])
    if kind == "constant":
        data.index = pd.Index(["row"] * 360)
    elif kind == "two levels":
        data.index = pd.MultiIndex.from_arrays([data.index, ["x"] * 360])
    data.iloc[[7, 200], 0] = np.nan
    fit = lmer("Reaction ~ Days + (Days | Subject)", data)
    plain = lmer("Reaction ~ Days + (Days | Subject)", data.reset_index(drop=True))
    used = data.iloc[fit.design.row_index]
    for made, wanted in (
        (fit.augment(), plain.augment()),
        (fit.augment(data), plain.augment(data.reset_index(drop=True))),
        (fit.influence().to_frame(), plain.influence().to_frame()),
        (fit.influence().dfbetas, plain.influence().dfbetas),
        (fit.predict(interval="confidence"), plain.predict(interval="confidence")),
    ):
        assert made.index.equals(used.index)
        numbers = made.select_dtypes("number").columns
        np.testing.assert_allclose(made[numbers].to_numpy(), wanted[numbers].to_numpy(), rtol=1e-10)
    added = fit.augment(data)
    np.testing.assert_allclose(added[".fitted"] + added[".resid"], used["Reaction"])
    for series in (fit.resid, fit.fittedvalues, fit.hatvalues(), fit.cooks_distance(), fit.residuals("deleted")):
        assert series.index.equals(used.index)
    assert len(fit.predict(data)) == 360


def test_columns_are_not_added_twice() -> None:
    data = load_dataset("Dyestuff")
    fit = lmer("Yield ~ 1 + (1 | Batch)", data)
    with pytest.raises(ValueError, match=r"'\.fitted' already"):
        fit.augment(fit.augment(data))


# ------------------------------------------------------------------------------------------------------ Cook's distance


def test_cooks_distance_is_one_number_in_every_place() -> None:
    data = load_dataset("sleepstudy").assign(w=np.tile([0.5, 1.0, 2.0], 60))
    for formula in ("Reaction ~ Days + (Days | Subject)", "Reaction ~ 0 + (1 | Subject)"):
        fit = lmer(formula, data, weights="w")
        ours, h = fit.cooks_distance(), fit.hatvalues()
        np.testing.assert_array_equal(fit.augment()[".cooksd"], ours)
        if fit.core.rank:
            np.testing.assert_allclose(ours, fit.residuals("studentized") ** 2 * h / ((1 - h) * fit.core.rank))
        else:  # there is no coefficient to be far from
            assert ours.isna().all()
            assert fit.influence().cooks_distance.isna().all()
            assert "unknown" in repr(fit.influence())


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_excluded_rows_are_there_as_nan(library: str) -> None:
    data = load_dataset("sleepstudy").assign(w=1.0 + np.arange(180) % 3)
    data.loc[[3, 40], "Reaction"] = np.nan
    given = data if library == "pandas" else pl.from_pandas(data.astype({"Subject": str}))
    drop, exclude = (
        lmer("Reaction ~ Days + (Days | Subject)", given, weights="w", na_action=action)  # type: ignore[arg-type]
        for action in ("drop", "exclude")
    )
    kept = np.delete(np.arange(180), [3, 40])
    for ask in (
        lambda m: m.augment(),
        lambda m: m.augment(given),
        lambda m: m.hatvalues().to_frame(),
        lambda m: m.cooks_distance().to_frame(),
        lambda m: m.residuals("deleted").to_frame(),
        lambda m: m.predict().to_frame(),
        lambda m: m.predict(interval="confidence"),
    ):
        few, all_rows = ask(drop), ask(exclude)
        assert len(all_rows) == 180
        own = [c for c in all_rows.select_dtypes("number") if str(c) not in data]
        assert all_rows[own].iloc[[3, 40]].isna().all(axis=None)
        np.testing.assert_allclose(all_rows[own].iloc[kept], few[own], rtol=1e-12)
    assert exclude.augment(given)["Days"].notna().all()
    assert exclude.augment()["Subject"].isna().sum() == 2
    assert len(exclude.influence().params) == 178  # cases, which were used
