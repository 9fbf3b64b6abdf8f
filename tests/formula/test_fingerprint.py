"""Fingerprints of rows: the same for any order and cut, another one for other rows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastlmm_core.formula.fingerprint import fingerprint, fingerprint_of_columns

FLOATS = st.sampled_from([0.0, -0.0, 1.0, 2.0, 1e-300, 3.5])


@settings(max_examples=40, deadline=None)
@given(rows=arrays(np.float64, (9, 4), elements=FLOATS), seed=st.integers(0, 99), cut=st.integers(0, 9))
def test_order_and_cuts_do_not_matter(rows, seed, cut):
    other = rows[np.random.default_rng(seed).permutation(9)]
    whole = np.array(fingerprint(rows[:, 0], rows[:, 1], rows[:, 2]), np.uint64)
    parts = [np.array(fingerprint(*part.T[:3]), np.uint64) for part in (other[:cut], other[cut:])]
    assert (whole == parts[0] + parts[1]).all()
    columns = fingerprint_of_columns(rows[:, 0], rows[:, 1:])
    assert (
        columns == sum(fingerprint_of_columns(part[:, 0], part[:, 1:]) for part in (other[:cut], other[cut:]))
    ).all()


def test_other_rows_differ():
    rng = np.random.default_rng(0)
    y, w, o = rng.normal(size=(3, 50))
    swapped = w.copy()
    swapped[[0, 1]] = w[[1, 0]]
    assert fingerprint(y, w, o) == fingerprint(y, w, o)
    assert fingerprint(y, None, None) == fingerprint(y, np.ones(50), np.zeros(50))
    for other in ((y + 1e-15 * (np.arange(50) == 3), w, o), (y, swapped, o), (y, w, -o), (y[:-1], w[:-1], o[:-1])):
        assert fingerprint(*other) != fingerprint(y, w, o)
