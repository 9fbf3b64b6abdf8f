"""The tail after the leading factor is eliminated: the protocol, and the dense engine.

C = A_tt - sum_i B_i'K_i B_i (m x m, unscaled) is kept beside S = Lambda'C Lambda + I, its Cholesky factor, its inverse:

    assemble   C from the tail rows and the leading rows; the dense columns' part goes to ``dense``   (d, m)
    factor     S = L L' for the given block factors of Lambda; log|S|
    forward    x <- L^-1 x, k vectors one after another                                               (k, m)
    backward   x <- L^-T x
    inverse    entries of S^-1 on the pattern of S at least; destroys what forward and backward need
    gather     sum_i U_i S^-1 U_i' over the leading rows
    times      y <- C x

Dense engine: one buffer of (m + 1) m doubles holds both matrices. S, its factor and its inverse occupy the upper
triangle of rows 0..m-1 (row-major; LAPACK's 'L' reads the same memory by columns); C the lower triangle shifted down by
one row, so the diagonals do not collide. Cost: m^3/3 flops a factorisation (potrf), 2m^3/3 more for the inverse
(potri).
"""

import numpy as np

from cython.parallel cimport prange, threadid
from libc.math cimport log, sqrt
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dgemm, dsymm, dsyrk, dtrsm
from scipy.linalg.cython_lapack cimport dpotrf

from fastlmm_core._leading cimport gather_row, leading_t, schur_row

__all__ = ["DenseTail", "EmptyTail", "Tail"]

cdef enum:
    TILE = 48        # two tiles of 48 x 48 doubles stay in a 32 KB first-level cache
    BLOCKS = 12      # block columns of a factorisation: enough to share out, few enough to keep BLAS at its best
    MIN_BLOCK = 64
    MAX_BLOCK = 256


cdef class Tail:
    """Base of the engines; see the module's note. Created by the plan, driven by the evaluator."""

    cdef void set_rows(self, tuple rows, int threads):
        """Keep the tail rows of `_assemble.tail_rows`."""
        self._keep = rows
        self.a_ptr, self.a_idx, self.a_val = rows
        self.m = self.a_ptr.shape[0] - 1
        self.threads = threads

    cdef void assemble(self, const leading_t *lead, double *dense, double *work) noexcept nogil:
        pass

    cdef int factor(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr, Py_ssize_t n_blocks,
                    double *logdet) noexcept nogil:
        return -1

    cdef void forward(self, double *x, Py_ssize_t k) noexcept nogil:
        pass

    cdef void backward(self, double *x, Py_ssize_t k) noexcept nogil:
        pass

    cdef int inverse(self) noexcept nogil:
        return -1

    cdef double inverse_entry(self, Py_ssize_t j, Py_ssize_t k) noexcept nogil:
        """Entry (j, k), j <= k, of the inverse; zero outside its pattern."""
        return 0.0

    cdef void gather(self, const leading_t *lead, double *out, bint per_level, double *work) noexcept nogil:
        pass

    cdef void times(self, const double *x, double *y, Py_ssize_t k) noexcept nogil:
        pass


cdef class EmptyTail(Tail):
    """No random effect beside the leading factor's."""

    def __init__(self):
        self.m = 0
        self.threads = 1

    cdef int factor(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr, Py_ssize_t n_blocks,
                    double *logdet) noexcept nogil:
        logdet[0] = 0.0
        return 0

    cdef int inverse(self) noexcept nogil:
        return 0


