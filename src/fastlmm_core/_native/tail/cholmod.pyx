"""The textbook engine: CHOLMOD's simplicial factor, analysed once, and Takahashi's inverse on its pattern.

Nothing is eliminated beforehand: the tail holds all random effects, S = Lambda'Z'WZ Lambda + I is Henderson's system
without its fixed effects, and CHOLMOD (Chen, Davis, Hager and Rajamanickam 2008) orders, factors and solves it. Only
its simplicial modules are called, which are under the LGPL. Protocol and pattern as in `tail` and `sparse`.

With S = LL', the entries of Z = S^-1 on the pattern of L (Takahashi, Fagan and Chin 1973), columns from the last on:

    Z_ij = -(sum over k > j of L_kj Z_ik) / L_jj      Z_jj = (1 / L_jj - sum over k > j of L_kj Z_kj) / L_jj

where i and k run through the pattern of column j, so that every Z_ik is on the pattern. Cost: that of the factor,
about twice. The inverse has an array of its own: solves go on from the factor.
"""

import numpy as np

from libc.math cimport NAN, isfinite, log
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from fastlmm_core._native.symbolic.cholmod cimport (
    CHOLMOD_DOUBLE, CHOLMOD_L, CHOLMOD_LONG, CHOLMOD_Lt, CHOLMOD_NATURAL, CHOLMOD_OK, CHOLMOD_REAL, CHOLMOD_SIMPLICIAL,
    cholmod_dense, cholmod_l_analyze, cholmod_l_factorize, cholmod_l_finish, cholmod_l_free_dense,
    cholmod_l_free_factor, cholmod_l_solve2, cholmod_l_start)

from fastlmm_core.errors import NumericalError

__all__ = ["CholmodTail"]


