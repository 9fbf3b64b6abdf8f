"""New rows with the coding of the model's own."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from fastlmm_core.errors import DataError
from small_table import DATA, N, build

FULL = "y ~ poly(x, 2) * f + scale(z) + offset(w) + (log(z) | g) + (0 + f | h:few)"


def test_rebuild_of_the_models_own_rows() -> None:
    design = pickle.loads(pickle.dumps(build(FULL, offset="x / 2")))
    new = design.rebuild(DATA.drop(columns="y"))
    np.testing.assert_allclose(new.X, design.X, rtol=1e-13)
    np.testing.assert_array_equal(new.offset, design.offset)
    assert new.index.equals(DATA.index)
    assert new.rows is None
    for part, term in zip(new.random, design.random, strict=True):
        np.testing.assert_array_equal(part.codes, term.codes)
        np.testing.assert_array_equal(part.z, term.z)
        assert part.codes.dtype == np.int64


def test_rebuild_of_a_few_rows_keeps_what_was_learnt() -> None:
    design = build(FULL)
    rows = [5, 40]
    new = design.rebuild(DATA.iloc[rows].assign(f="hi"))
    expected = build(FULL).rebuild(DATA.assign(f=np.repeat("hi", N)))
    np.testing.assert_allclose(new.X, expected.X[rows], rtol=1e-13)
    for k, term in enumerate(design.random):
        np.testing.assert_array_equal(new.random[k].codes, term.codes[rows])


def test_rebuild_needs_only_the_columns_of_the_parts_asked_for() -> None:
    design = build("y ~ x + (z | g) + (1 | h)")
    fixed = design.rebuild({"x": [1.0, 2.0]}, random=False)
    np.testing.assert_array_equal(fixed.X, [[1, 1], [1, 2]])
    assert fixed.random == (None, None)
    assert fixed.index.tolist() == [0, 1]
    second = design.rebuild({"h": ["100", "4"]}, fixed=False, random=[1])
    assert second.X is None
    assert second.random[0] is None
    assert second.random[1].codes.tolist() == [2, 0]
    with pytest.raises(DataError, match=r"no column 'g'.*re_form=\"none\""):
        design.rebuild({"x": [1.0]}, random=[0])
    with pytest.raises(DataError, match="no column 'z'"):
        design.rebuild({"x": [1.0], "g": ["g1"]}, random=[0])


def test_new_levels() -> None:
    design = build("y ~ x + (1 | g) + (1 | few:h)")
    new = DATA.iloc[:3].assign(g=["g1", "other", "g0"], h=[30, 30, 7])
    with pytest.raises(DataError, match="level of g that the model was not fitted to: 'other'"):
        design.rebuild(new)
    with pytest.raises(DataError, match=r"level of few:h .*: 'p:7'"):
        design.rebuild(new.assign(g="g1"))
    codes = {
        term.group: part.codes.tolist()
        for term, part in zip(design.random, design.rebuild(new, allow_new_levels=True).random, strict=True)
    }
    assert codes == {"g": [1, -1, 0], "few:h": [1, 4, -1]}


@pytest.mark.parametrize(
    ("formula", "new", "message"),
    [
        ("y ~ f + (1 | g)", {"f": ["lo", "mid"]}, "f has levels in the new data .*: 'mid'"),
        ("y ~ C(h) + (1 | g)", {"h": [30, 31]}, r"C\(h\) has levels in the new data .*: '31'"),
        ("y ~ x + (1 | g)", {"x": [1.0, np.inf]}, r"fixed part of the new data: x \(1 rows\)"),
        ("y ~ x + (1 | g)", {"x": ["1", "2"]}, "x is numeric in the model but not in the new data"),
        ("y ~ f + (1 | g)", {"f": [1, 2]}, "f is categorical in the model but numeric"),
        ("y ~ x + offset(z) + (1 | g)", {"z": [np.inf, 1.0]}, "offset is infinite in 1 rows"),
    ],
)
def test_new_data_that_do_not_fit(formula: str, new: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(formula).rebuild(DATA.iloc[:2].assign(**new))


@pytest.mark.parametrize("column", ["x", "f", "z", "g", "h", "w"])
def test_rows_of_new_data_with_missing_values_are_left_out(column: str) -> None:
    design = build("y ~ scale(x) + f + offset(w) + (z | g) + (1 | few:h)")
    new = DATA.iloc[:4].astype({"h": object})
    new.iloc[2, new.columns.get_loc(column)] = None
    found = design.rebuild(new)
    whole = design.rebuild(DATA.iloc[:4])
    assert found.rows.tolist() == [0, 1, 3]
    np.testing.assert_allclose(found.X, whole.X[[0, 1, 3]])
    np.testing.assert_allclose(found.offset, whole.offset[[0, 1, 3]])
    for mine, theirs in zip(found.random, whole.random, strict=True):
        np.testing.assert_array_equal(mine.codes, theirs.codes[[0, 1, 3]])
    np.testing.assert_array_equal(found.by_row(np.array([1.0, 2.0, 3.0])), [1, 2, np.nan, 3])
    allowed = design.rebuild(new, allow_new_levels=True)
    if column in ("g", "h"):  # a missing level counts as a new one
        assert allowed.rows is None
        assert allowed.random["gh".index(column)].codes[2] == -1
    else:
        assert allowed.rows.tolist() == [0, 1, 3]


def test_an_offset_given_as_an_array_cannot_be_rebuilt() -> None:
    design = build(offset=np.arange(N))
    with pytest.raises(DataError, match="offset was an array"):
        design.rebuild(DATA)
    assert design.rebuild(DATA, fixed=False).offset is None


@pytest.mark.parametrize(
    ("of_fit", "of_new", "message"),
    [
        ("f8", "M8[s]", r"t holds numbers in the model but datetime64\[s\] in the new data"),
        ("f8", "m8[s]", r"t holds numbers in the model but timedelta64\[s\] in the new data"),
        ("M8[s]", "m8[s]", r"t holds datetime64\[s\] in the model but timedelta64\[s\] in the new data"),
        ("m8[s]", "M8[s]", r"t holds timedelta64\[s\] in the model but datetime64\[s\] in the new data"),
    ],
)
def test_times_are_not_taken_for_other_numbers(of_fit: str, of_new: str, message: str) -> None:
    design = build("y ~ t + (1 | g)", DATA.assign(t=np.arange(N).astype(of_fit)))
    design.rebuild(DATA.assign(t=np.arange(N).astype(of_fit)))
    with pytest.raises(DataError, match=message):
        design.rebuild(DATA.assign(t=np.arange(N).astype(of_new)))
