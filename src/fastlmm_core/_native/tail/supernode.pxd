"""What a supernodal factorisation and selected inverse do to one supernode; the equations are in `_supernodal`.

Panels of more than a few columns go to BLAS and LAPACK; for the rest loops are faster than calls. A narrow leaf has no
front: it reads and writes its parent's panel and front. The work of a large supernode is shared out among threads.
"""

from cython.parallel cimport prange
from libc.math cimport sqrt
from libc.stdint cimport int32_t
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dgemm, dsymm, dsyrk, dtrsm
from scipy.linalg.cython_lapack cimport dpotrf, dtrtri

from fastlmm_core._native.tail.tiles cimport (
    subtract_square, tile_size, tiled_cholesky, tiled_divide, tiled_inverse, tiled_symmetric)


cdef enum:
    SMALL = 8          # columns of a panel that loops serve better than LAPACK
    SHORT = 24         # rows of a front that loops serve better than BLAS
    WIDE = 256         # columns of a square whose inverse is worth sharing out
    LARGE = 4_000_000  # flops of a supernode that are worth sharing out


cdef struct node_t:
    Py_ssize_t first, w, r, height  # first column, columns, rows below, and the sum of the last two
    double *panel                   # (height, w) by columns
    double *front                   # (r, r), lower triangle by columns; none for a narrow leaf
    const int32_t *rows             # (r)
    const int32_t *to               # (r) places among the parent's columns and rows
    node_t *parent                  # NULL for a root
    bint leaf, direct, last         # no children; no front either; the child that its parent visits last, going down
    bint large                      # shared out among threads


cdef inline double *shared_column(const node_t *parent, Py_ssize_t place) noexcept nogil:
    """The column at ``place`` among a supernode's columns and rows; its entries lie at their own places."""
    if place < parent.w:
        return parent.panel + place * parent.height
    return parent.front + (place - parent.w) * parent.r - parent.w


cdef inline int panel_cholesky(const node_t *s, int threads) noexcept nogil:
    """L11 and L21 in place; nonzero where a pivot is not positive."""
    cdef Py_ssize_t c, k, i, w = s.w, height = s.height
    cdef double pivot, factor
    cdef double *a = s.panel
    cdef double *x
    cdef double *y
    cdef char right = b"R", lower = b"L", yes = b"T", no = b"N"
    cdef int n = <int>w, r = <int>(height - w), ld = <int>height, info = 0
    cdef double one = 1.0
    if s.large and w > SMALL:
        return tiled_cholesky(a, height, w, tile_size(height), threads)
    if w > SMALL:
        dpotrf(&lower, &n, a, &ld, &info)
        if info == 0 and r:
            dtrsm(&right, &lower, &yes, &no, &r, &n, &one, a, &ld, a + w, &ld)
        return info
    for c in range(w):
        x = a + c * height
        if not x[c] > 0.0:
            return 1
        pivot = sqrt(x[c])
        x[c] = pivot
        pivot = 1.0 / pivot
        for i in range(c + 1, height):
            x[i] *= pivot
        for k in range(c + 1, w):
            y = a + k * height
            factor = x[k]
            for i in range(k, height):
                y[i] -= factor * x[i]
    return 0


cdef inline void update_front(const node_t *x, int threads) noexcept nogil:
    """U <- U - L21 L21', nothing being there yet in a leaf."""
    cdef Py_ssize_t a, b, c
    cdef double factor
    cdef double *u
    cdef const double *column
    cdef char lower = b"L", no = b"N"
    cdef int w = <int>x.w, r = <int>x.r, height = <int>x.height
    cdef double minus = -1.0, beta = 0.0 if x.leaf else 1.0
    if x.large:
        subtract_square(x.panel + x.w, x.height, x.w, x.front, x.r, x.r, x.r, beta, tile_size(x.r), threads)
        return
    if x.w > SMALL or x.r > SHORT:
        dsyrk(&lower, &no, &r, &w, &minus, x.panel + x.w, &height, &beta, x.front, &r)
        return
    for b in range(x.r):
        u = x.front + b * x.r
        if x.leaf:
            memset(u + b, 0, (x.r - b) * sizeof(double))
        for c in range(x.w):
            column = x.panel + c * x.height + x.w
            factor = column[b]
            for a in range(b, x.r):
                u[a] -= factor * column[a]


cdef inline void add_to_parent(const node_t *x, int threads) noexcept nogil:
    """U into the parent's panel and front."""
    cdef Py_ssize_t b
    if x.large:
        for b in prange(x.r, schedule="static", chunksize=16, num_threads=threads):
            add_column(x, b)
    else:
        for b in range(x.r):
            add_column(x, b)


