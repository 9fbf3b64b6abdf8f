"""Fits are compared only where they share rows, response, weights and offset, by whatever way they are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from fastlmm_core import (
    Control,
    DataError,
    LmerResult,
    ModelError,
    anova,
    bootstrap_test,
    compare,
    glmer,
    lmer,
    load,
    load_dataset,
)

SMALL, LARGE = "Reaction ~ 1 + (1 | Subject)", "Reaction ~ Days + (1 | Subject)"


def fitted(formula: str = LARGE, data: object = None, **options: object) -> LmerResult:
    return lmer(formula, load_dataset("sleepstudy") if data is None else data, reml=False, **options)  # type: ignore[arg-type]


def changed(what: str) -> LmerResult:
    """The larger model on data that differ in one respect."""
    data = load_dataset("sleepstudy")
    one = np.ones(180)
    one[17] = 1.5
    return {
        "fewer rows": lambda: fitted(data=data[data.Days > 0]),
        "other rows": lambda: fitted(data=data.assign(Days=data.Days.where(data.index != 5))),
        "a response": lambda: fitted(data=data.assign(Reaction=data.Reaction + (data.index == 9) * 1e-9)),
        "a transformed response": lambda: fitted("log(Reaction) ~ Days + (1 | Subject)"),
        "an order": lambda: fitted(data=data.iloc[::-1]),
        "weights": lambda: fitted(weights=one),
        "offset": lambda: fitted(offset=one),
    }[what]()


WAYS: dict[str, Callable[..., object]] = {
    "anova": anova,
    "anova, no refit": lambda *fits: anova(*fits, refit=False),
    "compare": compare,
    "compare, no refit": lambda *fits: compare(*fits, refit=False),
}
WORDS = {
    "fewer rows": "used 180 and 162 rows",
    "other rows": "used 179 rows each, but not the same ones",
    "a response": "different responses",
    "a transformed response": "different responses",
    "an order": "not the same ones|another order",
    "weights": "different weights",
    "offset": "different offsets",
}


@pytest.mark.parametrize("what", WORDS)
def test_one_error_for_every_way_and_order(what: str) -> None:
    data = load_dataset("sleepstudy")
    rows = data.assign(Reaction=data.Reaction.where(data.index != 4)) if what == "other rows" else data
    small, large = fitted(SMALL, rows), changed(what)
    said = set()
    for way in WAYS.values():
        with pytest.raises(DataError, match=WORDS[what]) as error:
            way(small, large)
        said.add(str(error.value))
        with pytest.raises(DataError, match="only fits of the same data can be compared"):
            way(large, large, small)
    assert len(said) == 1


def test_the_same_rows_of_another_table_are_the_same() -> None:
    data = load_dataset("sleepstudy")
    holes = data.assign(Reaction=data.Reaction.where(data.index % 7 != 0))
    small = fitted(SMALL, holes)
    for other in (holes.dropna(), holes.dropna().reset_index(drop=True)):
        assert np.isfinite(anova(small, fitted(data=other))["p"].iloc[1])
        assert len(compare(small, fitted(data=other))) == 2
    table = pl.from_pandas(holes.astype({"Subject": str}))
    assert len(compare(fitted(SMALL, table), fitted(data=table.drop_nulls()))) == 2


def test_unit_weights_and_no_offset_are_none() -> None:
    plain = fitted(SMALL)
    assert len(anova(plain, fitted(weights=np.ones(180), offset=np.zeros(180)))) == 2


def test_restricted_likelihoods_need_equal_columns() -> None:
    """The names may be equal where the columns are not."""
    data = load_dataset("sleepstudy")
    one = lmer(LARGE, data)
    two = lmer("Reaction ~ Days + (Days | Subject)", data.assign(Days=data.Days / 10.0))
    with pytest.raises(ValueError, match="different fixed effects"):
        anova(one, two, refit=False)
    with pytest.raises(ValueError, match="same fixed part"):
        compare(one, two, refit=False)


def test_labels_are_used_and_equal_ones_are_numbered() -> None:
    with pytest.raises(DataError, match="'small' and 'large' have different weights"):
        anova(fitted(SMALL), changed("weights"), names=["small", "large"])
    with pytest.raises(DataError, match="model 1 and model 2 have different offsets"):
        compare(fitted(), changed("offset"))
    assert isinstance(anova(fitted(SMALL), fitted()), pd.DataFrame)


@pytest.mark.parametrize("way", [anova, compare])
def test_only_fits_are_compared(way: Callable[..., object]) -> None:
    with pytest.raises(ModelError, match="fitted models are compared, not int"):
        way(fitted(), 3)


def test_likelihood_ratios_need_families_that_contain_one_another() -> None:
    data = load_dataset("cbpp")
    formula = "incidence ~ period + (1 | herd)"
    poisson, negative = (glmer(formula, data, family) for family in ("poisson", "negativebinomial"))
    assert anova(poisson, negative).p.iloc[1] < 0.01
    with pytest.raises(ModelError, match="links log and sqrt"):
        anova(poisson, glmer(formula, data, "poisson", link="sqrt"))
    with pytest.raises(ModelError, match="families negativebinomial and negativebinomial1"):
        anova(negative, glmer(formula, data, "negativebinomial1"))


HERDS = "cbind(incidence, size - incidence) ~ {} + (1 | herd)"


def test_likelihoods_that_are_approximated_in_other_ways() -> None:
    data = load_dataset("cbpp")

    def fit(fixed: str, **options: object) -> object:
        return glmer(HERDS.format(fixed), data, **options)  # type: ignore[arg-type]

    large, expected = fit("period"), Control(weights="expected")
    for ask in (anova, compare, lambda *fits: bootstrap_test(*fits, n=3)):
        for points in (0, 7):
            with pytest.raises(ModelError, match=f"n_agq=.*{points}"):
                ask(fit("1", n_agq=points), large)
        with pytest.raises(ModelError, match="observed weights and some by expected ones"):
            ask(fit("1", link="probit", control=expected), fit("period", link="probit"))
    same = anova(fit("1", control=expected), large)  # by the canonical link they are the same
    assert same["chisq"].iloc[1] == pytest.approx(25.61, abs=0.01)


def test_files_without_rows_know_whose_they_are(tmp_path: Path) -> None:
    """They compared by what no row could tell: fits of any data."""
    data = load_dataset("sleepstudy")
    loaded = []
    for k, fit in enumerate((fitted(), fitted(SMALL), fitted(SMALL, data.assign(Reaction=data.Reaction + 1)))):
        fit.save(tmp_path / str(k))
        loaded.append(load(tmp_path / str(k)))
    assert anova(loaded[0], loaded[1])["chisq"].iloc[1] == pytest.approx(
        anova(fitted(), fitted(SMALL))["chisq"].iloc[1]
    )
    assert anova(loaded[0], fitted(SMALL))["df"].iloc[1] == 1
    assert compare(loaded[0], loaded[1])["r2_marginal"].isna().all()
    for ask in (anova, compare):
        with pytest.raises(DataError, match="different responses"):
            ask(loaded[0], loaded[2])


def test_a_comparison_has_the_fits_own_r2() -> None:
    """Of generalised fits it took a residual variance of one."""
    fit = glmer(HERDS.format("period"), load_dataset("cbpp"))
    assert compare(fit)["r2_marginal"].iloc[0] == fit.r2()["marginal"]