cdef class DenseTail(Tail):
    """LAPACK on one square; see the module's note.

    Parameters
    ----------
    rows : tuple
        Tail rows, from `_assemble.tail_rows`.
    threads : int
        OpenMP threads of the assembly and gather (BLAS has its own limit).
    """

    def __init__(self, tuple rows, int threads):
        self.set_rows(rows, threads)
        self.buffer = np.zeros((self.m + 1) * self.m)
        self.tile = DenseTail.tile_size(self.m)
        self.panels = np.empty(threads * self.m * self.tile)

    @staticmethod
    def tile_size(Py_ssize_t m):
        """Rows of a tile."""
        return max(MIN_BLOCK, min(MAX_BLOCK, m // BLOCKS // 16 * 16))

    cdef void assemble(self, const leading_t *lead, double *dense, double *work) noexcept nogil:
        cdef Py_ssize_t j, x, m = self.m, d = lead.d
        cdef int64_t t
        cdef double *c = &self.buffer[0] + m
        cdef double *row_d
        for j in prange(m, schedule="dynamic", chunksize=8, num_threads=self.threads):
            memset(c + j * m, 0, (j + 1) * sizeof(double))
            for t in range(self.a_ptr[j], self.a_ptr[j + 1]):
                c[j * m + self.a_idx[t]] += self.a_val[t]
            row_d = work + threadid() * d
            for x in range(d):
                row_d[x] = dense[x * m + j]
            schur_row(lead, j, c + j * m, row_d)
            for x in range(d):
                dense[x * m + j] = row_d[x]

    cdef int factor(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr, Py_ssize_t n_blocks,
                    double *logdet) noexcept nogil:
        cdef Py_ssize_t m = self.m, tile, n_tiles = (n_blocks + TILE - 1) // TILE, j
        cdef double *s = &self.buffer[0]
        for tile in prange(n_tiles, schedule="dynamic", num_threads=self.threads):
            if n_blocks == m:
                scale_tile(s, m, lam, lam_ptr, tile)
            else:
                scale_tile_blocks(s, m, lam, block_ptr, lam_ptr, n_blocks, tile)
        if tiled_cholesky(s, m, self.tile, self.threads) != 0:
            return 1
        logdet[0] = 0.0
        for j in range(m):
            logdet[0] += 2.0 * log(s[j * m + j])
        return 0

    cdef void forward(self, double *x, Py_ssize_t k) noexcept nogil:
        triangular(&self.buffer[0], x, self.m, k, b"N")

    cdef void backward(self, double *x, Py_ssize_t k) noexcept nogil:
        triangular(&self.buffer[0], x, self.m, k, b"T")

    cdef int inverse(self) noexcept nogil:
        cdef Py_ssize_t m = self.m, nb = self.tile, blocks = (m + nb - 1) // nb, first, b, last
        cdef double *s = &self.buffer[0]
        cdef double *panels = &self.panels[0]
        first = 0
        while first < blocks:
            last = min(blocks, first + self.threads)
            for b in prange(first, last, schedule="static", chunksize=1, num_threads=self.threads):
                inverse_columns(s, m, nb, b, panels + (b - first) * m * nb)
            for b in prange(first, last, schedule="static", chunksize=1, num_threads=self.threads):
                store_columns(s, m, nb, b, panels + (b - first) * m * nb)
            first = last
        return 0

    cdef double inverse_entry(self, Py_ssize_t j, Py_ssize_t k) noexcept nogil:
        return self.buffer[j * self.m + k]

    cdef void gather(self, const leading_t *lead, double *out, bint per_level, double *work) noexcept nogil:
        """``work`` holds threads * l doubles, and m * l * l more for the rows' parts when not ``per_level``."""
        cdef Py_ssize_t j, x, m = self.m, l = lead.l, size = l * l
        cdef double *s = &self.buffer[0]
        cdef double *parts = work + self.threads * l
        if per_level:  # rows share levels: one thread
            for j in range(m):
                gather_row(lead, j, s + j * m, out, True, work)
            return
        memset(parts, 0, m * size * sizeof(double))
        for j in prange(m, schedule="dynamic", chunksize=8, num_threads=self.threads):
            gather_row(lead, j, s + j * m, parts + j * size, False, work + threadid() * l)
        for j in range(m):
            for x in range(size):
                out[x] += parts[j * size + x]

    cdef void times(self, const double *x, double *y, Py_ssize_t k) noexcept nogil:
        cdef char side = b"L", uplo = b"U"  # the lower triangle by rows is the upper one by columns
        cdef int m = <int>self.m, n = <int>k
        cdef double one = 1.0, zero = 0.0
        if k:
            dsymm(&side, &uplo, &m, &n, &one, &self.buffer[0] + m, &m, <double*>x, &m, &zero, y, &m)


cdef inline void scale_tile(double *s, Py_ssize_t m, const double *lam, const int64_t *lam_ptr,
                            Py_ssize_t tile) noexcept nogil:
    """Columns of tile ``tile`` of S from C, every block 1 x 1."""
    cdef Py_ssize_t j0 = tile * TILE, j1 = min(m, j0 + TILE), k0, k1, j, k
    cdef const double *c = s + m
    cdef double lam_j
    k0 = j0
    while k0 < m:
        k1 = min(m, k0 + TILE)
        for j in range(j0, j1):
            lam_j = lam[lam_ptr[j]]
            for k in range(max(k0, j), k1):
                s[j * m + k] = lam_j * lam[lam_ptr[k]] * c[k * m + j]
        k0 = k1
    for j in range(j0, j1):
        s[j * m + j] += 1.0


cdef inline void scale_tile_blocks(double *s, Py_ssize_t m, const double *lam, const int64_t *block_ptr,
                                   const int64_t *lam_ptr, Py_ssize_t n_blocks, Py_ssize_t tile) noexcept nogil:
    """The same for blocks of any size: S_jk = L_j' C_jk L_k."""
    cdef Py_ssize_t j0 = tile * TILE, j1 = min(n_blocks, j0 + TILE), k0, k1, bj, bk, r, c, x, y
    cdef Py_ssize_t lj, lk, oj, ok
    cdef const double *cc = s + m
    cdef const double *fj
    cdef const double *fk
    cdef double total, inner
    k0 = j0
    while k0 < n_blocks:
        k1 = min(n_blocks, k0 + TILE)
        for bj in range(j0, j1):
            oj, lj, fj = block_ptr[bj], block_ptr[bj + 1] - block_ptr[bj], lam + lam_ptr[bj]
            for bk in range(max(k0, bj), k1):
                ok, lk, fk = block_ptr[bk], block_ptr[bk + 1] - block_ptr[bk], lam + lam_ptr[bk]
                for r in range(lj):
                    for c in range(r if bk == bj else 0, lk):
                        total = 0.0
                        for x in range(r, lj):
                            inner = 0.0
                            for y in range(c, lk):
                                if bk == bj and x > y:
                                    inner += cc[(oj + x) * m + ok + y] * fk[y * lk + c]
                                else:
                                    inner += cc[(ok + y) * m + oj + x] * fk[y * lk + c]
                            total += fj[x * lj + r] * inner
                        s[(oj + r) * m + ok + c] = total
        k0 = k1
    for bj in range(j0, j1):
        for x in range(block_ptr[bj], block_ptr[bj + 1]):
            s[x * m + x] += 1.0


cdef int tiled_cholesky(double *a, Py_ssize_t m, Py_ssize_t nb, int threads) noexcept nogil:
    """Lower Cholesky factor (LAPACK's order) of an m x m matrix in place; nonzero where it is not positive definite."""
    cdef Py_ssize_t k, next_k, below, pair, tiles
    cdef int n, ld = <int>m, info = 0
    cdef char uplo = b"L"
    k = 0
    while k < m:
        next_k = min(m, k + nb)
        n = <int>(next_k - k)
        dpotrf(&uplo, &n, a + k * m + k, &ld, &info)
        if info != 0:
            return 1
        tiles = (m - next_k + nb - 1) // nb
        for below in prange(tiles, schedule="dynamic", chunksize=1, num_threads=threads):
            solve_tile(a, m, nb, k, next_k + below * nb)
        for pair in prange(tiles * (tiles + 1) // 2, schedule="dynamic", chunksize=1, num_threads=threads):
            update_tile(a, m, nb, k, next_k, pair)
        k = next_k
    return 0


cdef inline void solve_tile(double *a, Py_ssize_t m, Py_ssize_t nb, Py_ssize_t k, Py_ssize_t i) noexcept nogil:
    """Rows i of block column k: A_ik <- A_ik L_kk^-T."""
    cdef char side = b"R", uplo = b"L", trans = b"T", diag = b"N"
    cdef int rows = <int>min(nb, m - i), columns = <int>min(nb, m - k), ld = <int>m
    cdef double one = 1.0
    dtrsm(&side, &uplo, &trans, &diag, &rows, &columns, &one, a + k * m + k, &ld, a + k * m + i, &ld)


cdef inline void update_tile(double *a, Py_ssize_t m, Py_ssize_t nb, Py_ssize_t k, Py_ssize_t start,
                             Py_ssize_t pair) noexcept nogil:
    """Tile number ``pair`` of the trailing triangle from ``start``, by rows: A_ij <- A_ij - A_ik A_jk'."""
    cdef char uplo = b"L", no = b"N", yes = b"T"
    cdef Py_ssize_t row = <Py_ssize_t>((sqrt(8.0 * pair + 1.0) - 1.0) / 2.0), column, i, j
    cdef int rows, columns, inner = <int>min(nb, m - k), ld = <int>m
    cdef double one = 1.0, minus = -1.0
    while row * (row + 1) // 2 > pair:  # the root may round either way
        row -= 1
    while (row + 1) * (row + 2) // 2 <= pair:
        row += 1
    column = pair - row * (row + 1) // 2
    i, j = start + row * nb, start + column * nb
    rows, columns = <int>min(nb, m - i), <int>min(nb, m - j)
    if row == column:
        dsyrk(&uplo, &no, &rows, &inner, &minus, a + k * m + i, &ld, &one, a + j * m + i, &ld)
    else:
        dgemm(&no, &yes, &rows, &columns, &inner, &minus, a + k * m + i, &ld, a + k * m + j, &ld, &one,
              a + j * m + i, &ld)


cdef inline void inverse_columns(const double *a, Py_ssize_t m, Py_ssize_t nb, Py_ssize_t b,
                                 double *panel) noexcept nogil:
    """Rows b * nb and below of block column b of the inverse into ``panel``, columns m apart."""
    cdef char side = b"L", uplo = b"L", no = b"N", yes = b"T"
    cdef Py_ssize_t j = b * nb, c
    cdef int rows = <int>(m - j), columns = <int>min(nb, m - j), ld = <int>m
    cdef double one = 1.0
    for c in range(columns):
        memset(panel + c * m, 0, rows * sizeof(double))
        panel[c * m + c] = 1.0
    dtrsm(&side, &uplo, &no, &no, &rows, &columns, &one, <double*>a + j * m + j, &ld, panel, &ld)
    dtrsm(&side, &uplo, &yes, &no, &rows, &columns, &one, <double*>a + j * m + j, &ld, panel, &ld)


cdef inline void store_columns(double *a, Py_ssize_t m, Py_ssize_t nb, Py_ssize_t b,
                               const double *panel) noexcept nogil:
    """The lower part of a panel over the factor's columns."""
    cdef Py_ssize_t j = b * nb, c
    for c in range(min(nb, m - j)):
        memcpy(a + (j + c) * m + j + c, panel + c * m + c, (m - j - c) * sizeof(double))


cdef inline void triangular(double *factor, double *x, Py_ssize_t size, Py_ssize_t k, char trans) noexcept nogil:
    cdef char side = b"L", uplo = b"L", diag = b"N"
    cdef int m = <int>size, n = <int>k
    cdef double one = 1.0
    if k:
        dtrsm(&side, &uplo, &trans, &diag, &m, &n, &one, factor, &m, x, &m)