cdef inline void add_column(const node_t *x, Py_ssize_t b) noexcept nogil:
    cdef Py_ssize_t a, r = x.r
    cdef const int32_t *to = x.to
    cdef const double *u = x.front + b * r
    cdef double *target = shared_column(x.parent, to[b])
    if to[r - 1] - to[b] == r - 1 - b:  # no gap from here on
        target += to[r - 1] - r + 1
        for a in range(b, r):
            target[a] += u[a]
    else:
        for a in range(b, r):
            target[to[a]] += u[a]


cdef inline void update_parent(const node_t *x) noexcept nogil:
    """-L21 L21' into the parent's panel and front."""
    cdef Py_ssize_t a, b, c
    cdef const int32_t *to = x.to
    cdef double factor
    cdef double *target
    cdef const double *column
    for b in range(x.r):
        target = shared_column(x.parent, to[b])
        for c in range(x.w):
            column = x.panel + c * x.height + x.w
            factor = column[b]
            for a in range(b, x.r):
                target[to[a]] -= factor * column[a]


cdef inline void panel_ratio(const node_t *s, int threads) noexcept nogil:
    """Y = L21 L11^-1 in place of L21."""
    cdef Py_ssize_t c, k, i, w = s.w, height = s.height
    cdef double factor
    cdef double *a = s.panel
    cdef double *x
    cdef double *y
    cdef char right = b"R", lower = b"L", no = b"N"
    cdef int n = <int>w, r = <int>(height - w), ld = <int>height
    cdef double one = 1.0
    if s.large and w > SMALL:
        tiled_divide(a, height, w, tile_size(s.r), threads)
        return
    if w > SMALL:
        dtrsm(&right, &lower, &no, &no, &r, &n, &one, a, &ld, a + w, &ld)
        return
    for c in range(w - 1, -1, -1):
        x = a + c * height
        for k in range(c + 1, w):
            y = a + k * height
            factor = x[k]
            for i in range(w, height):
                x[i] -= factor * y[i]
        factor = 1.0 / x[c]
        for i in range(w, height):
            x[i] *= factor


cdef inline void read_parent(const node_t *x, int threads) noexcept nogil:
    """The front's lower triangle from the parent's panel and front."""
    cdef Py_ssize_t b
    if x.large:
        for b in prange(x.r, schedule="static", chunksize=16, num_threads=threads):
            read_column(x, b)
    else:
        for b in range(x.r):
            read_column(x, b)


cdef inline void read_column(const node_t *x, Py_ssize_t b) noexcept nogil:
    cdef Py_ssize_t a, r = x.r
    cdef const int32_t *to = x.to
    cdef double *u = x.front + b * r
    cdef const double *source = shared_column(x.parent, to[b])
    if to[r - 1] - to[b] == r - 1 - b:
        memcpy(u + b, source + to[b], (r - b) * sizeof(double))
    else:
        for a in range(b, r):
            u[a] = source[to[a]]


cdef inline void multiply_front(const node_t *x, double *z, int threads) noexcept nogil:
    """z (r, w) <- -Z22 Y."""
    cdef Py_ssize_t a, b, c
    cdef double factor, total
    cdef const double *u
    cdef const double *column
    cdef char left = b"L", lower = b"L"
    cdef int w = <int>x.w, r = <int>x.r, height = <int>x.height
    cdef double minus = -1.0, zero = 0.0
    if x.large:
        tiled_symmetric(x.front, x.r, x.panel + x.w, x.height, x.w, z, tile_size(x.r), threads)
        return
    if x.w > SMALL or x.r > SHORT:
        dsymm(&left, &lower, &r, &w, &minus, x.front, &r, x.panel + x.w, &height, &zero, z, &r)
        return
    memset(z, 0, x.w * x.r * sizeof(double))
    for c in range(x.w):
        column = x.panel + c * x.height + x.w
        for b in range(x.r):
            u = x.front + b * x.r
            factor = column[b]
            total = u[b] * factor
            for a in range(b + 1, x.r):
                z[c * x.r + a] -= factor * u[a]
                total += u[a] * column[a]
            z[c * x.r + b] -= total


