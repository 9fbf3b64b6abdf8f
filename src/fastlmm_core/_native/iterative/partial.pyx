"""A sparse Cholesky factor of the first k rows, and what conjugate gradients and probes ask of the rest, the core.

Elimination, in place, of the upper triangle by rows, columns ascending and the diagonal first, fill already there. Row
i has d_i on its diagonal and e_i beside it, f_i = e_i / d_i; then

    eliminate:         S_ab -= e_a e_b / d             of all columns a <= b of the row
    eliminate_change:  dS_ab += f_a f_b dd - de_a f_b - f_a de_b
    down, up:          b_a -= f_a b_i;     x_i = b_i / d_i - sum_a f_a x_a
    inverse_above:     Z_ia = - sum_b f_b Z_ba,  Z_ii = 1 / d_i - sum_a f_a Z_ia       (Takahashi, from the core's Z)

An update finds its columns by a walk along row a: sum over the rows' entries of the lengths of the rows they meet.

The core by rows, both triangles (T has a diagonal of ones, N = T - I one of zeros):

    powers:            (N^2)_ij, (N^3)_ij on the pattern, and the sum of the squares of all of N^2
    product:           T x of eight columns
    gradients:         T x = b by conjugate gradients, three passes over vectors an iteration

Workspace: k numbers for a row of N^2; three blocks (k, 8) of the solver.
"""

import numpy as np

from libc.math cimport sqrt
from libc.stdint cimport int32_t, int64_t

__all__ = ["down", "eliminate", "eliminate_change", "gradients", "inverse_above", "powers", "product", "up"]

cdef enum:
    WIDTH = 8


def eliminate(const int64_t[::1] ptr, const int32_t[::1] idx, Py_ssize_t k, double[::1] values):
    """Eliminate the first k rows; ``values`` (nnz,) of the upper triangle are overwritten.

    Returns
    -------
    int
        The first row whose pivot is not positive; k where all are.
    """
    cdef Py_ssize_t i, a, b, at
    cdef double d, f
    with nogil:
        for i in range(k):
            d = values[ptr[i]]
            if not d > 0.0:
                break
            for a in range(ptr[i] + 1, ptr[i + 1]):
                f = values[a] / d
                at = ptr[idx[a]]
                for b in range(a, ptr[i + 1]):
                    while idx[at] != idx[b]:
                        at += 1
                    values[at] -= f * values[b]
        else:
            i = k
    return i


def eliminate_change(const int64_t[::1] ptr, const int32_t[::1] idx, Py_ssize_t k, const double[::1] values,
                     double[::1] change):
    """What the elimination makes of a symmetric change of the matrix, in place.

    Parameters
    ----------
    ptr, idx, k
        As of `eliminate`.
    values : (nnz,)
        After `eliminate`.
    change : (nnz,)

    Returns
    -------
    float
        Sum of dd_i / d_i.
    """
    cdef Py_ssize_t i, a, b, at
    cdef double d, dd, fa, fb, total = 0.0
    with nogil:
        for i in range(k):
            d, dd = values[ptr[i]], change[ptr[i]]
            total += dd / d
            for a in range(ptr[i] + 1, ptr[i + 1]):
                fa = values[a] / d
                at = ptr[idx[a]]
                for b in range(a, ptr[i + 1]):
                    fb = values[b] / d
                    while idx[at] != idx[b]:
                        at += 1
                    change[at] += fa * fb * dd - change[a] * fb - fa * change[b]
    return total


def down(const int64_t[::1] ptr, const int32_t[::1] idx, Py_ssize_t k, const double[::1] values, double[:, ::1] b):
    """Right-hand sides (m, c) of the core in the rows from k on, in place."""
    cdef Py_ssize_t i, a, c, n = b.shape[1]
    cdef double f
    with nogil:
        for i in range(k):
            for a in range(ptr[i] + 1, ptr[i + 1]):
                f = values[a] / values[ptr[i]]
                for c in range(n):
                    b[idx[a], c] -= f * b[i, c]


def up(const int64_t[::1] ptr, const int32_t[::1] idx, Py_ssize_t k, const double[::1] values, double[:, ::1] x):
    """Solutions (m, c) from those of the core in the rows from k on and what `down` left in the others, in place."""
    cdef Py_ssize_t i, a, c, n = x.shape[1]
    cdef double d
    with nogil:
        for i in range(k - 1, -1, -1):
            d = values[ptr[i]]
            for c in range(n):
                x[i, c] /= d
            for a in range(ptr[i] + 1, ptr[i + 1]):
                for c in range(n):
                    x[i, c] -= values[a] / d * x[idx[a], c]


def inverse_above(const int64_t[::1] ptr, const int32_t[::1] idx, Py_ssize_t k, const double[::1] values,
                  double[::1] Z):
    """Entries (nnz,) of the inverse on the pattern of the rows before k, from those of the core, in place."""
    cdef Py_ssize_t i, a, b, at
    cdef double d, fa, fb
    with nogil:
        for i in range(k - 1, -1, -1):
            d = values[ptr[i]]
            for a in range(ptr[i], ptr[i + 1]):
                Z[a] = 0.0
            for a in range(ptr[i] + 1, ptr[i + 1]):
                fa = values[a] / d
                at = ptr[idx[a]]
                Z[a] -= fa * Z[at]
                for b in range(a + 1, ptr[i + 1]):
                    fb = values[b] / d
                    while idx[at] != idx[b]:
                        at += 1
                    Z[a] -= fb * Z[at]
                    Z[b] -= fa * Z[at]
            Z[ptr[i]] = 1.0 / d
            for a in range(ptr[i] + 1, ptr[i + 1]):
                Z[ptr[i]] -= values[a] / d * Z[a]


