"""The tail after the leading factor is eliminated: the protocol, and the dense engine.

C = A_tt - sum_i B_i'K_i B_i (m x m, unscaled) is kept beside S = Lambda'C Lambda + P x I, its Cholesky factor and its
inverse. P, between the levels of a group, is the identity unless `set_precision` gives another sparse one: the inverse
of a relationship matrix, or zeros for effects that are fixed.

    assemble   C from the tail rows and the leading rows; the dense columns' part goes to ``dense``   (d, m)
    factor     S = L L' for the given block factors of Lambda; log|S|
    reduce     x <- L^-1 x, k vectors one after another, and a Gram matrix less x'S^-1x               (k, m)
    backward   x <- L^-T x, of reduced vectors or sums of them: S^-1 times what they were
    inverse    entries of S^-1 on the pattern of S at least; destroys what reduce and backward need
    solve      x <- S^-1 x, after a factor; after an inverse too where `solvable` says so
    traces     sum of a group's diagonal blocks of P x I - S^-1, after an inverse
    gather     sum_i U_i S^-1 U_i' over the leading rows, after an inverse
    entries    which entries of the inverse there are; `inverse_entry` reads one
    times      y <- C x

``stamp`` counts factors: whoever made the last one keeps its number, and by it knows whether it is still in hand.

Dense engine: one buffer of (m + 1) m doubles holds both matrices. S, its factor and its inverse occupy the upper
triangle of rows 0..m-1 (row-major; LAPACK's 'L' reads the same memory by columns); C the lower triangle shifted down by
one row, so the diagonals do not collide. Cost: m^3/3 flops a factorisation, 2m^3/3 more for the inverse (`_tiles`).
"""

import numpy as np

from cython.parallel cimport prange, threadid
from libc.math cimport NAN, log
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dsyrk, dtrsm

from fastlmm_core._native.leading.rows cimport gather_row, leading_t, schur_row
from fastlmm_core._native.tail.few cimport (
    FEW_COLUMNS, few_backward, few_cholesky, few_forward, few_gram, few_inverse,
)
from fastlmm_core._native.tail.tiles cimport tile_size, tiled_cholesky, tiled_inverse

__all__ = ["DenseTail", "EmptyTail", "Tail"]

cdef enum:
    TILE = 48  # two tiles of 48 x 48 doubles stay in a 32 KB first-level cache


