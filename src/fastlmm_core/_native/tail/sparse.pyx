"""Engines on a fixed pattern: what they share, and the supernodal factor and selected inverse of our own.

Protocol as in `_tail`. The plan has already ordered the tail: C and S share the sorted rows of one lower pattern, made
from which levels occur together and never from values. S goes straight from C into the factor's panels, each entry to
a place found once. A value that is not finite fails a pivot's test, or makes log|S| one that is not finite.
"""

import numpy as np

from cython.parallel cimport prange, threadid
from libc.math cimport NAN
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastlmm_core._native.leading.rows cimport gather_row, leading_t, schur_row
from fastlmm_core._native.tail.supernodal cimport SupernodalCholesky
from fastlmm_core._native.symbolic.supernodes cimport Supernodes
from fastlmm_core._native.tail.tail cimport Tail

__all__ = ["PatternTail", "SparseTail"]


cdef class PatternTail(Tail):
    """C on a fixed pattern, for engines that factor S on the same one.

    ``place`` says where each entry of S goes among the engine's numbers.
    """

    cdef void set_pattern(self, const int64_t[::1] c_ptr, const int64_t[::1] c_idx):
        self.c_ptr, self.c_idx = c_ptr, c_idx
        self.c_val = np.zeros(self.c_idx.shape[0])
        self.rows_work = np.zeros(self.threads * self.m)

    cdef void inverse_column(self, Py_ssize_t j, double *out) noexcept nogil:
        """Entries (j, k), k >= j, of the inverse that are on its pattern, each into ``out[k]``."""
        pass

    cdef void assemble(self, const leading_t *lead, const double *values, double *dense, double *work) noexcept nogil:
        cdef Py_ssize_t j, x, m = self.m, d = lead.d
        cdef int64_t t
        cdef double *row
        cdef double *row_d
        for j in prange(m, schedule="dynamic", chunksize=32, num_threads=self.threads):
            row = &self.rows_work[0] + threadid() * m
            row_d = work + threadid() * d
            for t in range(self.c_ptr[j], self.c_ptr[j + 1]):
                row[self.c_idx[t]] = 0.0
            for t in range(self.a_ptr[j], self.a_ptr[j + 1]):
                row[self.a_idx[t]] += values[t]
            for x in range(d):
                row_d[x] = dense[x * m + j]
            schur_row(lead, j, row, row_d)
            for x in range(d):
                dense[x * m + j] = row_d[x]
            for t in range(self.c_ptr[j], self.c_ptr[j + 1]):
                self.c_val[t] = row[self.c_idx[t]]

    cdef void scale(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr, Py_ssize_t n_blocks,
                    double *s, const int64_t *place) noexcept nogil:
        """S = Lambda'C Lambda + P x I into ``s``."""
        cdef Py_ssize_t m = self.m, j, b, r
        cdef int64_t t, low, high, mid
        if n_blocks == m:
            for j in prange(m, schedule="static", num_threads=self.threads):
                for t in range(self.c_ptr[j], self.c_ptr[j + 1]):
                    s[place[t]] = lam[lam_ptr[j]] * self.c_val[t] * lam[lam_ptr[self.c_idx[t]]]
        else:
            for b in prange(n_blocks, schedule="static", num_threads=self.threads):
                self.scale_block_row(lam, block_ptr, lam_ptr, b, s, place)
        if not self.known:
            for j in range(m):
                s[place[self.c_ptr[j + 1] - 1]] += 1.0
            return
        for b in range(n_blocks):
            for t in range(self.p_ptr[b], self.p_ptr[b + 1]):
                for r in range(block_ptr[b + 1] - block_ptr[b]):
                    low, high = self.c_ptr[block_ptr[b] + r], self.c_ptr[block_ptr[b] + r + 1]
                    j = block_ptr[self.p_idx[t]] + r
                    while low < high:
                        mid = (low + high) // 2
                        if self.c_idx[mid] < j:
                            low = mid + 1
                        else:
                            high = mid
                    if low < self.c_ptr[block_ptr[b] + r + 1] and self.c_idx[low] == j:
                        s[place[low]] += self.p_val[t]
                    else:  # off the pattern: the factor fails, rather than being another matrix's
                        s[place[self.c_ptr[block_ptr[b] + r + 1] - 1]] = NAN

    cdef void scale_block_row(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr,
                              Py_ssize_t b, double *s, const int64_t *place) noexcept nogil:
        """Block row b of S from C. Its rows list the same columns; row r stops r places into the diagonal block.

        Columns of one block are consecutive, so an entry's column begins a block, found by bisection.
        """
        cdef int64_t o = block_ptr[b], lb = block_ptr[b + 1] - o, r, c, x, y, lc, t
        cdef int64_t start = self.c_ptr[o], full = self.c_ptr[o + 1] - start - 1  # entries before the diagonal block
        cdef Py_ssize_t bc = 0, low, high, mid
        cdef double total, inner, value
        cdef const double *fb = lam + lam_ptr[b]
        cdef const double *fc
        t = 0
        while t < full:
            low, high = 0, b  # the block that begins at this column
            while low < high:
                mid = (low + high) // 2
                if block_ptr[mid] < self.c_idx[start + t]:
                    low = mid + 1
                else:
                    high = mid
            bc = low
            lc = block_ptr[bc + 1] - block_ptr[bc]
            fc = lam + lam_ptr[bc]
            for r in range(lb):
                for c in range(lc):
                    total = 0.0
                    for x in range(r, lb):
                        inner = 0.0
                        for y in range(c, lc):
                            inner += self.c_val[self.c_ptr[o + x] + t + y] * fc[y * lc + c]
                        total += fb[x * lb + r] * inner
                    s[place[self.c_ptr[o + r] + t + c]] = total
            t += lc
        for r in range(lb):
            for c in range(r + 1):
                total = 0.0
                for x in range(r, lb):
                    inner = 0.0
                    for y in range(c, lb):
                        if y <= x:
                            value = self.c_val[self.c_ptr[o + x] + full + y]
                        else:
                            value = self.c_val[self.c_ptr[o + y] + full + x]
                        inner += value * fb[y * lb + c]
                    total += fb[x * lb + r] * inner
                s[place[self.c_ptr[o + r] + full + c]] = total

    cdef void gather(self, const leading_t *lead, double *out, bint per_level, double *work) noexcept nogil:
        """``work`` as in `DenseTail.gather`."""
        cdef Py_ssize_t j, x, m = self.m, l = lead.l, size = l * l
        cdef double *parts = work + self.threads * l
        cdef double *row
        if per_level:  # rows share levels: one thread
            row = &self.rows_work[0]
            for j in range(m):
                self.inverse_column(j, row)
                gather_row(lead, j, row, out, True, work)
            return
        memset(parts, 0, m * size * sizeof(double))
        for j in prange(m, schedule="dynamic", chunksize=32, num_threads=self.threads):
            row = &self.rows_work[0] + threadid() * m
            self.inverse_column(j, row)
            gather_row(lead, j, row, parts + j * size, False, work + threadid() * l)
        for j in range(m):
            for x in range(size):
                out[x] += parts[j * size + x]

    cdef void times(self, const double *x, double *y, Py_ssize_t k) noexcept nogil:
        cdef Py_ssize_t i, j, m = self.m
        cdef int64_t t
        cdef double total, xj
        memset(y, 0, k * m * sizeof(double))
        for i in range(k):
            for j in range(m):
                total = 0.0
                xj = x[i * m + j]
                for t in range(self.c_ptr[j], self.c_ptr[j + 1] - 1):
                    total += self.c_val[t] * x[i * m + self.c_idx[t]]
                    y[i * m + self.c_idx[t]] += self.c_val[t] * xj
                y[i * m + j] += total + self.c_val[self.c_ptr[j + 1] - 1] * xj


