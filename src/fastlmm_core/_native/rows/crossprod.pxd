from libc.stdint cimport int32_t


cdef inline void add_level_sums(const int32_t *codes, const double *z, const double *w, const double *d, double *out,
                                Py_ssize_t n, Py_ssize_t l, Py_ssize_t k) noexcept nogil:
    """out (q * l, k) += Z'WD of n rows; z (n, l) NULL is one column of ones, w (n,) NULL unit weights."""
    cdef Py_ssize_t i, r, c
    cdef double wz
    cdef double *row
    for i in range(n):
        for r in range(l):
            wz = 1.0 if w == NULL else w[i]
            if z != NULL:
                wz *= z[i * l + r]
            row = out + (codes[i] * l + r) * k
            for c in range(k):
                row[c] += wz * d[i * k + c]
