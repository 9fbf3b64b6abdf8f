"""Rows sorted by leading level, and the loops of the kernels that walk through them."""

from libc.stdint cimport int32_t, int64_t

cdef extern from *:
    """
    #if defined(__GNUC__) || defined(__clang__)
    #define ROW_AHEAD(p) __builtin_prefetch(p)
    #else
    #define ROW_AHEAD(p)
    #endif
    #if defined(__unix__) || defined(__APPLE__)
    #include <stdint.h>
    #include <sys/mman.h>
    #include <unistd.h>
    static void row_release(const void *start, size_t bytes) {
        uintptr_t page = (uintptr_t) sysconf(_SC_PAGESIZE), first = ((uintptr_t) start + page - 1) / page * page;
        uintptr_t end = ((uintptr_t) start + bytes) / page * page;
        if (end > first) madvise((void *) first, end - first, MADV_DONTNEED);
    }
    #else
    static void row_release(const void *start, size_t bytes) {}
    #endif
    """
    void ROW_AHEAD(const void *p) noexcept nogil
    void row_release(const void *start, size_t size) noexcept nogil  # of a file's map only: other memory would be lost

cdef enum:
    KV = 8
    MOST = 16
    AHEAD = 16  # rows whose gathers are under way while one is worked on


cdef struct rows_t:
    Py_ssize_t n, l, nf, nt
    const int64_t *ptr
    const int64_t *widths
    const int32_t *codes
    const double *z
    const double *t
    const double *w
    Py_ssize_t window  # rows of a file after which they are let go of; 0 in memory


cdef inline Py_ssize_t let_go(const rows_t *rows, Py_ssize_t since, Py_ssize_t row, bint last) noexcept nogil:
    """Take rows that have been read, from ``since`` on, out of the process's memory once they are a window, or the
    last; where the next window begins.
    """
    cdef size_t size = row - since
    if rows.window == 0 or (row - since < rows.window and not last):
        return since
    row_release(rows.codes + since * rows.nf, size * rows.nf * sizeof(int32_t))
    if rows.z is not NULL:
        row_release(rows.z + since * rows.l, size * rows.l * sizeof(double))
    if rows.t is not NULL:
        row_release(rows.t + since * rows.nt, size * rows.nt * sizeof(double))
    if rows.w is not NULL:
        row_release(rows.w + since, size * sizeof(double))
    return row


# kv, the number of vectors, is a constant wherever these are called, so that their loops are unrolled

cdef inline void row_value(const rows_t *rows, Py_ssize_t r, const double *x, double *v, Py_ssize_t kv) noexcept nogil:
    """v (kv,) = sum over the row's tail columns of t x."""
    cdef Py_ssize_t f, _c, k
    cdef const double *xx
    cdef const double *t
    for k in range(kv):
        v[k] = 0.0
    if rows.t is NULL:
        for f in range(rows.nf):
            xx = x + <Py_ssize_t> rows.codes[r * rows.nf + f] * kv
            for k in range(kv):
                v[k] += xx[k]
    else:
        t = rows.t + r * rows.nt
        for f in range(rows.nf):
            xx = x + <Py_ssize_t> rows.codes[r * rows.nf + f] * kv
            for _c in range(rows.widths[f]):
                for k in range(kv):
                    v[k] += t[0] * xx[k]
                t += 1
                xx += kv


cdef inline void level_sum(const rows_t *rows, Py_ssize_t i, const double *x, const double *y,
                           double *s, Py_ssize_t kv) noexcept nogil:
    """s (l, kv) = B_i x; y, if there is one, is written at the same rows next."""
    cdef Py_ssize_t r, c, f, k
    cdef double v[KV]
    cdef double a
    for k in range(rows.l * kv):
        s[k] = 0.0
    for r in range(rows.ptr[i], rows.ptr[i + 1]):
        if r + AHEAD < rows.n:
            for f in range(rows.nf):
                ROW_AHEAD(x + <Py_ssize_t> rows.codes[(r + AHEAD) * rows.nf + f] * kv)
                if y is not NULL:
                    ROW_AHEAD(y + <Py_ssize_t> rows.codes[(r + AHEAD) * rows.nf + f] * kv)
        row_value(rows, r, x, v, kv)
        if rows.z is NULL and rows.w is NULL:
            for k in range(kv):
                s[k] += v[k]
            continue
        for c in range(rows.l):
            a = 1.0 if rows.w is NULL else rows.w[r]
            if rows.z is not NULL:
                a *= rows.z[r * rows.l + c]
            for k in range(kv):
                s[c * kv + k] += a * v[k]


cdef inline void row_scatter(const rows_t *rows, Py_ssize_t r, const double *v, double *y,
                             Py_ssize_t kv) noexcept nogil:
    """y[columns of the row] += w t v."""
    cdef Py_ssize_t f, _c, k
    cdef double *yy
    cdef const double *t
    cdef double a, w = 1.0 if rows.w is NULL else rows.w[r]
    if rows.t is NULL and rows.w is NULL:
        for f in range(rows.nf):
            yy = y + <Py_ssize_t> rows.codes[r * rows.nf + f] * kv
            for k in range(kv):
                yy[k] += v[k]
    elif rows.t is NULL:
        for f in range(rows.nf):
            yy = y + <Py_ssize_t> rows.codes[r * rows.nf + f] * kv
            for k in range(kv):
                yy[k] += w * v[k]
    else:
        t = rows.t + r * rows.nt
        for f in range(rows.nf):
            yy = y + <Py_ssize_t> rows.codes[r * rows.nf + f] * kv
            for _c in range(rows.widths[f]):
                a = w * t[0]
                for k in range(kv):
                    yy[k] += a * v[k]
                t += 1
                yy += kv