cdef class Tail:
    """Base of the engines; see the module's note. Created by the plan, driven by the evaluator.

    Evaluators of one plan share its tail. `busy` lets one of them, and so one thread, work at a time; `stamp` tells
    each whether the factors are still its own.
    """

    def __reduce__(self):
        raise TypeError(f"a {type(self).__name__} is a workspace: pickle or copy the model or the result it serves")

    @property
    def entries(self):
        """Which entries of the inverse there are: "all", or those on its "pattern"."""
        return "pattern"

    def set_precision(self, const int64_t[::1] ptr not None, const int64_t[::1] idx not None,
                      const double[::1] val not None):
        """A known precision between levels in place of the identity; from the next factor on.

        Parameters
        ----------
        ptr, idx, val : (blocks + 1,), (nnz,), (nnz,)
            Lower triangle by rows of the tail's blocks (levels), in the tail's order. Entries join levels of one group,
            and lie on the pattern of S.
        """
        if ptr.shape[0] < 1 or idx.shape[0] != val.shape[0] or idx.shape[0] != ptr[ptr.shape[0] - 1]:
            raise ValueError("the precision's arrays do not match")
        self.p_ptr, self.p_idx, self.p_val, self.known = ptr, idx, val, True
        self.stamp += 1  # no factor in hand is of this matrix

    cdef void set_rows(self, tuple rows, int threads):
        """Keep the pattern of the tail rows, from `_assemble.tail_rows`."""
        self._keep = rows
        self.a_ptr, self.a_idx = rows
        self.m = self.a_ptr.shape[0] - 1
        self.threads = threads

    cdef void assemble(self, const leading_t *lead, const double *values, double *dense, double *work) noexcept nogil:
        """``values`` are those of the tail rows."""
        pass

    cdef int factor(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr, Py_ssize_t n_blocks,
                    double *logdet) noexcept nogil:
        return -1

    cdef void forward(self, double *x, Py_ssize_t k) noexcept nogil:
        pass

    cdef void backward(self, double *x, Py_ssize_t k) noexcept nogil:
        pass

    cdef void reduce(self, double *x, Py_ssize_t k, double *gram) noexcept nogil:
        """x <- L^-1 x; one triangle of ``gram`` (k, k), where there is one, loses x'S^-1x. LAPACK's 'U' by columns."""
        cdef int n = <int>k, m = <int>self.m
        cdef char uplo = b"U", yes = b"T"
        cdef double minus = -1.0, one = 1.0
        self.forward(x, k)
        if gram != NULL:
            dsyrk(&uplo, &yes, &n, &m, &minus, x, &m, &one, gram, &n)

    cdef int inverse(self, bint keep) noexcept nogil:
        """With ``keep`` solves stay possible, by a copy of the factor where there is no other way."""
        return -1

    cdef void solve(self, double *x, Py_ssize_t k) noexcept nogil:
        self.forward(x, k)
        self.backward(x, k)

    cdef double inverse_entry(self, Py_ssize_t j, Py_ssize_t k) noexcept nogil:
        """Entry (j, k), j <= k, of the inverse; NaN outside its pattern."""
        return NAN

    cdef void traces(self, const levels_t *levels, const double *omega, Py_ssize_t p, double *out) noexcept nogil:
        """Add sum_j (I - [S^-1]_jj - omega_j omega_j') of each group to ``out``, upper triangles.

        With a precision P between levels it is sum_j I - sum_jk P_jk [S^-1]_jk, and there is no ``omega``, (m, p).
        """
        cdef Py_ssize_t b, r, c, x, l, o
        cdef double s
        cdef double *block
        for b in range(levels.n):
            l, o = levels.group_l[levels.group[b]], levels.ptr[b]
            block = out + levels.group_lam[levels.group[b]]
            if self.known:
                self.subtract_precision(levels, b, block)
                continue
            for r in range(l):
                for c in range(r, l):
                    s = self.inverse_entry(o + r, o + c)
                    for x in range(p):
                        s += omega[(o + r) * p + x] * omega[(o + c) * p + x]
                    block[r * l + c] -= s
                block[r * l + r] += 1.0

    cdef void subtract_precision(self, const levels_t *levels, Py_ssize_t b, double *block) noexcept nogil:
        """I - sum over k <= b of P_bk ([S^-1]_bk + its transpose), the diagonal block once, added to ``block``."""
        cdef Py_ssize_t l = levels.group_l[levels.group[b]], o = levels.ptr[b], r, c, k
        cdef int64_t t
        cdef double s
        for r in range(l):
            block[r * l + r] += 1.0
        for t in range(self.p_ptr[b], self.p_ptr[b + 1]):
            k = levels.ptr[self.p_idx[t]]
            for r in range(l):
                for c in range(r, l):
                    s = self.inverse_entry(k + r, o + c)
                    if k != o:
                        s += self.inverse_entry(k + c, o + r)
                    block[r * l + c] -= self.p_val[t] * s

    cdef void gather(self, const leading_t *lead, double *out, bint per_level, double *work) noexcept nogil:
        pass

    cdef void times(self, const double *x, double *y, Py_ssize_t k) noexcept nogil:
        pass


cdef class EmptyTail(Tail):
    """No random effect beside the leading factor's."""

    entries = "all"

    def __init__(self):
        self.set_rows((np.zeros(1, np.int64), np.empty(0, np.int32)), 1)
        self.ready = True

    cdef int factor(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr, Py_ssize_t n_blocks,
                    double *logdet) noexcept nogil:
        logdet[0] = 0.0
        self.stamp += 1
        self.solvable = True
        return 0

    cdef int inverse(self, bint keep) noexcept nogil:
        return 0