cdef inline void multiply_parent(const node_t *x, double *z) noexcept nogil:
    """The same for a leaf without a front."""
    cdef Py_ssize_t a, b, c
    cdef const int32_t *to = x.to
    cdef double factor, total
    cdef const double *source
    cdef const double *column
    memset(z, 0, x.w * x.r * sizeof(double))
    for b in range(x.r):
        source = shared_column(x.parent, to[b])
        for c in range(x.w):
            column = x.panel + c * x.height + x.w
            factor = column[b]
            total = source[to[b]] * factor
            for a in range(b + 1, x.r):
                z[c * x.r + a] -= factor * source[to[a]]
                total += source[to[a]] * column[a]
            z[c * x.r + b] -= total


cdef inline void leaf_inverse(const node_t *x, double *z) noexcept nogil:
    """All of this for one column without children; roots included."""
    cdef Py_ssize_t a, b
    cdef const int32_t *to = x.to
    cdef double factor, total, corner, inverse = 1.0 / x.panel[0]
    cdef double *y = x.panel + 1
    cdef const double *source
    for a in range(x.r):
        y[a] *= inverse
        z[a] = 0.0
    corner = inverse * inverse
    for b in range(x.r):
        source = shared_column(x.parent, to[b])
        factor = y[b]
        total = source[to[b]] * factor
        for a in range(b + 1, x.r):
            z[a] -= factor * source[to[a]]
            total += source[to[a]] * y[a]
        z[b] -= total
        corner -= factor * z[b]
    for a in range(x.r):
        y[a] = z[a]
    x.panel[0] = corner


cdef inline void square_inverse(const node_t *s, double *work, int threads) noexcept nogil:
    """Lower triangle of (L11 L11')^-1 in place of L11, whose pivots are positive; ``work`` as `inverse_work` says."""
    cdef Py_ssize_t i, j, k, w = s.w, height = s.height
    cdef double total
    cdef double *a = s.panel
    cdef char lower = b"L", no = b"N", yes = b"T"
    cdef int n = <int>w, ld = <int>height, info = 0
    cdef double one = 1.0, zero = 0.0
    if w > WIDE:
        tiled_inverse(a, height, w, tile_size(w), threads, work)
        return
    if w > SMALL:  # not potri, as its rounding depends on the threads that BLAS may use
        dtrtri(&lower, &no, &n, a, &ld, &info)
        for j in range(w):
            memset(work + j * w, 0, j * sizeof(double))
            memcpy(work + j * w + j, a + j * height + j, (w - j) * sizeof(double))
        dsyrk(&lower, &yes, &n, &n, &one, work, &n, &zero, a, &ld)
        return
    for j in range(w):  # L11^-1, columns from the left
        a[j * height + j] = 1.0 / a[j * height + j]
        for i in range(j + 1, w):
            total = 0.0
            for k in range(j, i):
                total += a[k * height + i] * a[j * height + k]
            a[j * height + i] = -total / a[i * height + i]
    for j in range(w):
        for i in range(j, w):
            total = 0.0
            for k in range(i, w):
                total += a[i * height + k] * a[j * height + k]
            a[j * height + i] = total


cdef inline void finish_panel(const node_t *x, const double *z, int threads) noexcept nogil:
    """Z11 <- Z11 - Y'Z21, and Z21 = ``z`` in place of Y."""
    cdef Py_ssize_t b, c, k, nb = tile_size(x.w)
    cdef double total
    if x.large:
        for b in prange((x.w + nb - 1) // nb, schedule="dynamic", chunksize=1, num_threads=threads):
            finish_columns(x, z, b * nb, nb)
    elif x.w > SMALL:
        for b in range((x.w + nb - 1) // nb):
            finish_columns(x, z, b * nb, nb)
    else:
        for c in range(x.w):
            for k in range(c, x.w):
                total = 0.0
                for b in range(x.r):
                    total += x.panel[k * x.height + x.w + b] * z[c * x.r + b]
                x.panel[c * x.height + k] -= total
    for c in range(x.w):
        memcpy(x.panel + c * x.height + x.w, z + c * x.r, x.r * sizeof(double))


cdef inline void finish_columns(const node_t *x, const double *z, Py_ssize_t j, Py_ssize_t nb) noexcept nogil:
    """Columns j to j + nb of Z11 - Y'Z21, from the diagonal down; what lies above it in a panel means nothing."""
    cdef char yes = b"T", no = b"N"
    cdef int rows = <int>(x.w - j), columns = <int>min(nb, x.w - j), r = <int>x.r, height = <int>x.height
    cdef double one = 1.0, minus = -1.0
    dgemm(&yes, &no, &rows, &columns, &r, &minus, x.panel + j * x.height + x.w, &height, <double*>z + j * x.r, &r, &one,
          x.panel + j * x.height + j, &height)
