"""Dense factor, inverse and solves of a matrix of few columns, by loops: a call of LAPACK takes longer than they do.

Column-major, in the lower triangle; what lies above the diagonal is not touched. Inner loops run down a column, so
compilers make vectors of them. Cost: n^3/3 flops a factor, 2n^3/3 an inverse, n^2 a solve.
"""

from libc.math cimport sqrt

cdef enum:
    FEW_COLUMNS = 24  # up to which loops take less time than LAPACK's calls; measured on factor and inverse together


cdef inline int few_cholesky(double *a, Py_ssize_t n) noexcept nogil:
    """Lower Cholesky factor in place; 1 where the matrix is not positive definite."""
    cdef Py_ssize_t i, j, k
    cdef double s
    cdef double *column
    cdef double *pivot
    for k in range(n):
        pivot = a + k * n
        if not pivot[k] > 0.0:
            return 1
        pivot[k] = sqrt(pivot[k])
        s = 1.0 / pivot[k]
        for i in range(k + 1, n):
            pivot[i] *= s
        for j in range(k + 1, n):
            column, s = a + j * n, pivot[j]
            for i in range(j, n):
                column[i] -= s * pivot[i]
    return 0


cdef inline void few_forward(const double *a, double *x, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """x <- L^-1 x, k vectors one after another."""
    cdef Py_ssize_t i, j, _
    cdef double s
    for _ in range(k):
        for j in range(n):
            s = x[j] / a[j * n + j]
            x[j] = s
            for i in range(j + 1, n):
                x[i] -= a[j * n + i] * s
        x += n


cdef inline void few_backward(const double *a, double *x, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """x <- L^-T x, k vectors one after another."""
    cdef Py_ssize_t i, j, _
    cdef double s
    for _ in range(k):
        for j in range(n - 1, -1, -1):
            s = x[j]
            for i in range(j + 1, n):
                s -= a[j * n + i] * x[i]
            x[j] = s / a[j * n + j]
        x += n


cdef inline int few_inverse(double *a, Py_ssize_t n) noexcept nogil:
    """(L L')^-1 in the place of L: W = L^-1 column by column, then W'W; 1 where L is singular."""
    cdef Py_ssize_t i, j, k
    cdef double s
    cdef double *w
    for j in range(n):
        w = a + j * n
        if w[j] == 0.0:
            return 1
        w[j] = 1.0 / w[j]
        for i in range(j + 1, n):
            w[i] *= -w[j]
        for k in range(j + 1, n):  # columns to the right still hold L
            w[k] /= a[k * n + k]
            s = w[k]
            for i in range(k + 1, n):
                w[i] -= a[k * n + i] * s
    for j in range(n):
        for i in range(j, n):
            s = 0.0
            for k in range(i, n):
                s += a[i * n + k] * a[j * n + k]
            a[j * n + i] = s
    return 0


cdef inline void few_gram(const double *x, Py_ssize_t n, Py_ssize_t k, double *gram) noexcept nogil:
    """LAPACK's 'U' of ``gram`` (k, k) less x'x of k vectors of n."""
    cdef Py_ssize_t r, c, i
    cdef double s
    for c in range(k):
        for r in range(c + 1):
            s = 0.0
            for i in range(n):
                s += x[r * n + i] * x[c * n + i]
            gram[c * k + r] -= s