def powers(const int64_t[::1] ptr, const int32_t[::1] idx, const double[::1] n):
    """N^2 and N^3 on the pattern of N.

    Parameters
    ----------
    ptr : (k + 1,) int64
    idx : (nnz,) int32
    n : (nnz,)
        N, symmetric, both triangles.

    Returns
    -------
    second, third : (nnz,)
    fourth : float
        tr N^4.
    """
    cdef Py_ssize_t k = ptr.shape[0] - 1, i, j, a, b
    out = np.zeros((2, idx.shape[0]))
    cdef double[:, ::1] result = out
    cdef double[::1] row = np.zeros(k)
    cdef double fourth = 0.0, total
    with nogil:
        for i in range(k):
            for a in range(ptr[i], ptr[i + 1]):
                if n[a] != 0.0:
                    j = idx[a]
                    for b in range(ptr[j], ptr[j + 1]):
                        row[idx[b]] += n[a] * n[b]
            for a in range(ptr[i], ptr[i + 1]):
                j = idx[a]
                result[0, a] = row[j]
                total = 0.0
                for b in range(ptr[j], ptr[j + 1]):
                    total += n[b] * row[idx[b]]
                result[1, a] = total
            for a in range(ptr[i], ptr[i + 1]):  # each of the row's numbers once: they are cleared as they are read
                j = idx[a]
                for b in range(ptr[j], ptr[j + 1]):
                    fourth += row[idx[b]] * row[idx[b]]
                    row[idx[b]] = 0.0
    return out[0], out[1], fourth


cdef void multiply(const int64_t[::1] ptr, const int32_t[::1] idx, const double[::1] values, const double[:, ::1] x,
                   double[:, ::1] out) noexcept nogil:
    cdef Py_ssize_t i, a, c
    cdef double[WIDTH] total
    cdef const double* row
    cdef double v
    for i in range(ptr.shape[0] - 1):
        for c in range(WIDTH):
            total[c] = 0.0
        for a in range(ptr[i], ptr[i + 1]):
            v, row = values[a], &x[idx[a], 0]
            for c in range(WIDTH):
                total[c] += v * row[c]
        for c in range(WIDTH):
            out[i, c] = total[c]


def product(const int64_t[::1] ptr, const int32_t[::1] idx, const double[::1] values, const double[:, ::1] x):
    """T x (k, 8) of a matrix by rows."""
    out = np.empty((x.shape[0], WIDTH))
    cdef double[:, ::1] result = out
    with nogil:
        multiply(ptr, idx, values, x, result)
    return out


def gradients(const int64_t[::1] ptr, const int32_t[::1] idx, const double[::1] values, const double[:, ::1] b,
              double[:, ::1] x, double tol, Py_ssize_t limit):
    """Solve T x = b for eight columns by conjugate gradients, each with its own step lengths.

    Parameters
    ----------
    ptr, idx, values
        T by rows, both triangles.
    b : (k, 8)
    x : (k, 8)
        Where to start; the solutions. A column that is further from its right-hand side than zero starts at zero, so
        that a right-hand side of zero, as at a variance of zero, has its solution at once.
    tol : float
        Every column's residual relative to its right-hand side.
    limit : int

    Returns
    -------
    int
        Iterations; ``limit`` where these were not enough, -1 where T is not positive definite or a right-hand side
        is not finite.
    """
    cdef Py_ssize_t m = b.shape[0], i, c, iteration
    cdef double[:, :, ::1] work = np.empty((3, m, WIDTH))
    cdef double[:, ::1] r = work[0], p = work[1], s = work[2]
    cdef double[WIDTH] goal, rr, new, ps, step
    cdef bint[WIDTH] near
    cdef bint active
    with nogil:
        multiply(ptr, idx, values, x, s)
        for c in range(WIDTH):
            goal[c], rr[c] = 0.0, 0.0
        for i in range(m):
            for c in range(WIDTH):
                r[i, c] = b[i, c] - s[i, c]
                p[i, c] = r[i, c]
                goal[c] += b[i, c] * b[i, c]
                rr[c] += r[i, c] * r[i, c]
        for c in range(WIDTH):
            near[c] = rr[c] <= goal[c]
            if not near[c]:
                rr[c] = goal[c]
            goal[c] = tol * sqrt(goal[c])
        for i in range(m):
            for c in range(WIDTH):
                if not near[c]:
                    x[i, c], r[i, c], p[i, c] = 0.0, b[i, c], b[i, c]
        for iteration in range(limit):
            active = False
            for c in range(WIDTH):
                active = active or not sqrt(rr[c]) <= goal[c]
            if not active:
                limit = iteration
                break
            multiply(ptr, idx, values, p, s)
            for c in range(WIDTH):
                ps[c], new[c] = 0.0, 0.0
            for i in range(m):
                for c in range(WIDTH):
                    ps[c] += p[i, c] * s[i, c]
            for c in range(WIDTH):
                step[c] = 0.0
                if not sqrt(rr[c]) <= goal[c]:  # a column that has converged stays as it is
                    if not ps[c] > 0.0:
                        limit = -1
                        break
                    step[c] = rr[c] / ps[c]
            if limit < 0:
                break
            for i in range(m):
                for c in range(WIDTH):
                    x[i, c] += step[c] * p[i, c]
                    r[i, c] -= step[c] * s[i, c]
                    new[c] += r[i, c] * r[i, c]
            for c in range(WIDTH):
                step[c] = new[c] / rr[c] if step[c] > 0.0 else 0.0
                rr[c] = new[c]
            for i in range(m):
                for c in range(WIDTH):
                    p[i, c] = r[i, c] + step[c] * p[i, c]
    return limit