cdef class CholmodTail(PatternTail):
    """CHOLMOD on a fixed pattern; see the module's note.

    Parameters
    ----------
    rows : tuple
        Pattern of the tail rows, from `index.tail_rows`.
    c_ptr, c_idx : int64
        Lower pattern of S by rows, sorted, in the order that `ordering.fill_ordering` gave.
    threads : int
    """

    def __cinit__(self):
        cholmod_l_start(&self.common)
        self.common.print_ = 0
        self.common.supernodal = CHOLMOD_SIMPLICIAL
        self.common.nmethods = 1
        self.common.method[0].ordering = CHOLMOD_NATURAL
        self.common.postorder = 0
        self.common.final_ll = 1

    def __init__(self, tuple rows not None, const int64_t[::1] c_ptr not None, const int64_t[::1] c_idx not None,
                 int threads):
        cdef Py_ssize_t nnz = c_idx.shape[0]
        self.ready = False
        self.set_rows(rows, threads)
        self.set_pattern(c_ptr, c_idx)
        self.s, self.place = np.zeros(nnz + 1), np.arange(nnz + 1)
        self.column, self.sums, self.mark = np.zeros(self.m), np.zeros(self.m), np.full(self.m, -1)
        self.z = None
        self.matrix.nrow = self.matrix.ncol = self.m  # rows of a lower triangle are columns of an upper one
        self.matrix.nzmax = nnz
        self.matrix.p, self.matrix.i, self.matrix.x = <void*>&self.c_ptr[0], <void*>&self.c_idx[0], <void*>&self.s[0]
        self.matrix.nz = self.matrix.z = NULL
        self.matrix.stype, self.matrix.sorted, self.matrix.packed = 1, 1, 1
        self.matrix.itype, self.matrix.xtype, self.matrix.dtype = CHOLMOD_LONG, CHOLMOD_REAL, CHOLMOD_DOUBLE
        if self.l != NULL:
            cholmod_l_free_factor(&self.l, &self.common)
        self.l = cholmod_l_analyze(&self.matrix, &self.common)
        if self.l == NULL or self.common.status != CHOLMOD_OK:
            raise NumericalError(f"CHOLMOD's analysis failed with status {self.common.status}")
        self.ready = True

    def __dealloc__(self):
        cholmod_l_free_dense(&self.x, &self.common)
        cholmod_l_free_dense(&self.y, &self.common)
        cholmod_l_free_dense(&self.e, &self.common)
        if self.l != NULL:
            cholmod_l_free_factor(&self.l, &self.common)
        cholmod_l_finish(&self.common)

    @staticmethod
    def bytes(Py_ssize_t m, Py_ssize_t nnz, double entries, int threads):
        """Memory of the engine: pattern and values of C and S, the factor with its row numbers, and the inverse."""
        return int(32 * nnz + 8 * (7 + threads) * m + 24 * entries)

    cdef int factor(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr, Py_ssize_t n_blocks,
                    double *logdet) noexcept nogil:
        cdef Py_ssize_t j
        self.stamp += 1
        self.inverted, self.solvable = False, True
        logdet[0] = 0.0
        self.scale(lam, block_ptr, lam_ptr, n_blocks, &self.s[0], &self.place[0])
        for j in range(self.c_idx.shape[0]):  # CHOLMOD lets a NaN through
            if not isfinite(self.s[j]):
                return 1
        cholmod_l_factorize(&self.matrix, self.l, &self.common)
        if self.common.status != CHOLMOD_OK or self.l.minor < self.l.n:
            return 1
        self.read_factor()
        for j in range(self.m):
            logdet[0] += 2.0 * log(self.l_val[self.l_ptr[j]])
        return 0 if isfinite(logdet[0]) else 1

    cdef void read_factor(self) noexcept nogil:
        self.l_ptr, self.l_idx = <const int64_t*>self.l.p, <const int64_t*>self.l.i
        self.l_count, self.l_val = <const int64_t*>self.l.nz, <const double*>self.l.x

    cdef int triangular(self, int system, double *x, Py_ssize_t k) noexcept nogil:
        """Solve with L or L' in place, k vectors; NaN where CHOLMOD finds no memory."""
        cdef cholmod_dense b
        cdef Py_ssize_t i
        if k == 0:
            return 0
        b.nrow = b.d = self.m
        b.ncol, b.nzmax = k, k * self.m
        b.x, b.z, b.xtype, b.dtype = <void*>x, NULL, CHOLMOD_REAL, CHOLMOD_DOUBLE
        if not cholmod_l_solve2(system, self.l, &b, NULL, &self.x, NULL, &self.y, &self.e, &self.common):
            for i in range(k * self.m):
                x[i] = NAN
            return 1
        memcpy(x, self.x.x, k * self.m * sizeof(double))
        return 0

    cdef void forward(self, double *x, Py_ssize_t k) noexcept nogil:
        self.triangular(CHOLMOD_L, x, k)

    cdef void backward(self, double *x, Py_ssize_t k) noexcept nogil:
        self.triangular(CHOLMOD_Lt, x, k)

    cdef bint make_room(self) noexcept with gil:
        try:
            self.z = np.empty(self.l.nzmax)
        except MemoryError:
            return False
        return True

    cdef int inverse(self, bint keep) noexcept nogil:
        cdef Py_ssize_t j, k, i, n
        cdef int64_t t, p, first, last
        cdef double lkj, total, diagonal
        cdef double *z
        self.inverted = True
        if (self.z is None or <size_t>self.z.shape[0] < self.l.nzmax) and not self.make_room():
            return 1
        z = &self.z[0]
        for j in range(self.m - 1, -1, -1):
            first, n = self.l_ptr[j], self.l_count[j]
            last = first + n
            diagonal = self.l_val[first]
            for t in range(first + 1, last):
                i = self.l_idx[t]
                self.mark[i], self.column[i], self.sums[i] = j, self.l_val[t], 0.0
            for t in range(first + 1, last):
                k, lkj = self.l_idx[t], self.l_val[t]
                p = self.l_ptr[k]
                self.sums[k] += lkj * z[p]
                for p in range(self.l_ptr[k] + 1, self.l_ptr[k] + self.l_count[k]):
                    i = self.l_idx[p]
                    if self.mark[i] == j:
                        self.sums[i] += lkj * z[p]
                        self.sums[k] += self.column[i] * z[p]
            total = 0.0
            for t in range(first + 1, last):
                i = self.l_idx[t]
                z[t] = -self.sums[i] / diagonal
                total += self.l_val[t] * z[t]
            z[first] = (1.0 / diagonal - total) / diagonal
        return 0

    cdef double inverse_entry(self, Py_ssize_t j, Py_ssize_t k) noexcept nogil:
        cdef int64_t low = self.l_ptr[j], high = self.l_ptr[j] + self.l_count[j], mid, end = high
        while low < high:
            mid = (low + high) // 2
            if self.l_idx[mid] < k:
                low = mid + 1
            else:
                high = mid
        return self.z[low] if low < end and self.l_idx[low] == k else NAN

    cdef void inverse_column(self, Py_ssize_t j, double *out) noexcept nogil:
        cdef int64_t t
        for t in range(self.l_ptr[j], self.l_ptr[j] + self.l_count[j]):
            out[self.l_idx[t]] = self.z[t]
