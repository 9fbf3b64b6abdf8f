"""Rows into the order of the leading factor's levels, a column at a time and without a list of their numbers.

    level_starts:   (q + 1,) where each level's rows begin, by counting
    place_codes, place_columns:  out[start of row r's level + rows of it so far] = values[r], the rows' order kept
    reach:          bits that travel from the levels of one factor to those of another, through the rows

Each is O(n), and its memory that of its arrays; a list of row numbers would take 8 bytes a row more. Codes lie in
[0, q): the caller checks.
"""

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint32_t

__all__ = ["level_starts", "place_codes", "place_columns", "reach"]


def level_starts(const int32_t[::1] codes, Py_ssize_t q):
    """Where each level's rows begin when they are sorted by level.

    Parameters
    ----------
    codes : (n,) int32
    q : int

    Returns
    -------
    (q + 1,) int64
    """
    cdef Py_ssize_t n = codes.shape[0], i
    out = np.zeros(q + 1, np.int64)
    cdef int64_t[::1] ptr = out
    with nogil:
        for i in range(n):
            ptr[codes[i] + 1] += 1
        for i in range(q):
            ptr[i + 1] += ptr[i]
    return out


cdef int64_t[::1] cursors(const int64_t[::1] ptr):
    """A copy of where levels begin, to be moved on."""
    return np.array(ptr[: ptr.shape[0] - 1], np.int64)


def place_codes(const int64_t[::1] ptr, const int32_t[::1] lead, const int32_t[::1] values, Py_ssize_t shift,
                int32_t[:, ::1] out, Py_ssize_t column, Py_ssize_t scale=1):
    """out[:, column] = scale * values + shift of the rows, sorted by ``lead``.

    Parameters
    ----------
    ptr : (q + 1,) int64
        `level_starts` of ``lead``.
    lead, values : (n,) int32
    shift : int
    out : (n, f) int32
    column : int
    scale : int
    """
    cdef Py_ssize_t n = lead.shape[0], i
    cdef int64_t[::1] at = cursors(ptr)
    cdef int64_t place
    if values.shape[0] != n or out.shape[0] != n or not 0 <= column < out.shape[1]:
        raise ValueError("rows or columns do not match")
    with nogil:
        for i in range(n):
            place = at[lead[i]]
            at[lead[i]] = place + 1
            out[place, column] = <int32_t> (scale * values[i] + shift)


def place_columns(const int64_t[::1] ptr, const int32_t[::1] lead, const double[:, ::1] values, double[:, ::1] out,
                  Py_ssize_t column):
    """out[:, column:column + l] = values of the rows, sorted by ``lead``.

    Parameters
    ----------
    ptr, lead
        As of `place_codes`.
    values : (n, l) float64
    out : (n, k) float64
    column : int
    """
    cdef Py_ssize_t n = lead.shape[0], l = values.shape[1], i, c
    cdef int64_t[::1] at = cursors(ptr)
    cdef int64_t place
    if values.shape[0] != n or out.shape[0] != n or not 0 <= column <= out.shape[1] - l:
        raise ValueError("rows or columns do not match")
    with nogil:
        for i in range(n):
            place = at[lead[i]]
            at[lead[i]] = place + 1
            for c in range(l):
                out[place, column + c] = values[i, c]


def reach(const int32_t[::1] source, const uint32_t[::1] bits, const int32_t[::1] target, Py_ssize_t q):
    """Bits of the levels of one factor that the rows of each level of another meet.

    Parameters
    ----------
    source : (n,) int32
        Levels of the factor whose levels have the bits.
    bits : (levels,) uint32
    target : (n,) int32
    q : int
        Levels of the other.

    Returns
    -------
    (q,) uint32
    """
    cdef Py_ssize_t n = source.shape[0], i
    out = np.zeros(q, np.uint32)
    cdef uint32_t[::1] found = out
    if target.shape[0] != n:
        raise ValueError("rows do not match")
    with nogil:
        for i in range(n):
            found[target[i]] |= bits[source[i]]
    return out
