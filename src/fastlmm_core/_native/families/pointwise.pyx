"""Loops over rows: log densities, scores and weights of a family at given linear predictors.

In: y, eta, m (n,) and the family's codes. Out: arrays (n,) written in place, times ``freq`` where rows stand for
several. Cost: one pass; 30-40 ns a row for the logit link. See `row.pxd` for what the numbers are.
"""

import numpy as np

from libc.string cimport memset

from fastlmm_core._native.families.links cimport inverse_link
from fastlmm_core._native.families.row cimport family_row, row_constant, row_t

__all__ = ["constants", "link_derivatives", "row_derivatives"]


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
