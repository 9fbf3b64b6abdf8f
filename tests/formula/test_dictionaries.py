"""Levels met batch by batch: one code a level, sorted in the end, whatever the order."""

import pickle
from datetime import date

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlmm_core.errors import DataError
from fastlmm_core.formula import dictionaries
from fastlmm_core.formula.dictionaries import KeyDictionary, LevelDictionary

VALUES = {
    # pandas 2 takes texts for equal that differ from their first NUL on
    "text": st.text(st.characters(exclude_characters="\0"), max_size=3),
    "whole numbers": st.integers(-(2**63), 2**63 - 1),
    "small numbers": st.integers(-5, 5),
    "floats": st.floats(allow_nan=False, allow_infinity=False),
    "true and false": st.booleans(),
}


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", VALUES)
def test_codes_are_those_of_all_values_at_once(kind, data):
    batches = data.draw(st.lists(st.lists(VALUES[kind], min_size=1, max_size=8), min_size=1, max_size=4))
    split = data.draw(st.integers(0, len(batches)))
    first, second = LevelDictionary("g"), LevelDictionary("g")
    encode = data.draw(st.booleans()) and kind == "text"
    codes = []
    for k, batch in enumerate(batches):
        array = pa.array(batch).dictionary_encode() if encode else pa.array(batch)
        codes.append((first if k < split else second).code(array, "here"))
    places = first.places_of(pickle.loads(pickle.dumps(second)), "there")
    codes = [c if k < split else places[c] for k, c in enumerate(codes)]
    levels, order = first.finish()
    values = [v for batch in batches for v in batch]
    expected = sorted(set(values))
    assert levels.labels.tolist() == expected
    assert order[np.concatenate(codes)].tolist() == [expected.index(v) for v in values]


def test_keys_far_apart_are_searched_and_near_ones_looked_up(monkeypatch):
    monkeypatch.setattr(dictionaries, "TABLE", 64)
    rng, keys = np.random.default_rng(0), KeyDictionary()
    known = {}
    for span in (10, 300, 10**12, 50):
        batch = rng.integers(-span, span, 40)
        codes = keys.code(batch)
        for key, code in zip(batch.tolist(), codes.tolist(), strict=True):
            assert known.setdefault(key, code) == code
    assert sorted(known.values()) == list(range(len(keys)))
    assert (keys.keys[list(known.values())] == list(known)).all()
    assert len(keys.code(np.empty(0, np.int64))) == 0


def test_the_least_and_the_greatest_keys_are_looked_up_as_others():
    for end in (np.iinfo(np.int64).min, np.iinfo(np.int64).max - 9):
        keys = KeyDictionary()
        given = np.arange(10, dtype=np.int64) + end
        np.testing.assert_array_equal(keys.code(given[5:]), np.arange(5))
        np.testing.assert_array_equal(keys.code(given[::-1]), [4, 3, 2, 1, 0, 9, 8, 7, 6, 5])


def test_texts_of_a_dictionary_that_no_row_has_are_no_levels():
    column = pa.DictionaryArray.from_arrays(pa.array([0, 2, 0], pa.int32()), pa.array(["a", "b", "c"]))
    levels = LevelDictionary("g")
    levels.code(column, "here")
    assert levels.finish()[0].labels.tolist() == ["a", "c"]
    numbers = pa.DictionaryArray.from_arrays(pa.array([1, 1], pa.int32()), pa.array([7, 9]))
    other = LevelDictionary("h")
    other.code(numbers, "here")
    assert other.finish()[0].labels.tolist() == [9]


def test_what_cannot_be_a_level_is_named():
    levels = LevelDictionary("g")
    levels.code(pa.array(["a"]), "one")
    with pytest.raises(DataError, match="'g' holds whole numbers in two, but text before"):
        levels.code(pa.array([1]), "two")
    with pytest.raises(DataError, match=r"time32.* values in one: group by numbers, text or dates"):
        LevelDictionary("hour").code(pa.array([1, 2], pa.time32("s")), "one")
    days = LevelDictionary("day")
    days.code(pa.array([date(2020, 1, 1)]), "one")
    with pytest.raises(DataError, match="'day' holds times in two, but dates before"):
        days.code(pa.array([0], pa.timestamp("s")), "two")
    with pytest.raises(DataError, match="beyond"):
        LevelDictionary("id").code(pa.array([2**63], pa.uint64()), "one")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.date32(), pa.date64()),
        (pa.timestamp("s"), pa.timestamp("ns")),
        (pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "UTC")),
        (pa.duration("ms"), pa.duration("s")),
    ],
    ids=str,
)
def test_dates_times_and_durations_are_levels_as_in_a_table(first, second):
    days = [18_262, 3, 18_261, 3]
    whole = pa.array(days, pa.int32()).cast(pa.date32()) if pa.types.is_date(first) else None
    seconds = pa.array([86_400 * day for day in days], pa.int64())
    if whole is None:
        whole = seconds.cast(pa.duration("s") if pa.types.is_duration(first) else pa.timestamp("s"))
    one, other = LevelDictionary("g"), LevelDictionary("g")
    codes = one.code(whole.cast(first), "here")
    theirs = other.code(whole.cast(second)[::-1], "there")
    places = one.places_of(pickle.loads(pickle.dumps(other)), "there")
    levels, order = one.finish()
    assert order[codes].tolist() == [2, 0, 1, 0]
    assert order[places[theirs]].tolist() == [0, 1, 0, 2]
    assert levels.labels.tolist() == list(whole.cast(first).take(pa.array([1, 2, 0])).to_pandas(date_as_object=False))
