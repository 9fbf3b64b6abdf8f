"""Rows into the order of the leading factor's levels, piece by piece, and bits that travel through them.

    tally:          counts[code] += 1
    places:         where each row goes: the start of its level + rows of it so far
    place_codes, place_columns:  out[place - first] = values, of the places that out has
    reach:          bits that travel from the levels of one factor to those of another, through the rows

Rows come in pieces, whose order is kept, and go into windows of the sorted rows, so that neither has to be in memory at
once: n rows in w windows take w passes of O(n). Codes lie in [0, q): the caller checks.
"""

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint32_t

__all__ = ["place_codes", "place_columns", "places", "reach", "tally"]


def tally(const int32_t[::1] codes, int64_t[::1] counts):
    """Count rows of each level.

    Parameters
    ----------
    codes : (n,) int32
    counts : (q,) int64
        Added to.
    """
    cdef Py_ssize_t i
    with nogil:
        for i in range(codes.shape[0]):
            counts[codes[i]] += 1


def places(const int32_t[::1] lead, int64_t[::1] at):
    """Where rows go that are sorted by level.

    Parameters
    ----------
    lead : (n,) int32
    at : (q,) int64
        The next place of each level; moved on.

    Returns
    -------
    (n,) int64
    """
    cdef Py_ssize_t n = lead.shape[0], i
    out_ = np.empty(n, np.int64)
    cdef int64_t[::1] out = out_
    with nogil:
        for i in range(n):
            out[i] = at[lead[i]]
            at[lead[i]] += 1
    return out_


def place_codes(const int64_t[::1] place, const int32_t[::1] values, Py_ssize_t shift, int32_t[:, ::1] out,
                Py_ssize_t column, Py_ssize_t scale=1, Py_ssize_t first=0):
    """out[place - first, column] = scale * values + shift, where ``out`` has such a row.

    Parameters
    ----------
    place : (n,) int64
        From `places`.
    values : (n,) int32
    shift : int
    out : (m, f) int32
        Sorted rows from ``first`` on.
    column, scale, first : int
    """
    cdef Py_ssize_t n = place.shape[0], m = out.shape[0], i, at
    if values.shape[0] != n or not 0 <= column < out.shape[1]:
        raise ValueError("rows or columns do not match")
    with nogil:
        for i in range(n):
            at = place[i] - first
            if 0 <= at < m:
                out[at, column] = <int32_t> (scale * values[i] + shift)


def place_columns(const int64_t[::1] place, const double[:, ::1] values, double[:, ::1] out, Py_ssize_t column,
                  Py_ssize_t first=0):
    """out[place - first, column:column + l] = values, where ``out`` has such a row.

    Parameters
    ----------
    place : (n,) int64
        From `places`.
    values : (n, l) float64
    out : (m, k) float64
        Sorted rows from ``first`` on.
    column, first : int
    """
    cdef Py_ssize_t n = place.shape[0], m = out.shape[0], l = values.shape[1], i, c, at
    if values.shape[0] != n or not 0 <= column <= out.shape[1] - l:
        raise ValueError("rows or columns do not match")
    with nogil:
        for i in range(n):
            at = place[i] - first
            if 0 <= at < m:
                for c in range(l):
                    out[at, column + c] = values[i, c]


def reach(const int32_t[::1] source, const uint32_t[::1] bits, const int32_t[::1] target, uint32_t[::1] found):
    """Add the bits of the levels of one factor to the levels of another that share rows with them.

    Parameters
    ----------
    source : (n,) int32
        Levels of the factor whose levels have the bits.
    bits : (levels,) uint32
    target : (n,) int32
    found : (q,) uint32
        Of the other's levels; added to.
    """
    cdef Py_ssize_t n = source.shape[0], i
    if target.shape[0] != n:
        raise ValueError("rows do not match")
    with nogil:
        for i in range(n):
            found[target[i]] |= bits[source[i]]
