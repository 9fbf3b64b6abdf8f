"""Rows sorted by leading level, for the kernels that walk through them."""

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


cdef class RowForm:
    cdef readonly Py_ssize_t n, q, m, l, products, version
    cdef Py_ssize_t parts, threads
    cdef rows_t rows
    cdef object kept
    cdef int64_t[::1] part, starts
    cdef double[:, :, ::1] buffer
    cdef double[:, ::1] given
    cdef add_parts(self, double[:, ::1] y)
    cdef Py_ssize_t width_of(self, Py_ssize_t kv) except -1
    cdef Py_ssize_t astray(self, const int64_t[::1] widths)
    cdef check(self, shape, tuple expected)
