"""Rows sorted by level a column at a time, and bits that travel through the rows, against NumPy."""

import numpy as np
import pytest

from fastlmm_core._native.iterative.sorting import level_starts, place_codes, place_columns, reach


@pytest.fixture
def lead():
    return np.random.default_rng(0).integers(0, 9, 200).astype(np.int32)


def test_rows_are_sorted_by_level_in_their_order(lead):
    rng = np.random.default_rng(1)
    order = np.argsort(lead, kind="stable")
    ptr = level_starts(lead, 10)
    np.testing.assert_array_equal(ptr, np.searchsorted(lead[order], np.arange(11)))
    values, z = rng.integers(0, 7, 200).astype(np.int32), rng.normal(size=(200, 2))
    codes, columns = np.zeros((200, 2), np.int32), np.zeros((200, 3))
    place_codes(ptr, lead, values, 5, codes, 1, 3)
    place_columns(ptr, lead, z, columns, 1)
    np.testing.assert_array_equal(codes[:, 1], 3 * values[order] + 5)
    np.testing.assert_array_equal(columns[:, 1:], z[order])
    assert not codes[:, 0].any()
    assert not columns[:, 0].any()


def test_bits_reach_the_levels_that_share_rows(lead):
    other = np.random.default_rng(2).integers(0, 40, 200).astype(np.int32)
    bits = np.random.default_rng(3).integers(0, 2**32, 9, dtype=np.uint32)
    expected = np.zeros(41, np.uint32)
    for a, b in zip(lead, other, strict=True):
        expected[b] |= bits[a]
    np.testing.assert_array_equal(reach(lead, bits, other, 41), expected)


def test_what_does_not_match_is_refused(lead):
    ptr = level_starts(lead, 9)
    with pytest.raises(ValueError, match="do not match"):
        place_codes(ptr, lead, lead[:5], 0, np.zeros((200, 1), np.int32), 0)
    with pytest.raises(ValueError, match="do not match"):
        place_codes(ptr, lead, lead, 0, np.zeros((200, 1), np.int32), 1)
    with pytest.raises(ValueError, match="do not match"):
        place_columns(ptr, lead, np.zeros((200, 2)), np.zeros((200, 2)), 1)
    with pytest.raises(ValueError, match="do not match"):
        reach(lead, np.zeros(9, np.uint32), lead[:3], 9)
