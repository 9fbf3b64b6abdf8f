import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlmm_core.formula.levels import Factor, Levels, code_integers, code_values, combine


def labels(factor: Factor) -> list[object]:
    return [None if c < 0 else factor.levels[c] for c in factor.codes]


@given(st.lists(st.integers(-5, 5) | st.integers(-(10**15), 10**15), min_size=1))
def test_integers_are_coded_in_order(values: list[int]) -> None:
    array = np.array(values)
    codes, distinct = code_integers(array, int(array.min()), int(array.max()))
    expected, inverse = np.unique(array, return_inverse=True)
    np.testing.assert_array_equal(distinct, expected)
    np.testing.assert_array_equal(codes, inverse)


@given(st.lists(st.none() | st.text(max_size=2)))
def test_strings_are_coded_in_order(values: list[str | None]) -> None:
    factor = code_values(np.array(values, dtype=object))
    assert factor.levels.tolist() == sorted({v for v in values if v is not None})
    assert labels(factor) == values


def test_whole_floats_are_integer_levels() -> None:
    factor = code_values(np.array([10.0, np.nan, 9.0]))
    assert factor.levels.tolist() == [9, 10]
    assert isinstance(factor.levels[0], int)
    assert factor.codes.tolist() == [1, -1, 0]
    assert code_values(np.array([0.5, 1.0])).levels.tolist() == [0.5, 1.0]


def test_mixed_types_are_ordered_by_text() -> None:
    assert code_values(np.array(["b", 1, "a"], dtype=object)).levels.tolist() == [1, "a", "b"]


def test_booleans() -> None:
    factor = code_values(np.array([True, False, True]))
    assert factor.levels.tolist() == [False, True]
    assert factor.codes.tolist() == [1, 0, 1]


def test_take_drops_unused_levels() -> None:
    factor = Factor(np.array([2, 0, -1, 2]), np.array(list("abc"), dtype=object), True, "sum")
    assert factor.missing().tolist() == [False, False, True, False]
    taken = factor.take(np.array([0, 1, 3]))
    assert taken.levels.tolist() == ["a", "c"]
    assert taken.codes.tolist() == [1, 0, 1]
    assert (taken.ordered, taken.contrasts) == (True, "sum")
    assert taken.codes.dtype == np.int32
    assert taken.missing() is None


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(8, 11), st.sampled_from("xyz")), min_size=1))
def test_interaction_is_ordered_with_the_first_factor_slowest(rows: list[tuple[str, int, str]]) -> None:
    columns = [code_values(np.array(c)) for c in ([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])]
    codes, levels = columns[0].codes.astype(np.int32), Levels(columns[0].levels)
    for column in columns[1:]:
        codes, levels = combine(codes, levels, column.codes.astype(np.int32), Levels(column.levels))
    distinct = sorted(set(rows))
    assert levels.labels.tolist() == [f"{a}:{b}:{c}" for a, b, c in distinct]
    assert codes.tolist() == [distinct.index(r) for r in rows]
    assert codes.dtype == np.int32
    assert levels.place(columns).tolist() == codes.tolist()
    again = pickle.loads(pickle.dumps(levels))
    assert again.labels.tolist() == levels.labels.tolist()


def test_a_large_interaction_is_hashed() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 10**5, 3000), rng.integers(0, 10**5, 3000)
    # every level once, so that the product of the sizes is large
    fa, fb = code_values(np.append(a, np.arange(10**5))), code_values(np.append(b, np.arange(10**5)[::-1]))
    codes, levels = combine(fa.codes.astype(np.int32), Levels(fa.levels), fb.codes.astype(np.int32), Levels(fb.levels))
    _, expected = np.unique(fa.codes.astype(np.int64) * 10**5 + fb.codes, return_inverse=True)
    np.testing.assert_array_equal(codes, expected)
    assert levels.labels[codes[0]] == f"{a[0]}:{b[0]}"


def test_place_of_other_rows() -> None:
    levels = Levels(np.array([308, 309], dtype=object))
    assert levels.place([code_values(np.array([309, 310, 308]))]).tolist() == [1, -1, 0]
    assert levels.place([code_values(np.array(["309", "x"], dtype=object))]).tolist() == [1, -1]
    categorical = Factor(np.array([1, -1]), np.array([1, 309], dtype=object))
    assert levels.place([categorical]).tolist() == [1, -1]


def test_place_of_an_unseen_combination() -> None:
    a, b = code_values(np.array(["p", "q"], dtype=object)), code_values(np.array(["u", "v"], dtype=object))
    _, levels = combine(a.codes.astype(np.int32), Levels(a.levels), b.codes.astype(np.int32), Levels(b.levels))
    new_a = code_values(np.array(["p", "p", "q", "r"], dtype=object))
    new_b = code_values(np.array(["u", "v", "v", "u"], dtype=object))
    assert levels.place([new_a, new_b]).tolist() == [0, -1, 1, -1]


@pytest.mark.parametrize("n", [73_421])
def test_labels_are_not_written_until_asked_for(n: int) -> None:
    codes = np.arange(n, dtype=np.int32)
    part = Levels(pd.Index(codes).to_numpy(dtype=object))
    _, levels = combine(codes, part, codes, part)
    assert "text" not in levels.__dict__
    assert levels.labels[-1] == f"{n - 1}:{n - 1}"


def test_missing_codes_stay_where_unused_levels_go():
    factor = Factor(np.array([3, -1, 0, 3], np.int8), np.array(list("abcd"), dtype=object))
    taken = factor.take(None)
    assert taken.codes.tolist() == [1, -1, 0, 1]
    assert taken.codes.dtype == np.int32
    assert taken.levels.tolist() == ["a", "d"]
    whole = Factor(np.array([1, -1, 0], np.int64), np.array(["a", "b"], dtype=object)).take(None)
    assert whole.codes.tolist() == [1, -1, 0]
