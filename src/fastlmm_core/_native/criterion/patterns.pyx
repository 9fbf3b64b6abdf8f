"""Patterns of independent units: moments, factors, and what derivatives of the criterion need of each pattern.

The criterion is `core.residuals.criterion`'s. For one pattern of m rows, N units, covariance R = (C'C)^-1 with C lower
triangular, directions R_a (a = 1 .. r), moments M and F = df/dA:

    S_a = C R_a C',   K = C <F, M> C'                                                                       (1)
    f_a   = <N I - K, S_a>,        G = C'(N I - K)C                                                         (2)
    f_ab += <S_a, S_b K + K S_b - N S_b>                                                                    (3)
    A_a  -= sum over pairs of (C'S_a C)_st M_st                                                             (4)

All of it is symmetric, so that (3) and (4) are products of matrices with r rows and a column for each of the
m (m + 1) / 2 pairs. Patterns kept as rows E (m, d) of one unit have K = U F U' and A_a -= U'S_a U with U = C E instead.

Cost: O(r m^3 + r^2 m^2 + r m^2 q) a pattern, q = d (d + 1) / 2; workspace O(r m^2), or O(r d (m + d)) with rows.
Without the GIL, on one thread.
"""

import numpy as np

from libc.math cimport log
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dgemm, dsyrk
from scipy.linalg.cython_lapack cimport dpotrf, dtrtri

from fastlmm_core._native.small cimport FEW, chol, solve_lower

from fastlmm_core.errors import NumericalError

__all__ = ["add_derivatives", "factor", "unit_moments"]

cdef enum:
    LOOPS = 4096  # multiplications up to which loops beat a call of BLAS
    CHUNK = 1 << 16  # numbers of units multiplied at a time


cdef void times(const double *a, const double *b, double *c, Py_ssize_t rows, Py_ssize_t inner, Py_ssize_t columns,
                double alpha, double beta) noexcept nogil:
    """C <- alpha A B + beta C, row-major; beta is zero or one."""
    cdef Py_ssize_t i, j, k
    cdef double x
    cdef int m = <int>columns, n = <int>rows, l = <int>inner
    cdef char no = b"N"
    if rows * inner * columns > LOOPS:
        dgemm(&no, &no, &m, &n, &l, &alpha, <double *> b, &m, <double *> a, &l, &beta, c, &m)
        return
    if beta == 0.0:
        memset(c, 0, rows * columns * sizeof(double))
    for i in range(rows):
        for k in range(inner):
            x = alpha * a[i * inner + k]
            for j in range(columns):
                c[i * columns + j] += x * b[k * columns + j]


