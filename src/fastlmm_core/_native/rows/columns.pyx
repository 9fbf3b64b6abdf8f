"""R of a few columns by the Cholesky factor of their Gram matrix, and the inverse of a small triangle.

For columns A (n, w), rows times the roots of their weights: G = A'A, scaled to a unit diagonal, G = R'R; R is given in
the columns' own units. In models of some hundred rows an array operation takes longer than all of this. Cost: O(n w^2).
"""

import numpy as np

from libc.math cimport sqrt
from libc.stdint cimport int32_t

from fastlmm_core._native.small cimport FEW as FEW_COLUMNS, chol, solve_lower, solve_lower_t

__all__ = ["FEW", "all_finite", "extent", "gram_factor", "least", "present", "small_inverse", "triangle_inverse"]

FEW = FEW_COLUMNS  # columns that `small_inverse` takes


def gram_factor(const double[:, :] columns not None, const double[::1] root, double tolerance, double smallest,
                double largest):
    """Upper triangular R (w, w) with R'R the Gram matrix, its diagonal positive.

    Parameters
    ----------
    columns : (n, w) float64
        w at most 8.
    root : (n,) float64 or None
        Roots of the weights.
    tolerance : float
        Least squared pivot of the scaled Gram matrix.
    smallest, largest : float
        Between which the columns' squared norms have to lie.

    Returns
    -------
    (w, w) or None
        None where a pivot or a norm is beyond these.
    """
    cdef Py_ssize_t n = columns.shape[0], w = columns.shape[1], i, a, b
    cdef double v, x
    cdef double gram[FEW_COLUMNS * FEW_COLUMNS]
    cdef double scale[FEW_COLUMNS]
    cdef double row[FEW_COLUMNS]
    cdef int status = 0
    if w > FEW_COLUMNS:
        raise ValueError(f"{w} columns: at most {FEW_COLUMNS} are few")
    if root is not None and root.shape[0] != n:
        raise ValueError(f"{root.shape[0]} roots of weights for {n} rows")
    out_ = np.zeros((w, w))
    cdef double[:, ::1] out = out_
    with nogil:
        for a in range(w * w):
            gram[a] = 0.0
        for i in range(n):
            v = 1.0 if root is None else root[i]
            for a in range(w):
                x = columns[i, a] * v
                row[a] = x
                for b in range(a + 1):
                    gram[a * w + b] += x * row[b]
        for a in range(w):
            if not smallest < gram[a * w + a] < largest:
                status = 1
            scale[a] = sqrt(gram[a * w + a])
        if status == 0:
            for a in range(w):
                for b in range(a + 1):
                    gram[a * w + b] /= scale[a] * scale[b]
            status = chol(gram, w)
        if status == 0:
            for a in range(w):
                if not gram[a * w + a] * gram[a * w + a] > tolerance:
                    status = 1
                for b in range(a + 1):
                    out[b, a] = gram[a * w + b] * scale[a]
    return out_ if status == 0 else None


def small_inverse(const double[:, :] matrix not None):
    """Inverse (w, w) of a positive definite matrix of at most `FEW` columns, from its lower triangle."""
    cdef Py_ssize_t w = matrix.shape[0], i, j
    cdef int status
    cdef double root[FEW_COLUMNS * FEW_COLUMNS]
    if matrix.shape[1] != w or w > FEW_COLUMNS:
        raise ValueError(f"a matrix of {w} x {matrix.shape[1]}: at most {FEW_COLUMNS} columns are few")
    out_ = np.zeros((w, w))
    if w == 0:
        return out_
    cdef double[:, ::1] out = out_
    for i in range(w):
        for j in range(w):
            root[i * w + j] = matrix[i, j]
        out[i, i] = 1.0
    status = chol(root, w)
    if status != 0:
        raise np.linalg.LinAlgError("the matrix is not positive definite")
    for j in range(w):
        solve_lower(root, &out[0, j], w, w)
        solve_lower_t(root, &out[0, j], w, w)
    return out_


def triangle_inverse(const double[:, :] r not None):
    """Inverse (w, w) of an upper triangle without zeros on its diagonal, by back substitution."""
    cdef Py_ssize_t w = r.shape[0], i, j, k
    cdef double s
    if r.shape[1] != w:
        raise ValueError(f"a triangle of {w} x {r.shape[1]}")
    out_ = np.zeros((w, w))
    cdef double[:, ::1] out = out_
    with nogil:
        for j in range(w):
            out[j, j] = 1.0 / r[j, j]
            for i in range(j - 1, -1, -1):
                s = 0.0
                for k in range(i + 1, j + 1):
                    s += r[i, k] * out[k, j]
                out[i, j] = -s / r[i, i]
    return out_


def all_finite(const double[::1] values not None):
    """Whether few values are all finite: one loop, where arrays of masks take longer than the values."""
    cdef Py_ssize_t i
    cdef double s = 0.0
    for i in range(values.shape[0]):
        s += 0.0 * values[i]  # NaN of infinity too
    return s == 0.0


def extent(const double[:] values not None):
    """The least and the largest of one value or more, as floats; NaN for both where one is NaN."""
    cdef Py_ssize_t i
    cdef double low, high, s = 0.0, x
    if values.shape[0] == 0:
        raise ValueError("no values have no extent")
    low = high = values[0]
    for i in range(values.shape[0]):
        x = values[i]
        low = x if x < low else low
        high = x if x > high else high
        s += x if x != x else 0.0
    if s != s:
        low = high = s
    return low, high


def least(const int32_t[:] codes not None):
    """The least of some codes; 0 of none."""
    cdef Py_ssize_t i
    cdef int32_t low = codes[0] if codes.shape[0] else 0
    for i in range(codes.shape[0]):
        low = codes[i] if codes[i] < low else low
    return low


def present(const int32_t[:] codes not None, Py_ssize_t q):
    """Whether each of the numbers 0 .. q - 1 is among some codes (n,), and how many are; codes below 0 are missing.

    Raises
    ------
    IndexError
        A code is too large.
    """
    cdef Py_ssize_t i, count = 0
    cdef int32_t code
    out_ = np.zeros(q, np.bool_)
    cdef unsigned char[::1] out = out_.view(np.uint8)
    for i in range(codes.shape[0]):
        code = codes[i]
        if code >= q:
            raise IndexError(f"code {code} of row {i} is not among {q} levels")
        if code >= 0:
            count += not out[code]
            out[code] = True
    return out_, count
