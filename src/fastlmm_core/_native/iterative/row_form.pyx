"""The reduced system's operator from the rows themselves, sorted by the leading factor's levels.

With K_i = L (L'A_i L + I)^-1 L' of leading level i, A_i its block of Z'WZ and B_i its rows of Z_1'WZ_t,

    C x = Z_t'W Z_t x - sum_i B_i'K_i B_i x

is two sweeps over the rows of each level, the second one from cache; neither C nor the cells of pairs of tail factors
are ever formed:

    v_r = sum_f t_rf'x[c_rf],   s = sum_r w_r z_r v_r,   u = K_i s,   y[c_rf] += w_r t_rf (v_r - z_r'u)

c (n, f) are the first of a level's columns in the tail, which follow one another, t (n, sum of their numbers) their
covariates, z (n, l) the leading factor's. Vectors come in blocks of 8, stored (m, 8), so that a row's gather is one
cache line a column, or of 2 or 4 where there are no more. Cost n (l + columns) a vector; memory 4 f bytes a row, and 8
a covariate. Threads share fixed parts of the levels, whose sums are added in the order of the parts: results do not
depend on the number of threads.

Beside products there are the blocks of C on its diagonal, a level's columns each, and P'CP for a P that adds levels up
(`aggregated`), the matrix of a second level of the solver.

The arrays may be memory maps of files: rows that have been walked through are then taken out of the process's memory a
window at a time, so that a sweep holds a window a thread, whatever the rows are.
"""

import numpy as np

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

from fastlmm_core._native.iterative.row_loops cimport KV, MOST, let_go, products, spreads, sums

__all__ = ["MAX_LEADING", "WIDTH", "WIDTHS", "RowForm"]

WIDTH = KV
WIDTHS = (2, 4, KV)
MAX_LEADING = MOST
WINDOW = 1 << 24  # bytes of files that a thread holds

cdef enum:
    SHARES = 64  # of the levels, where threads write to levels of their own


cdef void part_product(const rows_t *rows, Py_ssize_t first, Py_ssize_t stop, const double *K, const double *x,
                       double *y, Py_ssize_t kv) noexcept nogil:
    """`products` of 2, 4 or 8 vectors."""
    if kv == 2:
        products(rows, first, stop, K, x, y, 2)
    elif kv == 4:
        products(rows, first, stop, K, x, y, 4)
    else:
        products(rows, first, stop, K, x, y, KV)


cdef void part_spread(const rows_t *rows, Py_ssize_t first, Py_ssize_t stop, const double *u, double *y,
                      Py_ssize_t kv) noexcept nogil:
    """`spreads` of 2, 4 or 8 vectors."""
    if kv == 2:
        spreads(rows, first, stop, u, y, 2)
    elif kv == 4:
        spreads(rows, first, stop, u, y, 4)
    else:
        spreads(rows, first, stop, u, y, KV)


cdef void part_sums(const rows_t *rows, Py_ssize_t first, Py_ssize_t stop, const double *x, double *s,
                    Py_ssize_t kv) noexcept nogil:
    """`sums` of 2, 4 or 8 vectors."""
    if kv == 2:
        sums(rows, first, stop, x, s, 2)
    elif kv == 4:
        sums(rows, first, stop, x, s, 4)
    else:
        sums(rows, first, stop, x, s, KV)