cdef class DenseTail(Tail):
    """LAPACK on one square; see the module's note.

    Parameters
    ----------
    rows : tuple
        Pattern of the tail rows, from `_assemble.tail_rows`.
    threads : int
        OpenMP threads of the assembly and gather (BLAS has its own limit).
    """

    entries = "all"

    def __init__(self, tuple rows not None, int threads):
        self.ready = False
        self.set_rows(rows, threads)
        self.buffer = np.zeros((self.m + 1) * self.m)
        self.tile = DenseTail.tile_size(self.m)
        self.panel = np.empty(self.m * self.tile)
        self.ready = True

    @staticmethod
    def tile_size(Py_ssize_t m):
        """Rows of a tile."""
        return tile_size(m)

    cdef void assemble(self, const leading_t *lead, const double *values, double *dense, double *work) noexcept nogil:
        cdef Py_ssize_t j, m = self.m
        if self.threads == 1:
            for j in range(m):
                self.assemble_row(lead, values, dense, j, work)
        else:
            for j in prange(m, schedule="dynamic", chunksize=8, num_threads=self.threads):
                self.assemble_row(lead, values, dense, j, work + threadid() * lead.d)

    cdef void assemble_row(self, const leading_t *lead, const double *values, double *dense, Py_ssize_t j,
                           double *row_d) noexcept nogil:
        """Row j of C and of the dense columns; ``row_d`` is workspace of d."""
        cdef Py_ssize_t x, m = self.m, d = lead.d
        cdef int64_t t
        cdef double *c = &self.buffer[0] + m + j * m
        memset(c, 0, (j + 1) * sizeof(double))
        for t in range(self.a_ptr[j], self.a_ptr[j + 1]):
            c[self.a_idx[t]] += values[t]
        for x in range(d):
            row_d[x] = dense[x * m + j]
        schur_row(lead, j, c, row_d)
        for x in range(d):
            dense[x * m + j] = row_d[x]

    cdef int factor(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr, Py_ssize_t n_blocks,
                    double *logdet) noexcept nogil:
        cdef Py_ssize_t m = self.m, tile, n_tiles = (n_blocks + TILE - 1) // TILE, j
        cdef double *s = &self.buffer[0]
        self.stamp += 1
        self.inverted, self.solvable = False, True
        if self.threads == 1:
            for tile in range(n_tiles):
                self.scale(lam, block_ptr, lam_ptr, n_blocks, tile)
        else:
            for tile in prange(n_tiles, schedule="dynamic", num_threads=self.threads):
                self.scale(lam, block_ptr, lam_ptr, n_blocks, tile)
        self.add_precision(block_ptr, n_blocks)
        if (few_cholesky(s, m) if m <= FEW_COLUMNS else tiled_cholesky(s, m, m, self.tile, self.threads)) != 0:
            return 1
        logdet[0] = 0.0
        for j in range(m):
            logdet[0] += 2.0 * log(s[j * m + j])
        return 0

    cdef void scale(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr, Py_ssize_t n_blocks,
                    Py_ssize_t tile) noexcept nogil:
        """Columns of tile ``tile`` of S from C."""
        if n_blocks == self.m:
            scale_tile(&self.buffer[0], self.m, lam, lam_ptr, tile)
        else:
            scale_tile_blocks(&self.buffer[0], self.m, lam, block_ptr, lam_ptr, n_blocks, tile)

    cdef void add_precision(self, const int64_t *block_ptr, Py_ssize_t n_blocks) noexcept nogil:
        """S <- S + P x I."""
        cdef Py_ssize_t m = self.m, b, k, r
        cdef int64_t t
        cdef double *s = &self.buffer[0]
        if not self.known:
            for r in range(m):
                s[r * m + r] += 1.0
            return
        for b in range(n_blocks):
            for t in range(self.p_ptr[b], self.p_ptr[b + 1]):
                k = self.p_idx[t]
                for r in range(block_ptr[b + 1] - block_ptr[b]):
                    s[(block_ptr[k] + r) * m + block_ptr[b] + r] += self.p_val[t]

    cdef void forward(self, double *x, Py_ssize_t k) noexcept nogil:
        if self.m <= FEW_COLUMNS:
            few_forward(&self.buffer[0], x, self.m, k)
        else:
            triangular(&self.buffer[0], x, self.m, k, b"N")

    cdef void backward(self, double *x, Py_ssize_t k) noexcept nogil:
        if self.m <= FEW_COLUMNS:
            few_backward(&self.buffer[0], x, self.m, k)
        else:
            triangular(&self.buffer[0], x, self.m, k, b"T")

    cdef void reduce(self, double *x, Py_ssize_t k, double *gram) noexcept nogil:
        if self.m > FEW_COLUMNS or k > FEW_COLUMNS:
            Tail.reduce(self, x, k, gram)
            return
        self.forward(x, k)
        if gram != NULL:
            few_gram(x, self.m, k, gram)

    cdef int inverse(self, bint keep) noexcept nogil:
        """Every entry is there, so it solves as well."""
        self.inverted = True
        if self.m <= FEW_COLUMNS:
            return few_inverse(&self.buffer[0], self.m)
        return tiled_inverse(&self.buffer[0], self.m, self.m, self.tile, self.threads, &self.panel[0])

    cdef void solve(self, double *x, Py_ssize_t k) noexcept nogil:
        cdef Py_ssize_t v, j, m = self.m, some = 0
        if not self.inverted:
            self.forward(x, k)
            self.backward(x, k)
            return
        while k:  # a row of the inverse serves as many vectors as the panel holds
            some = min(k, self.tile)
            memset(&self.panel[0], 0, some * m * sizeof(double))
            for j in range(m):
                for v in range(some):
                    inverse_row_times(&self.buffer[0] + j * m, j, m, x + v * m, &self.panel[0] + v * m)
            memcpy(x, &self.panel[0], some * m * sizeof(double))
            x += some * m
            k -= some

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
        if self.threads == 1:
            for j in range(m):
                gather_row(lead, j, s + j * m, parts + j * size, False, work)
        else:
            for j in prange(m, schedule="dynamic", chunksize=8, num_threads=self.threads):
                gather_row(lead, j, s + j * m, parts + j * size, False, work + threadid() * l)
        for j in range(m):
            for x in range(size):
                out[x] += parts[j * size + x]

    cdef void times(self, const double *x, double *y, Py_ssize_t k) noexcept nogil:
        cdef Py_ssize_t v
        for v in range(k):
            symmetric_times(&self.buffer[0] + self.m, self.m, x + v * self.m, y + v * self.m)


