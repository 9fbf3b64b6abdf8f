"""Every data set loads with its published shape, its levels in lme4's order, and its published means."""

import numpy as np
import pandas as pd
import pytest

from fastlmm_core import DataError, dataset_names, load_dataset

SHAPES = {
    "cake": (270, 5),
    "cbpp": (56, 4),
    "Dyestuff": (30, 2),
    "Dyestuff2": (30, 2),
    "fev": (537, 9),
    "grouseticks": (403, 7),
    "InstEval": (73_421, 7),
    "Orthodont": (108, 4),
    "Pastes": (60, 4),
    "Penicillin": (144, 3),
    "sleepstudy": (180, 3),
    "VerbAgg": (7_584, 9),
}
LEVELS = {
    "cake": {"replicate": 15, "recipe": 3, "temperature": 6},
    "cbpp": {"herd": 15, "period": 4},
    "Dyestuff": {"Batch": 6},
    "Dyestuff2": {"Batch": 6},
    "fev": {"USUBJID": 197, "AVISIT": 4, "ARMCD": 2, "RACE": 3, "SEX": 2},
    "grouseticks": {"INDEX": 403, "BROOD": 118, "YEAR": 3, "LOCATION": 63},
    "InstEval": {"s": 2972, "d": 1128, "studage": 4, "lectage": 6, "service": 2, "dept": 14},
    "Orthodont": {"Subject": 27, "Sex": 2},
    "Pastes": {"batch": 10, "cask": 3, "sample": 30},
    "Penicillin": {"plate": 24, "sample": 6},
    "sleepstudy": {"Subject": 18},
    "VerbAgg": {"Gender": 2, "item": 24, "resp": 3, "id": 316, "btype": 3, "situ": 2, "mode": 2, "r2": 2},
}
MEANS = {
    ("cake", "angle"): 32.122222222222,
    ("Dyestuff", "Yield"): 1527.5,
    ("InstEval", "y"): 3.2057449503548,
    ("Pastes", "strength"): 60.053333333333,
    ("Penicillin", "diameter"): 22.972222222222,
    ("sleepstudy", "Reaction"): 298.50789166667,
}


def test_every_name_is_covered():
    assert set(dataset_names()) == set(SHAPES)


@pytest.mark.parametrize("name", dataset_names())
def test_shape_and_factors(name):
    frame = load_dataset(name)
    assert frame.shape == SHAPES[name]
    assert not frame.isna().any().any()
    factors = {c: frame[c].cat.categories.size for c in frame if isinstance(frame[c].dtype, pd.CategoricalDtype)}
    assert factors == LEVELS[name]
    for column in factors:
        assert set(frame[column]) == set(frame[column].cat.categories), "a level that no row has"
        assert all(isinstance(level, str) for level in frame[column].cat.categories)
    for column in set(frame) - set(factors):
        assert frame[column].dtype in (np.dtype("int64"), np.dtype("float64"))


@pytest.mark.parametrize(("name", "column"), MEANS)
def test_means(name, column):
    np.testing.assert_allclose(load_dataset(name)[column].mean(), MEANS[name, column], rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "column", "first"),
    [
        ("InstEval", "s", ["1", "2", "3"]),
        ("InstEval", "d", ["1", "6", "7"]),
        ("InstEval", "dept", ["15", "5", "10"]),
        ("grouseticks", "INDEX", ["1", "2", "3"]),
        ("VerbAgg", "mode", ["want", "do"]),
        ("VerbAgg", "item", ["S1WantCurse", "S1WantScold", "S1WantShout"]),
        ("Pastes", "sample", ["A:a", "A:b", "A:c"]),
    ],
)
def test_level_order(name, column, first):
    assert list(load_dataset(name)[column].cat.categories[: len(first)]) == first


def test_frames_are_independent():
    frame = load_dataset("sleepstudy")
    frame["Reaction"] = 0.0
    assert load_dataset("sleepstudy")["Reaction"].min() > 0


@pytest.mark.parametrize(
    ("wrong", "meant"), [("insteval", "InstEval"), ("sleep_study", "sleepstudy"), ("Cake", "cake")]
)
def test_unknown_name_gives_the_nearest(wrong, meant):
    with pytest.raises(DataError, match=rf"{wrong!r}.*{meant}"):
        load_dataset(wrong)


def test_unknown_name_with_nothing_near_lists_all():
    with pytest.raises(DataError, match=r"sleepstudy.*VerbAgg"):
        load_dataset("zzzz")


# str() of lme4's data frames; the others have no ordered factor
ORDERED = {"cake": {"temperature"}, "InstEval": {"studage", "lectage"}, "VerbAgg": {"resp"}}


@pytest.mark.parametrize("name", dataset_names())
def test_ordered_factors_are_lme4s(name: str) -> None:
    frame = load_dataset(name)
    ordered = {c for c in frame if isinstance(frame[c].dtype, pd.CategoricalDtype) and frame[c].cat.ordered}
    assert ordered == ORDERED.get(name, set())