def window_of(arrays, Py_ssize_t n):
    """Rows of read-only maps of files to hold at a time; 0 where the arrays are not all such maps."""
    if not all(isinstance(a, np.memmap) and a._mmap is not None and a.mode == "r" for a in arrays):
        return 0
    return max(1, WINDOW // (sum(a.nbytes for a in arrays) // n))


def on_lines(Py_ssize_t rows, Py_ssize_t width=KV):
    """An array (rows, width) no row of which lies on two cache lines."""
    raw = np.empty(rows * width + KV)
    start = -raw.ctypes.data % 64 // 8
    return raw[start : start + rows * width].reshape(rows, width)


cdef class RowForm:
    """Rows sorted by leading level, and the products with them.

    Parameters
    ----------
    ptr : (q + 1,) int64
        Rows of leading level i are ``ptr[i]:ptr[i + 1]``.
    codes : (n, f) int32
        First tail column of each row's level, a factor: its levels come one after another, each with its columns.
    levels, widths : (f,) int64
        Levels of each tail factor, and columns of each of its levels.
    z : (n, l) float64 or None
        Leading columns; None stands for one column of ones.
    t : (n, sum of widths) float64 or None
        Covariates of the tail columns; None stands for ones, one a factor.
    w : (n,) float64 or None
    threads : int

    The arrays of rows may be read-only memory maps of files (``np.memmap``).

    Attributes
    ----------
    version : int
        Of the weights.

    Raises
    ------
    ValueError
        Shapes or codes do not match, or a factor has more than 16 columns.
    """

    def __init__(self, const int64_t[::1] ptr, const int32_t[:, ::1] codes, const int64_t[::1] levels,
                 const int64_t[::1] widths, const double[:, ::1] z, const double[:, ::1] t, const double[::1] w,
                 Py_ssize_t threads):
        cdef Py_ssize_t f
        self.q, self.n = ptr.shape[0] - 1, codes.shape[0]
        self.l = 1 if z is None else z.shape[1]
        self.products, self.version, self.threads = 0, 0, max(1, threads)
        ends, columns = np.asarray(ptr), np.asarray(codes)
        if levels.shape[0] != columns.shape[1] or widths.shape[0] != columns.shape[1]:
            raise ValueError("factors do not match the codes")
        if self.n == 0 or columns.shape[1] < 1 or np.min(levels) < 1 or np.min(widths) < 1:
            raise ValueError("a row form needs rows and tail columns")
        starts = np.concatenate([[0], np.cumsum(np.multiply(levels, widths))])
        self.starts, self.m = starts.astype(np.int64), int(starts[columns.shape[1]])
        if self.q < 1 or ends[0] != 0 or ends[self.q] != self.n or (np.diff(ends) < 0).any():
            raise ValueError("ptr does not divide the rows")
        for f in range(columns.shape[1]):
            if widths[f] > MOST:
                raise ValueError(f"a factor of {widths[f]} columns")
        if not 1 <= self.l <= MOST:
            raise ValueError(f"a factor of {self.l} columns")
        if (z is not None and z.shape[0] != self.n) or (w is not None and w.shape[0] != self.n):
            raise ValueError("rows do not match")
        self.rows.nt = int(np.sum(widths))
        if t is None and np.max(widths) > 1:
            raise ValueError("covariates are missing")
        if t is not None and (t.shape[0] != self.n or t.shape[1] != self.rows.nt):
            raise ValueError("covariates do not match the codes")
        self.kept = (ptr, codes, z, t, w, levels, widths)
        self.rows.window = window_of([a.base for a in self.kept[1:5] if a is not None], self.n)
        self.rows.n, self.rows.l, self.rows.nf = self.n, self.l, columns.shape[1]
        self.rows.ptr, self.rows.codes, self.rows.widths = &ptr[0], &codes[0, 0], &widths[0]
        self.rows.z = self.rows.t = self.rows.w = NULL
        if z is not None:
            self.rows.z = &z[0, 0]
        if t is not None:
            self.rows.t = &t[0, 0]
        if w is not None:
            self.rows.w = &w[0]
        f = self.astray(widths)
        if f >= 0:
            raise ValueError(f"codes lie outside {self.starts[f]} to {self.starts[f + 1] - widths[f]}")
        # a matter of the data only, or the sums would depend on the machine
        self.parts = max(2, min(8 if self.m <= 1_000_000 else 4, self.n // (16 * self.m)))
        share = np.searchsorted(ends, np.linspace(0, self.n, self.parts + 1)).astype(np.int64)
        share[0], share[self.parts] = 0, self.q
        self.part = share
        self.buffer, self.given = on_lines(self.parts * self.m).reshape(self.parts, self.m, KV), on_lines(self.m)

    cdef Py_ssize_t astray(self, const int64_t[::1] widths):
        """A factor with codes that are none of its levels' columns; -1 where there is none."""
        cdef Py_ssize_t r, f, since = 0, nf = self.rows.nf
        cdef int32_t code
        for r in range(self.n):
            for f in range(nf):
                code = self.rows.codes[r * nf + f]
                if code < self.starts[f] or code > self.starts[f + 1] - widths[f]:
                    return f
            since = let_go(&self.rows, since, r + 1, r + 1 == self.n)
        return -1

    def reweight(self, const double[::1] w):
        """Other weights (n,) from here on, in the order of the rows here; they are kept, not copied.

        `version` counts them: blocks, K and R of other code belong to the weights they were made with.
        """
        self.check((w.shape[0],), (self.n,))
        self.kept = (*self.kept[:4], w, *self.kept[5:])
        self.rows.w, self.rows.window = &w[0], 0
        self.version += 1

    cdef add_parts(self, double[:, ::1] y):
        """y = the parts' sums, in their order."""
        cdef Py_ssize_t j, p, size = self.m * y.shape[1], stride = self.m * KV
        cdef const double *parts = &self.buffer[0, 0, 0]
        cdef double *out = &y[0, 0]
        for j in prange(size, schedule="static", num_threads=self.threads, nogil=True):
            out[j] = parts[j]
            for p in range(1, self.parts):
                out[j] += parts[p * stride + j]

    cdef Py_ssize_t width_of(self, Py_ssize_t kv) except -1:
        """A number of vectors that there are loops for."""
        if kv not in WIDTHS:
            raise ValueError(f"{kv} vectors where one of {WIDTHS} was expected")
        return kv

    cdef check(self, shape, tuple expected):
        if shape != expected:
            raise ValueError(f"shape {shape} where {expected} was expected")

    def product(self, const double[:, :, ::1] K, const double[:, ::1] x, out=None):
        """C x (m, k), for K (q, l, l) and x (m, k), k one of `WIDTHS`; into ``out`` where there is one."""
        cdef Py_ssize_t p, kv = self.width_of(x.shape[1])
        self.check((K.shape[0], K.shape[1], K.shape[2]), (self.q, self.l, self.l))
        self.check((x.shape[0],), (self.m,))
        y_ = np.empty((self.m, kv)) if out is None else out
        self.check(y_.shape, (self.m, kv))
        cdef double[:, ::1] y = y_
        cdef const double *k0 = &K[0, 0, 0]
        cdef const double *x0 = &self.given[0, 0]
        memcpy(&self.given[0, 0], &x[0, 0], self.m * kv * sizeof(double))
        self.products += 1
        for p in prange(self.parts, schedule="dynamic", num_threads=self.threads, nogil=True):
            memset(&self.buffer[p, 0, 0], 0, self.m * kv * sizeof(double))
            part_product(&self.rows, self.part[p], self.part[p + 1], k0, x0, &self.buffer[p, 0, 0], kv)
        self.add_parts(y)
        return y_

    def lead_sums(self, const double[:, ::1] x):
        """B x (q, l, k), for x (m, k)."""
        cdef Py_ssize_t p, q = self.q, kv = self.width_of(x.shape[1])
        self.check((x.shape[0],), (self.m,))
        s_ = np.empty((self.q, self.l, kv))
        cdef double[:, :, ::1] s = s_
        memcpy(&self.given[0, 0], &x[0, 0], self.m * kv * sizeof(double))
        for p in prange(SHARES, schedule="static", num_threads=self.threads, nogil=True):
            part_sums(&self.rows, p * q // SHARES, (p + 1) * q // SHARES, &self.given[0, 0], &s[0, 0, 0], kv)
        return s_

    def tail_sums(self, const double[:, :, ::1] u):
        """B'u (m, k), for u (q, l, k)."""
        cdef Py_ssize_t p, kv = self.width_of(u.shape[2])
        self.check((u.shape[0], u.shape[1]), (self.q, self.l))
        y_ = np.empty((self.m, kv))
        cdef double[:, ::1] y = y_
        for p in prange(self.parts, schedule="dynamic", num_threads=self.threads, nogil=True):
            memset(&self.buffer[p, 0, 0], 0, self.m * kv * sizeof(double))
            part_spread(&self.rows, self.part[p], self.part[p + 1], &u[0, 0, 0], &self.buffer[p, 0, 0], kv)
        self.add_parts(y)
        return y_

    @property
    def codes(self):
        """(n, f) the codes, as they were given."""
        return np.asarray(self.kept[1])

    @property
    def ptr(self):
        """(q + 1,) where levels begin."""
        return np.asarray(self.kept[0])

    def diagonals(self, const double[:, :, ::1] K, const double[:, :, ::1] R):
        """Blocks of B'KB on its diagonal, and N_j = sum_i (R_i b_ij)(R_i b_ij)', b_ij the columns of B_i.

        Rows of one level may repeat a tail level: its b_ij are collected first, then used once.

        Returns
        -------
        removed : list of (q, w, w)
            One array a tail factor of q levels with w columns.
        spread : list of (q, w, w, l, l)
            Of each pair of a level's columns.
        """
        cdef Py_ssize_t l = self.l, nf = self.rows.nf, i, r, f, c, d, e, count, a, width, o, since = 0
        cdef Py_ssize_t longest = int(np.diff(self.ptr).max()) * nf
        self.check((K.shape[0], K.shape[1], K.shape[2]), (self.q, l, l))
        self.check((R.shape[0], R.shape[1], R.shape[2]), (self.q, l, l))
        levels, widths = np.asarray(self.kept[5]), np.asarray(self.kept[6])
        cdef int64_t[::1] offset = np.concatenate([[0], np.cumsum(levels * widths * widths)]).astype(np.int64)
        removed_, spread_ = np.zeros(offset[nf]), np.zeros((offset[nf], l, l))
        cdef double[::1] removed = removed_
        cdef double[:, :, ::1] spread = spread_
        cdef double[:, ::1] b = np.zeros((self.m, l))
        cdef int32_t[::1] seen = np.zeros(self.m, np.int32)
        cdef int32_t[::1] columns = np.empty(longest, np.int32), factor = np.empty(longest, np.int32)
        cdef double rb[MOST * MOST]
        cdef double kb[MOST * MOST]
        cdef double value, base
        cdef int32_t j
        with nogil:
            for i in range(self.q):
                count = 0
                for r in range(self.rows.ptr[i], self.rows.ptr[i + 1]):
                    o = r * self.rows.nt
                    base = 1.0 if self.rows.w is NULL else self.rows.w[r]
                    for f in range(nf):
                        j = self.rows.codes[r * nf + f]
                        if not seen[j]:
                            seen[j] = 1
                            columns[count] = j
                            factor[count] = <int32_t> f
                            count += 1
                        for e in range(self.rows.widths[f]):
                            value = base if self.rows.t is NULL else base * self.rows.t[o]
                            o += 1
                            for c in range(l):
                                b[j + e, c] += value if self.rows.z is NULL else value * self.rows.z[r * l + c]
                for a in range(count):
                    j, f = columns[a], factor[a]
                    width = self.rows.widths[f]
                    for e in range(width):
                        for c in range(l):
                            kb[e * l + c] = rb[e * l + c] = 0.0
                            for d in range(l):
                                kb[e * l + c] += K[i, c, d] * b[j + e, d]
                                rb[e * l + c] += R[i, c, d] * b[j + e, d]
                    o = offset[f] + (j - self.starts[f]) * width
                    for e in range(width):
                        for d in range(width):
                            for c in range(l):
                                removed[o] += b[j + e, c] * kb[d * l + c]
                            for c in range(l):
                                for r in range(l):
                                    spread[o, c, r] += rb[e * l + c] * rb[d * l + r]
                            o += 1
                    for e in range(width):
                        for c in range(l):
                            b[j + e, c] = 0.0
                    seen[j] = 0
                since = let_go(&self.rows, since, self.rows.ptr[i + 1], i + 1 == self.q)
        shapes = [(int(q), int(w), int(w)) for q, w in zip(levels, widths, strict=True)]
        cuts = np.asarray(offset)[1:nf]
        return (
            [part.reshape(shape) for part, shape in zip(np.split(removed_, cuts), shapes, strict=True)],
            [part.reshape(*shape, l, l) for part, shape in zip(np.split(spread_, cuts), shapes, strict=True)],
        )

    def aggregated(self, const double[:, :, ::1] K, const int32_t[::1] labels, Py_ssize_t size):
        """P'CP (size, size) of the P that adds columns of equal label up.

        Cost: for each leading level the square of the labels that it meets.

        Parameters
        ----------
        K : (q, l, l)
        labels : (m,) int32
            Of each tail column, in [0, size); a negative one leaves a column out.
        size : int
        """
        cdef Py_ssize_t l = self.l, nf = self.rows.nf, i, r, f, c, d, e, count, own, a, o, since = 0
        cdef int32_t j, k
        cdef double value, w, kb
        self.check((K.shape[0], K.shape[1], K.shape[2]), (self.q, l, l))
        self.check((labels.shape[0],), (self.m,))
        if np.max(labels) >= size:
            raise ValueError(f"labels beyond {size - 1}")
        out_ = np.zeros((size, size))
        cdef double[:, ::1] out = out_, b = np.zeros((size, l)), moved = np.empty((size, l))
        cdef int32_t[::1] seen = np.zeros(size, np.int32), met = np.empty(size, np.int32)
        cdef int32_t[::1] of_row = np.empty(self.rows.nt, np.int32)
        cdef double[::1] by_row = np.empty(self.rows.nt)
        with nogil:
            for i in range(self.q):
                count = 0
                for r in range(self.rows.ptr[i], self.rows.ptr[i + 1]):
                    own, o = 0, r * self.rows.nt
                    w = 1.0 if self.rows.w is NULL else self.rows.w[r]
                    for f in range(nf):
                        for e in range(self.rows.widths[f]):
                            j = labels[self.rows.codes[r * nf + f] + e]
                            if j >= 0:
                                of_row[own] = j
                                by_row[own] = 1.0 if self.rows.t is NULL else self.rows.t[o]
                                own += 1
                            o += 1
                    for a in range(own):
                        j, value = of_row[a], w * by_row[a]
                        for d in range(own):
                            out[j, of_row[d]] += value * by_row[d]
                        if not seen[j]:
                            seen[j] = 1
                            met[count] = j
                            count += 1
                        for c in range(l):
                            b[j, c] += value if self.rows.z is NULL else value * self.rows.z[r * l + c]
                for a in range(count):
                    j = met[a]
                    for c in range(l):
                        moved[j, c] = 0.0
                        for d in range(l):
                            moved[j, c] += K[i, c, d] * b[j, d]
                for a in range(count):
                    j = met[a]
                    for d in range(count):
                        k, kb = met[d], 0.0
                        for c in range(l):
                            kb += b[j, c] * moved[k, c]
                        out[j, k] -= kb
                for a in range(count):
                    j = met[a]
                    seen[j] = 0
                    for c in range(l):
                        b[j, c] = 0.0
                since = let_go(&self.rows, since, self.rows.ptr[i + 1], i + 1 == self.q)
        return out_
