"""Rows sorted by level piece by piece and window by window, and bits that travel through the rows, against NumPy."""

from itertools import pairwise

import numpy as np
import pytest

from fastlmm_core._native.iterative.sorting import place_codes, place_columns, places, reach, tally


@pytest.fixture
def lead():
    return np.random.default_rng(0).integers(0, 9, 200).astype(np.int32)


@pytest.mark.parametrize("windows", [[0, 200], [0, 1, 77, 200]])
def test_rows_are_sorted_by_level_in_their_order(lead, windows):
    rng = np.random.default_rng(1)
    order = np.argsort(lead, kind="stable")
    pieces = [slice(0, 60), slice(60, 61), slice(61, 200)]
    counts = np.zeros(10, np.int64)
    for piece in pieces:
        tally(lead[piece], counts)
    np.testing.assert_array_equal(counts, np.bincount(lead, minlength=10))
    values, z = rng.integers(0, 7, 200).astype(np.int32), rng.normal(size=(200, 2))
    codes, columns = np.zeros((200, 2), np.int32), np.zeros((200, 3))
    for first, stop in pairwise(windows):
        at = np.cumsum(counts) - counts
        for piece in pieces:
            place = places(lead[piece], at)
            place_codes(place, values[piece], 5, codes[first:stop], 1, 3, first)
            place_columns(place, z[piece], columns[first:stop], 1, first)
    np.testing.assert_array_equal(codes[:, 1], 3 * values[order] + 5)
    np.testing.assert_array_equal(columns[:, 1:], z[order])
    assert not codes[:, 0].any()
    assert not columns[:, 0].any()


def test_bits_reach_the_levels_that_share_rows(lead):
    other = np.random.default_rng(2).integers(0, 40, 200).astype(np.int32)
    bits = np.random.default_rng(3).integers(0, 2**32, 9, dtype=np.uint32)
    expected, found = np.zeros((2, 41), np.uint32)
    for a, b in zip(lead, other, strict=True):
        expected[b] |= bits[a]
    for piece in (slice(0, 60), slice(60, 200)):
        reach(lead[piece], bits, other[piece], found)
    np.testing.assert_array_equal(found, expected)


def test_what_does_not_match_is_refused(lead):
    place = places(lead, np.zeros(9, np.int64))
    with pytest.raises(ValueError, match="do not match"):
        place_codes(place, lead[:5], 0, np.zeros((200, 1), np.int32), 0)
    with pytest.raises(ValueError, match="do not match"):
        place_codes(place, lead, 0, np.zeros((200, 1), np.int32), 1)
    with pytest.raises(ValueError, match="do not match"):
        place_columns(place, np.zeros((200, 2)), np.zeros((200, 2)), 1)
    with pytest.raises(ValueError, match="do not match"):
        reach(lead, np.zeros(9, np.uint32), lead[:3], np.zeros(9, np.uint32))
