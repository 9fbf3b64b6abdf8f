"""Dense kernels for the l x l blocks of one level (l is 1 to a handful): row-major, inlined, no calls.

Loops over small l beat BLAS by an order of magnitude here: a dpotrf call alone costs more than a 3 x 3 factor.
"""

from libc.math cimport sqrt

cdef enum:
    FEW = 8  # columns up to which loops beat BLAS whatever the number of rows


cdef inline double[::1] part(double[::1] room, Py_ssize_t *used, Py_ssize_t n):
    """The next n numbers of an array that several share: one allocation takes longer than a small fit's flops."""
    used[0] += n
    return room[used[0] - n:used[0]]


cdef inline int chol(double *a, Py_ssize_t l) noexcept nogil:
    """Lower Cholesky factor of the lower triangle of ``a`` in place; 1 when it is not positive definite."""
    cdef Py_ssize_t i, j, k
    cdef double s
    for j in range(l):
        s = a[j * l + j]
        for k in range(j):
            s -= a[j * l + k] * a[j * l + k]
        if not s > 0.0:
            return 1
        s = sqrt(s)
        a[j * l + j] = s
        for i in range(j + 1, l):
            for k in range(j):
                a[i * l + j] -= a[i * l + k] * a[j * l + k]
            a[i * l + j] /= s
    return 0


cdef inline void solve_lower(const double *r, double *x, Py_ssize_t l, Py_ssize_t step) noexcept nogil:
    """x <- R^-1 x for lower triangular R; the elements of x lie ``step`` apart."""
    cdef Py_ssize_t i, k
    for i in range(l):
        for k in range(i):
            x[i * step] -= r[i * l + k] * x[k * step]
        x[i * step] /= r[i * l + i]


cdef inline void solve_lower_t(const double *r, double *x, Py_ssize_t l, Py_ssize_t step) noexcept nogil:
    """x <- R^-T x for lower triangular R; the elements of x lie ``step`` apart."""
    cdef Py_ssize_t i, k
    for i in range(l - 1, -1, -1):
        for k in range(i + 1, l):
            x[i * step] -= r[k * l + i] * x[k * step]
        x[i * step] /= r[i * l + i]


cdef inline void lower_t_times(const double *r, double *x, Py_ssize_t l, Py_ssize_t step) noexcept nogil:
    """x <- R'x for lower triangular R, in place: element i needs elements >= i only."""
    cdef Py_ssize_t i, k
    cdef double s
    for i in range(l):
        s = 0.0
        for k in range(i, l):
            s += r[k * l + i] * x[k * step]
        x[i * step] = s


cdef inline void lower_times(const double *r, double *x, Py_ssize_t l, Py_ssize_t step) noexcept nogil:
    """x <- R x for lower triangular R, in place from the last element up."""
    cdef Py_ssize_t i, k
    cdef double s
    for i in range(l - 1, -1, -1):
        s = 0.0
        for k in range(i + 1):
            s += r[i * l + k] * x[k * step]
        x[i * step] = s


cdef inline void matmul(const double *a, const double *b, double *c, Py_ssize_t l) noexcept nogil:
    """c <- a b, all l x l."""
    cdef Py_ssize_t i, j, k
    cdef double s
    for i in range(l):
        for j in range(l):
            s = 0.0
            for k in range(l):
                s += a[i * l + k] * b[k * l + j]
            c[i * l + j] = s


cdef inline void subtract_gram(const double *x, double *out, Py_ssize_t n, Py_ssize_t d) noexcept nogil:
    """Lower triangle of out (d, d) -= X'X for rows x (n, d)."""
    cdef Py_ssize_t i, r, c
    for i in range(n):
        for r in range(d):
            for c in range(r + 1):
                out[r * d + c] -= x[i * d + r] * x[i * d + c]