cdef void transpose(const double *a, double *out, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    cdef Py_ssize_t i, j
    for i in range(rows):
        for j in range(columns):
            out[j * rows + i] = a[i * columns + j]


cdef int inverse_factor(const double *r, double *root, double *c, Py_ssize_t m) noexcept nogil:
    """Lower triangular C (m, m) with C R C' = I; 1 where R is not positive definite. `root` (m, m) is workspace."""
    cdef Py_ssize_t i, j
    cdef int n = <int>m, info = 0
    cdef char upper = b"U", non_unit = b"N"  # row-major lower triangles are column-major upper ones
    if m <= FEW:
        memcpy(root, r, m * m * sizeof(double))
        if chol(root, m) != 0:
            return 1
        memset(c, 0, m * m * sizeof(double))
        for j in range(m):
            c[j * m + j] = 1.0
            solve_lower(root, c + j, m, m)
        return 0
    memcpy(c, r, m * m * sizeof(double))
    dpotrf(&upper, &n, c, &n, &info)
    if info == 0:
        dtrtri(&upper, &non_unit, &n, c, &n, &info)
    for i in range(m):
        if not c[i * m + i] > 0.0:  # LAPACK lets a NaN pass
            return 1
        for j in range(i + 1, m):
            c[i * m + j] = 0.0
    return info != 0


def factor(const double[:, :, ::1] R not None, const double[::1] counts not None):
    """Inverse factors and inverses of each pattern's covariance.

    Parameters
    ----------
    R : (k, m, m) float64
    counts : (k,) float64
        Units of each pattern.

    Returns
    -------
    C : (k, m, m)
        Lower triangular, R^-1 = C'C.
    P : (k, m, m)
        R^-1.
    logdet : float
        Log-determinant of all units.

    Raises
    ------
    NumericalError
        Some R is not positive definite.
    """
    cdef Py_ssize_t k = R.shape[0], m = R.shape[1], g, i
    if R.shape[2] != m or counts.shape[0] != k:
        raise ValueError(f"covariances {k} x {m} x {R.shape[2]} and {counts.shape[0]} counts do not match")
    C_, P_ = np.empty((k, m, m)), np.empty((k, m, m))
    cdef double[:, :, ::1] C = C_, P = P_
    cdef double[::1] work = np.empty(max(1, m * m))
    cdef double *root = &work[0]
    cdef double *c
    cdef double logdet = 0.0, half
    cdef int status = 0
    with nogil:
        for g in range(k):
            c = &C[g, 0, 0]
            if inverse_factor(&R[g, 0, 0], root, c, m) != 0:
                status = 1
                break
            half = 0.0
            for i in range(m):
                half -= log(c[i * m + i])
            logdet += 2.0 * counts[g] * half
            transpose(c, root, m, m)
            times(root, c, &P[g, 0, 0], m, m, m, 1.0, 0.0)
    if status != 0:
        raise NumericalError("the residual covariance is not positive definite")
    return C_, P_, logdet


cdef struct pattern_t:         # one pattern's figures, and its workspace
    Py_ssize_t m, r, d, pairs, q
    const double *c
    const double *across       # C'
    const double *moments      # (pairs, q), or NULL
    const double *e            # (m, d) where there are no moments
    const double *f            # F (d, d)
    const double *packed       # F's upper triangle, off the diagonal twice
    double n
    double *k                  # K
    double *g                  # N I - K, then scratch
    double *s                  # S_a in rows (s, a), columns t
    double *one
    double *two
    double *left               # (r, pairs)
    double *right
    double *u                  # U (m, d)
    double *uf


cdef void whitened_scores(pattern_t *v) noexcept nogil:
    """K of equation (1) into v.k."""
    cdef Py_ssize_t m = v.m, d = v.d, s, t, pair = 0
    if v.moments == NULL:
        times(v.c, v.e, v.u, m, m, d, 1.0, 0.0)
        times(v.u, v.f, v.uf, m, d, d, 1.0, 0.0)
        transpose(v.u, v.one, m, d)
        times(v.uf, v.one, v.k, m, d, m, 1.0, 0.0)
        return
    times(v.moments, v.packed, v.right, v.pairs, v.q, 1, 1.0, 0.0)
    for s in range(m):
        for t in range(s, m):
            v.one[s * m + t] = v.one[t * m + s] = v.right[pair] if s == t else 0.5 * v.right[pair]
            pair += 1
    times(v.c, v.one, v.two, m, m, m, 1.0, 0.0)
    times(v.two, v.across, v.k, m, m, m, 1.0, 0.0)


cdef void add_pattern(pattern_t *v, const double *directions, double *weights, double *gradient, double *hessian,
                      double *slopes) noexcept nogil:
    """Equations (1) to (4) for one pattern; `directions` is (m, r, m), `weights` (m, m) becomes G."""
    cdef Py_ssize_t m = v.m, r = v.r, d = v.d, pairs = v.pairs, a, s, t, x, y, pair
    cdef int n_r = <int>r, n_pairs = <int>pairs
    cdef char no = b"N", yes = b"T"
    cdef double one = 1.0
    cdef const double *row
    whitened_scores(v)
    for s in range(m):
        for t in range(m):
            v.g[s * m + t] = -v.k[s * m + t]
        v.g[s * m + s] += v.n
    times(v.across, v.g, v.one, m, m, m, 1.0, 0.0)
    times(v.one, v.c, weights, m, m, m, 1.0, 0.0)
    if r == 0:
        return
    times(v.c, directions, v.one, m, m, r * m, 1.0, 0.0)
    times(v.one, v.across, v.s, m * r, m, m, 1.0, 0.0)
    times(v.s, v.k, v.two, m * r, m, m, 1.0, 0.0)
    for a in range(r):
        pair = a * pairs
        for s in range(m):
            row = v.s + (s * r + a) * m
            gradient[a] += v.g[s * m + s] * row[s]
            v.left[pair] = row[s]
            v.right[pair] = 2.0 * v.two[(s * r + a) * m + s] - v.n * row[s]
            pair += 1
            for t in range(s + 1, m):
                gradient[a] += 2.0 * v.g[s * m + t] * row[t]
                v.left[pair] = row[t]
                v.right[pair] = 2.0 * (v.two[(s * r + a) * m + t] + v.two[(t * r + a) * m + s] - v.n * row[t])
                pair += 1
    dgemm(&yes, &no, &n_r, &n_r, &n_pairs, &one, v.left, &n_pairs, v.right, &n_pairs, &one, hessian, &n_r)
    if v.moments == NULL:
        times(v.s, v.u, v.two, m * r, m, d, 1.0, 0.0)
        transpose(v.u, v.uf, m, d)
        times(v.uf, v.two, v.one, d, m, r * d, 1.0, 0.0)
        for a in range(r):
            pair = a * v.q
            for x in range(d):
                for y in range(x, d):
                    slopes[pair] -= v.one[(x * r + a) * d + y]
                    pair += 1
        return
    times(v.s, v.c, v.two, m * r, m, m, 1.0, 0.0)
    times(v.across, v.two, v.one, m, m, r * m, 1.0, 0.0)
    for a in range(r):
        pair = a * pairs
        for s in range(m):
            for t in range(s, m):
                v.left[pair] = v.one[(s * r + a) * m + t]
                pair += 1
    times(v.left, v.moments, slopes, r, pairs, v.q, -1.0, 1.0)


def add_derivatives(const double[:, :, ::1] C not None, const double[:, :, :, ::1] directions not None,
                    const double[::1] counts not None, const double[:, ::1] moments, const double[:, :, ::1] E,
                    const double[:, ::1] F not None, double[::1] gradient not None, double[:, ::1] hessian not None,
                    double[:, ::1] slopes not None):
    """Add a batch's share to the derivatives; the terms of (4) in the criterion that need no pattern are the caller's.

    Parameters
    ----------
    C : (k, m, m)
        Of `factor`.
    directions : (k, m, r, m)
        R_a [s, t] at [s, a, t].
    counts : (k,)
    moments : (k * pairs, q) or None
    E : (k, m, d) or None
        Rows, where there are no moments.
    F : (d, d)
        Symmetric.
    gradient, hessian, slopes : (r,), (r, r), (r, q)
        Added to; slopes are the upper triangles of A_a, row by row. The Hessian is symmetric up to rounding.

    Returns
    -------
    (k, m, m)
        G of each pattern.
    """
    cdef Py_ssize_t k = C.shape[0], m = C.shape[1], r = directions.shape[2], d = F.shape[0], g, x, y
    cdef Py_ssize_t pairs = m * (m + 1) // 2, q = d * (d + 1) // 2, block
    cdef bint rows = moments is None
    if (not m == C.shape[2] == directions.shape[1] == directions.shape[3] or directions.shape[0] != k
            or counts.shape[0] != k or F.shape[1] != d or gradient.shape[0] != r
            or not r == hessian.shape[0] == hessian.shape[1] == slopes.shape[0] or slopes.shape[1] != q):
        raise ValueError("the covariances, directions and figures do not match")
    if rows and (E is None or E.shape[0] != k or E.shape[1] != m or E.shape[2] != d):
        raise ValueError("the rows do not match")
    if not rows and (moments.shape[0] != k * pairs or moments.shape[1] != q):
        raise ValueError("the moments do not match")
    G_ = np.empty((k, m, m))
    if k == 0 or m == 0:
        return G_
    cdef double[:, :, ::1] G = G_
    cdef pattern_t v
    block = max(1, m * m * max(r, 1), m * max(r, 1) * d if rows else 1, d * max(r, 1) * d if rows else 1)
    cdef double[::1] work = np.empty(3 * m * m + 3 * block + 2 * (max(r, 1) * pairs) + 2 * m * d + q)
    cdef double *packed = &work[0]
    v.m, v.r, v.d, v.pairs, v.q = m, r, d, pairs, q
    v.k = packed + q
    v.g = v.k + m * m
    cdef double *across = v.g + m * m
    v.across = across
    v.s = across + m * m
    v.one = v.s + block
    v.two = v.one + block
    v.left = v.two + block
    v.right = v.left + max(r, 1) * pairs
    v.u = v.right + max(r, 1) * pairs
    v.uf = v.u + m * d
    v.packed = packed
    v.f = &F[0, 0]
    v.moments = v.e = NULL
    g = 0
    for x in range(d):
        for y in range(x, d):
            packed[g] = F[x, y] if x == y else 2.0 * F[x, y]
            g += 1
    with nogil:
        for g in range(k):
            v.c = &C[g, 0, 0]
            v.n = counts[g]
            if rows:
                v.e = &E[g, 0, 0]
            else:
                v.moments = &moments[g * pairs, 0]
            transpose(v.c, across, m, m)
            add_pattern(&v, &directions[g, 0, 0, 0] if r else NULL, &G[g, 0, 0], &gradient[0] if r else NULL,
                        &hessian[0, 0] if r else NULL, &slopes[0, 0] if r else NULL)
    return G_


def unit_moments(const double[:, ::1] D not None, const int64_t[:, :] units not None, double[:, ::1] out not None):
    """Moments of one pattern from the rows of its units.

    Parameters
    ----------
    D : (n, d) float64
    units : (u, m) int64
        Rows of D that each unit has.
    out : (pairs, q) float64
        Filled in: for s <= t, sum_i d_is[a] d_it[b] + d_is[b] d_it[a] over a <= b; half of that where s is t.
    """
    cdef Py_ssize_t u = units.shape[0], m = units.shape[1], n = D.shape[0], d = D.shape[1], wide = m * d, step
    cdef Py_ssize_t i, j, s, t, a, b, at, low, high
    if out.shape[0] != m * (m + 1) // 2 or out.shape[1] != d * (d + 1) // 2:
        raise ValueError(f"{out.shape[0]} x {out.shape[1]} moments do not belong to {m} rows of {d} columns")
    if wide == 0:
        return
    step = max(1, min(u, CHUNK // wide))
    cdef double[:, ::1] block = np.empty((step, wide)), M = np.zeros((wide, wide))
    cdef int rows, columns = <int>wide
    cdef double one = 1.0
    cdef char lower = b"L", no = b"N"  # row-major upper triangles are column-major lower ones
    cdef bint inside = True
    with nogil:
        low = 0
        while low < u and inside:
            high = min(u, low + step)
            for i in range(low, high):
                for j in range(m):
                    at = units[i, j]
                    if at < 0 or at >= n:
                        inside = False
                        break
                    memcpy(&block[i - low, j * d], &D[at, 0], d * sizeof(double))
            rows = <int>(high - low)
            dsyrk(&lower, &no, &columns, &rows, &one, &block[0, 0], &columns, &one, &M[0, 0], &columns)
            low = high
        at = 0
        for s in range(m):
            for t in range(s, m):
                i = 0
                for a in range(d):
                    for b in range(a, d):
                        out[at, i] = M[s * d + a, t * d + b]
                        if s != t:
                            out[at, i] += M[s * d + b, t * d + a]
                        i += 1
                at += 1
    if not inside:
        raise ValueError(f"rows outside of 0 .. {n - 1}")
