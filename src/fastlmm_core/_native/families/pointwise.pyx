"""Loops over rows: log densities, scores and weights of a family at given linear predictors.

In: y, eta, m (n,) and the family's codes. Out: arrays (n,) written in place, times ``freq`` where rows stand for
several. Cost: one pass; 30-40 ns a row for the logit link. See `row.pxd` for what the numbers are.
"""

import numpy as np

from cython.parallel cimport prange
from libc.string cimport memset

from fastlmm_core._native.families.links cimport inverse_link
from fastlmm_core._native.families.row cimport family_row, row_constant, row_t

__all__ = ["constants", "link_derivatives", "row_derivatives", "working_rows"]

cdef enum:
    CHUNK = 4096  # rows summed apart, so that the number of threads does not change a sum


def link_derivatives(int link, const double[::1] eta):
    """(4, n): mu and its first three derivatives in eta."""
    cdef Py_ssize_t n = eta.shape[0], i, j
    cdef double m[4]
    out_ = np.empty((4, n))
    cdef double[:, ::1] out = out_
    with nogil:
        for i in range(n):
            inverse_link(link, eta[i], m)
            for j in range(4):
                out[j, i] = m[j]
    return out_


def row_derivatives(int family, int link, const double[::1] y, const double[::1] eta, const double[::1] m,
                    double rho, bint full=True):
    """(11, n): l, s, w, k, we, ke, lr, sr, wr, wer, lrr of each row, see `row.pxd`."""
    cdef Py_ssize_t n = eta.shape[0], i
    cdef row_t o
    out_ = np.empty((11, n))
    cdef double[:, ::1] out = out_
    if y.shape[0] != n or m.shape[0] != n:
        raise ValueError("y, eta and m differ in length")
    memset(&o, 0, sizeof(row_t))
    with nogil:
        for i in range(n):
            family_row(family, link, y[i], eta[i], m[i], rho, full, &o)
            out[0, i], out[1, i], out[2, i], out[3, i], out[4, i], out[5, i] = o.l, o.s, o.w, o.k, o.we, o.ke
            out[6, i], out[7, i], out[8, i], out[9, i], out[10, i] = o.lr, o.sr, o.wr, o.wer, o.lrr
    return out_


def working_rows(int family, int link, const double[::1] y, const double[::1] eta, const double[::1] m,
                 const double[::1] freq, double rho, double[:, ::1] out, bint full, int threads):
    """Scores and weights of the rows, times ``freq`` unless that is empty.

    Parameters
    ----------
    out : (3, n), (5, n) or (8, n)
        Filled in: s, w, we; where ``full`` k and ke as well, and sr, wr and wer if there is room.

    Returns
    -------
    l, lr, lrr : float
        Sums of the log density and, where ``full``, of its derivatives in rho.
    """
    cdef Py_ssize_t n = eta.shape[0], room = out.shape[0], n_chunks = (n + CHUNK - 1) // CHUNK, c
    cdef double[:, ::1] sums = np.zeros((n_chunks, 3))
    cdef const double *f = &freq[0] if freq.shape[0] else NULL
    if y.shape[0] != n or m.shape[0] != n or out.shape[1] != n or freq.shape[0] not in (0, n) or room < 3 + 2 * full:
        raise ValueError("y, eta, m, freq and out do not belong together")
    for c in prange(n_chunks, schedule="static", num_threads=threads, nogil=True):
        rows_chunk(family, link, &y[0], &eta[0], &m[0], f, rho, &out[0, 0], n, room, full, c * CHUNK,
                   min(n, (c + 1) * CHUNK), &sums[c, 0])
    total = np.asarray(sums).sum(axis=0)
    return float(total[0]), float(total[1]), float(total[2])


cdef void rows_chunk(int family, int link, const double *y, const double *eta, const double *m, const double *freq,
                     double rho, double *out, Py_ssize_t n, Py_ssize_t room, bint full, Py_ssize_t first,
                     Py_ssize_t last, double *sums) noexcept nogil:
    """`working_rows` of rows ``first`` to ``last``."""
    cdef Py_ssize_t i
    cdef double f = 1.0
    cdef row_t o
    memset(&o, 0, sizeof(row_t))
    for i in range(first, last):
        family_row(family, link, y[i], eta[i], m[i], rho, full, &o)
        if freq is not NULL:
            f = freq[i]
        sums[0] += f * o.l
        out[i], out[n + i], out[2 * n + i] = f * o.s, f * o.w, f * o.we
        if full:
            sums[1] += f * o.lr
            sums[2] += f * o.lrr
            out[3 * n + i], out[4 * n + i] = f * o.k, f * o.ke
            if room >= 8:
                out[5 * n + i], out[6 * n + i], out[7 * n + i] = f * o.sr, f * o.wr, f * o.wer


def constants(int family, const double[::1] y, const double[::1] m, const double[::1] freq, double rho):
    """Sum over rows of what `row_derivatives` leaves out of l, with its first two derivatives in rho.

    ``freq`` is empty where every row counts once.
    """
    cdef Py_ssize_t n = y.shape[0], i
    cdef double total = 0.0, first = 0.0, second = 0.0, dr = 0.0, drr = 0.0, c, f = 1.0
    cdef bint counted = freq.shape[0] > 0
    with nogil:
        for i in range(n):
            if counted:
                f = freq[i]
            c = row_constant(family, y[i], m[i], rho, &dr, &drr)
            total += f * c
            first += f * dr
            second += f * drr
    return total, first, second