cdef class SparseTail(PatternTail):
    """A supernodal factor on a fixed pattern; see the module's note.

    Parameters
    ----------
    rows : tuple
        Pattern of the tail rows, from `_assemble.tail_rows`.
    c_ptr, c_idx : int64
        Lower pattern of C by rows, sorted, from `_assemble.schur_pattern`.
    threads : int
    tree : Supernodes, optional
        Those of the pattern, if already made.

    Attributes
    ----------
    cholesky : SupernodalCholesky
    """

    def __init__(self, tuple rows not None, c_ptr, c_idx, int threads, Supernodes tree=None):
        self.ready = False
        self.set_rows(rows, threads)
        self.set_pattern(c_ptr, c_idx)
        self.cholesky = SupernodalCholesky(c_ptr, c_idx, threads, tree)
        self.ready = True

    @staticmethod
    def bytes(Supernodes tree not None, Py_ssize_t nnz, int threads):
        """Memory of the engine for a pattern of ``nnz`` entries: its indices, C, and the factor."""
        return 16 * nnz + 8 * (1 + threads) * tree.m + SupernodalCholesky.bytes(tree, nnz, threads)

    cdef int factor(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr, Py_ssize_t n_blocks,
                    double *logdet) noexcept nogil:
        self.stamp += 1
        self.inverted, self.solvable = False, True
        self.cholesky.clear()
        self.scale(lam, block_ptr, lam_ptr, n_blocks, &self.cholesky.panels[0], &self.cholesky.place[0])
        return self.cholesky.factor(logdet)

    cdef void forward(self, double *x, Py_ssize_t k) noexcept nogil:
        self.cholesky.forward(x, k)

    cdef void backward(self, double *x, Py_ssize_t k) noexcept nogil:
        self.cholesky.backward(x, k)

    cdef int inverse(self, bint keep) noexcept nogil:
        self.inverted, self.solvable = True, keep
        if keep and self.cholesky.keep_factor() != 0:
            return 1
        self.cholesky.inverse()
        return 0

    cdef double inverse_entry(self, Py_ssize_t j, Py_ssize_t k) noexcept nogil:
        return self.cholesky.inverse_entry(j, k)

    cdef void inverse_column(self, Py_ssize_t j, double *out) noexcept nogil:
        self.cholesky.inverse_column(j, out)