cdef inline void level_product(const rows_t *rows, Py_ssize_t i, const double *K, const double *x, double *y,
                               Py_ssize_t kv) noexcept nogil:
    """y += the part of C x that level i's rows make."""
    cdef Py_ssize_t l = rows.l, r, c, d, k
    cdef double s[MOST * KV]
    cdef double u[MOST * KV]
    cdef double v[KV]
    cdef double a
    level_sum(rows, i, x, y, s, kv)
    for c in range(l):
        for k in range(kv):
            a = 0.0
            for d in range(l):
                a += K[c * l + d] * s[d * kv + k]
            u[c * kv + k] = a
    for r in range(rows.ptr[i], rows.ptr[i + 1]):
        row_value(rows, r, x, v, kv)
        if rows.z is NULL:
            for k in range(kv):
                v[k] -= u[k]
        else:
            for c in range(l):
                a = rows.z[r * l + c]
                for k in range(kv):
                    v[k] -= a * u[c * kv + k]
        row_scatter(rows, r, v, y, kv)


cdef inline void plain_product(const rows_t *rows, Py_ssize_t i, double K, const double *x, double *y, Py_ssize_t kv,
                               Py_ssize_t nf) noexcept nogil:
    """`level_product` where all columns and weights are ones: most large models, in a third of the time."""
    cdef Py_ssize_t r, f, k
    cdef double s[KV]
    cdef double v[KV]
    cdef const double *xx
    cdef double *yy
    for k in range(kv):
        s[k] = 0.0
    for r in range(rows.ptr[i], rows.ptr[i + 1]):
        if r + AHEAD < rows.n:
            for f in range(nf):
                ROW_AHEAD(x + <Py_ssize_t> rows.codes[(r + AHEAD) * nf + f] * kv)
                ROW_AHEAD(y + <Py_ssize_t> rows.codes[(r + AHEAD) * nf + f] * kv)
        for k in range(kv):
            v[k] = 0.0
        for f in range(nf):
            xx = x + <Py_ssize_t> rows.codes[r * nf + f] * kv
            for k in range(kv):
                v[k] += xx[k]
        for k in range(kv):
            s[k] += v[k]
    for k in range(kv):
        s[k] *= K
    for r in range(rows.ptr[i], rows.ptr[i + 1]):
        for k in range(kv):
            v[k] = 0.0
        for f in range(nf):
            xx = x + <Py_ssize_t> rows.codes[r * nf + f] * kv
            for k in range(kv):
                v[k] += xx[k]
        for k in range(kv):
            v[k] -= s[k]
        for f in range(nf):
            yy = y + <Py_ssize_t> rows.codes[r * nf + f] * kv
            for k in range(kv):
                yy[k] += v[k]


cdef inline void level_spread(const rows_t *rows, Py_ssize_t i, const double *u, double *y,
                              Py_ssize_t kv) noexcept nogil:
    """y += B_i'u, u (l, kv)."""
    cdef Py_ssize_t l = rows.l, r, c, k
    cdef double v[KV]
    cdef double a
    for r in range(rows.ptr[i], rows.ptr[i + 1]):
        for k in range(kv):
            v[k] = 0.0
        for c in range(l):
            a = 1.0 if rows.z is NULL else rows.z[r * l + c]
            for k in range(kv):
                v[k] += a * u[c * kv + k]
        row_scatter(rows, r, v, y, kv)


cdef inline void products(const rows_t *rows, Py_ssize_t first, Py_ssize_t stop, const double *K, const double *x,
                          double *y, Py_ssize_t kv) noexcept nogil:
    """y += the part of C x that some levels' rows make."""
    cdef Py_ssize_t i, since = rows.ptr[first], size = rows.l * rows.l
    cdef bint plain = rows.z is NULL and rows.t is NULL and rows.w is NULL
    for i in range(first, stop):
        if plain and rows.nf == 1:
            plain_product(rows, i, K[i], x, y, kv, 1)
        elif plain and rows.nf == 2:
            plain_product(rows, i, K[i], x, y, kv, 2)
        else:
            level_product(rows, i, K + i * size, x, y, kv)
        since = let_go(rows, since, rows.ptr[i + 1], i + 1 == stop)


cdef inline void spreads(const rows_t *rows, Py_ssize_t first, Py_ssize_t stop, const double *u, double *y,
                         Py_ssize_t kv) noexcept nogil:
    """y += the part of B'u that some levels' rows make."""
    cdef Py_ssize_t i, since = rows.ptr[first]
    for i in range(first, stop):
        level_spread(rows, i, u + i * rows.l * kv, y, kv)
        since = let_go(rows, since, rows.ptr[i + 1], i + 1 == stop)


cdef inline void sums(const rows_t *rows, Py_ssize_t first, Py_ssize_t stop, const double *x, double *s,
                      Py_ssize_t kv) noexcept nogil:
    """s = B x of some levels."""
    cdef Py_ssize_t i, since = rows.ptr[first]
    for i in range(first, stop):
        level_sum(rows, i, x, NULL, s + i * rows.l * kv, kv)
        since = let_go(rows, since, rows.ptr[i + 1], i + 1 == stop)