cdef inline void inverse_row_times(const double *row, Py_ssize_t j, Py_ssize_t m, const double *x,
                                   double *y) noexcept nogil:
    """y <- y + row j of a symmetric matrix, from its diagonal on, times x, and the column under it likewise."""
    cdef Py_ssize_t k
    cdef double total = row[j] * x[j], xj = x[j]
    for k in range(j + 1, m):
        total += row[k] * x[k]
        y[k] += row[k] * xj
    y[j] += total


cdef inline void symmetric_times(const double *c, Py_ssize_t m, const double *x, double *y) noexcept nogil:
    """y <- C x from C's lower triangle by rows, read once; dsymm copies C, and dsymv rounds by its threads."""
    cdef Py_ssize_t j, k
    cdef const double *row
    cdef double even, odd, xj
    for j in range(m):
        row, xj, even, odd = c + j * m, x[j], 0.0, 0.0
        k = 0
        while k + 1 < j:
            even += row[k] * x[k]
            odd += row[k + 1] * x[k + 1]
            y[k] += xj * row[k]
            y[k + 1] += xj * row[k + 1]
            k += 2
        if k < j:
            even += row[k] * x[k]
            y[k] += xj * row[k]
        y[j] = even + odd + xj * row[j]


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


cdef inline void triangular(double *factor, double *x, Py_ssize_t size, Py_ssize_t k, char trans) noexcept nogil:
    cdef char side = b"L", uplo = b"L", diag = b"N"
    cdef int m = <int>size, n = <int>k
    cdef double one = 1.0
    if k:
        dtrsm(&side, &uplo, &trans, &diag, &m, &n, &one, factor, &m, x, &m)
