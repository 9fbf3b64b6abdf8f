"""The sparse engine of the tail: CHOLMOD's simplicial factor, refactorised in place, and Takahashi's inverse.

Protocol as in `_tail`. The plan has already ordered the tail, so CHOLMOD works in natural order: C and S share one
lower pattern stored by rows, which CHOLMOD reads as the upper triangle by columns and neither copies nor permutes.

The pattern is analysed once. CHOLMOD does not check that later values belong to the pattern it analysed, nor that they
are finite, so the pattern lives here and never changes, and `factor` looks at every value before it calls. After each
call both `Common.status` and `L.minor` are read. One `cholmod_common` a factor: nothing is shared between objects.

Selected inverse (Takahashi, Fagan & Chin 1973; Erisman & Tinney 1975): with column j of L = (l_jj, l) on rows I,
    Z[I, j] = -Z[I, I] l / l_jj        Z[j, j] = 1 / l_jj^2 - l'Z[I, j] / l_jj
from the last column to the first; every entry needed lies on the pattern of L. Cost: the columns' lengths summed over
the entries of L, about that of the factorisation.
"""

import numpy as np

from cython.parallel cimport prange, threadid
from libc.math cimport isfinite, log
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastlmm_core._cholmod cimport (
    CHOLMOD_AMD, CHOLMOD_DOUBLE, CHOLMOD_LONG, CHOLMOD_METIS, CHOLMOD_NATURAL, CHOLMOD_OK, CHOLMOD_OUT_OF_MEMORY,
    CHOLMOD_PATTERN, CHOLMOD_REAL, CHOLMOD_SIMPLICIAL, CHOLMOD_TOO_LARGE, cholmod_l_analyze, cholmod_l_factorize,
    cholmod_l_finish, cholmod_l_free_factor, cholmod_l_start)
from fastlmm_core._leading cimport gather_row, leading_t, schur_row
from fastlmm_core._tail cimport Tail

from fastlmm_core.errors import NumericalError

__all__ = ["SparseTail", "fill_ordering"]


cdef class Symbolic:
    """One analysed pattern: its symbolic factor, its `cholmod_common`, and a matrix header over arrays kept here."""

    cdef void open(self, object ptr, object idx, int ordering):
        self.ptr, self.idx = ptr, idx
        cdef Py_ssize_t m = self.ptr.shape[0] - 1
        cholmod_l_start(&self.common)
        self.started = True
        self.common.print_ = 0
        self.common.supernodal = CHOLMOD_SIMPLICIAL
        self.common.final_asis = 0
        self.common.final_ll = 1
        self.common.final_pack = 1
        self.common.final_monotonic = 1
        self.common.nmethods = 1
        self.common.method[0].ordering = ordering
        self.common.postorder = ordering != CHOLMOD_NATURAL
        self.matrix.nrow = self.matrix.ncol = m
        self.matrix.nzmax = self.idx.shape[0]
        self.matrix.p = <void*>&self.ptr[0]
        self.matrix.i = <void*>&self.idx[0]
        self.matrix.nz = self.matrix.x = self.matrix.z = NULL
        self.matrix.stype = 1
        self.matrix.itype = CHOLMOD_LONG
        self.matrix.xtype = CHOLMOD_PATTERN
        self.matrix.dtype = CHOLMOD_DOUBLE
        self.matrix.sorted = 1
        self.matrix.packed = 1

    def analyse(self):
        """Run the symbolic analysis; returns (entries of L, flops of a factorisation)."""
        self.factor = cholmod_l_analyze(&self.matrix, &self.common)
        if self.factor == NULL or self.common.status != CHOLMOD_OK:
            raise_status(self.common.status, "analysis")
        return self.common.lnz, self.common.fl

    def permutation(self):
        """The ordering found: entry i is the old position of new position i."""
        cdef const int64_t *perm = <const int64_t*>self.factor.Perm
        return np.array([perm[i] for i in range(self.factor.n)], np.int64)

    def __dealloc__(self):
        if self.started:
            if self.factor != NULL:
                cholmod_l_free_factor(&self.factor, &self.common)
            cholmod_l_finish(&self.common)


def raise_status(int status, str stage):
    if status == CHOLMOD_OUT_OF_MEMORY or status == CHOLMOD_TOO_LARGE:
        raise MemoryError(f"the sparse {stage} ran out of memory")
    raise NumericalError(f"the sparse {stage} failed with CHOLMOD status {status}")


def fill_ordering(ptr, idx, method="amd"):
    """A fill-reducing, postordered permutation of a symmetric pattern given by the rows of its lower triangle.

    Parameters
    ----------
    ptr : (m + 1,) int64
    idx : (nnz,) int64, sorted within rows
    method : {"amd", "metis"}

    Returns
    -------
    perm : (m,) int64
        New position i holds old index ``perm[i]``.
    """
    cdef Symbolic symbolic = Symbolic()
    symbolic.open(ptr, idx, {"amd": CHOLMOD_AMD, "metis": CHOLMOD_METIS}[method])
    symbolic.analyse()
    return symbolic.permutation()


cdef class SparseTail(Tail):
    """CHOLMOD on a fixed pattern; see the module's note.

    Parameters
    ----------
    rows : tuple
        Tail rows, from `_assemble.tail_rows`.
    c_ptr, c_idx : int64
        Lower pattern of C by rows, sorted, from `_assemble.schur_pattern`.
    threads : int

    Attributes
    ----------
    lnz, flops : float
        Entries of L and flops of one factorisation, as predicted by the analysis.
    """

    def __init__(self, tuple rows, c_ptr, c_idx, int threads):
        cdef Py_ssize_t j
        self.set_rows(rows, threads)
        self.c_ptr, self.c_idx = c_ptr, c_idx
        self.symbolic = Symbolic()
        self.symbolic.open(c_ptr, c_idx, CHOLMOD_NATURAL)
        self.lnz, self.flops = self.symbolic.analyse()
        self.c_val = np.zeros(self.c_idx.shape[0])
        self.s_val = np.zeros(self.c_idx.shape[0])
        self.rows_work = np.zeros(threads * self.m)
        self.symbolic.matrix.x = &self.s_val[0]
        self.symbolic.matrix.xtype = CHOLMOD_REAL
        for j in range(self.m):  # an identity factor fixes the layout of L; later calls refill it in place
            self.s_val[self.c_ptr[j + 1] - 1] = 1.0
        if self.refactor() != 0:
            raise_status(self.symbolic.common.status, "factorisation")
        self.lp = <const int64_t*>self.symbolic.factor.p
        self.li = <const int64_t*>self.symbolic.factor.i
        self.lx = <const double*>self.symbolic.factor.x
        self.z_val = np.zeros(self.lp[self.m])

    @staticmethod
    def predict(c_ptr, c_idx):
        """Entries of L and flops of a factorisation for a lower pattern of C, from the symbolic analysis alone."""
        cdef Symbolic symbolic = Symbolic()
        symbolic.open(c_ptr, c_idx, CHOLMOD_NATURAL)
        return symbolic.analyse()

    cdef int refactor(self) noexcept nogil:
        """S's values into the factor; nonzero where S is not positive definite or the call failed."""
        cholmod_l_factorize(&self.symbolic.matrix, self.symbolic.factor, &self.symbolic.common)
        if self.symbolic.common.status != CHOLMOD_OK or self.symbolic.factor.minor != self.symbolic.factor.n:
            return 1
        self.lp = <const int64_t*>self.symbolic.factor.p
        self.li = <const int64_t*>self.symbolic.factor.i
        self.lx = <const double*>self.symbolic.factor.x
        return 0

    cdef void assemble(self, const leading_t *lead, double *dense, double *work) noexcept nogil:
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
                row[self.a_idx[t]] += self.a_val[t]
            for x in range(d):
                row_d[x] = dense[x * m + j]
            schur_row(lead, j, row, row_d)
            for x in range(d):
                dense[x * m + j] = row_d[x]
            for t in range(self.c_ptr[j], self.c_ptr[j + 1]):
                self.c_val[t] = row[self.c_idx[t]]

    cdef int factor(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr, Py_ssize_t n_blocks,
                    double *logdet) noexcept nogil:
        cdef Py_ssize_t m = self.m, j, b
        cdef int64_t t
        if n_blocks == m:
            for j in range(m):
                for t in range(self.c_ptr[j], self.c_ptr[j + 1]):
                    self.s_val[t] = lam[lam_ptr[j]] * self.c_val[t] * lam[lam_ptr[self.c_idx[t]]]
        else:
            for b in range(n_blocks):
                self.scale_block_row(lam, block_ptr, lam_ptr, b)
        for j in range(m):
            self.s_val[self.c_ptr[j + 1] - 1] += 1.0
        for t in range(self.c_ptr[m]):
            if not isfinite(self.s_val[t]):
                return 1
        if self.refactor() != 0:
            return 1
        logdet[0] = 0.0
        for j in range(m):
            logdet[0] += 2.0 * log(self.lx[self.lp[j]])
        return 0

    cdef void scale_block_row(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr,
                              Py_ssize_t b) noexcept nogil:
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
                    self.s_val[self.c_ptr[o + r] + t + c] = total
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
                self.s_val[self.c_ptr[o + r] + full + c] = total

    cdef void forward(self, double *x, Py_ssize_t k) noexcept nogil:
        cdef Py_ssize_t i, j, m = self.m
        cdef int64_t t
        cdef double *v
        cdef double xj
        for i in prange(k, schedule="static", num_threads=self.threads):
            v = x + i * m
            for j in range(m):
                xj = v[j] / self.lx[self.lp[j]]
                v[j] = xj
                for t in range(self.lp[j] + 1, self.lp[j + 1]):
                    v[self.li[t]] -= self.lx[t] * xj

    cdef void backward(self, double *x, Py_ssize_t k) noexcept nogil:
        cdef Py_ssize_t i, j, m = self.m
        cdef int64_t t
        cdef double *v
        cdef double xj
        for i in prange(k, schedule="static", num_threads=self.threads):
            v = x + i * m
            for j in range(m - 1, -1, -1):
                xj = v[j]
                for t in range(self.lp[j] + 1, self.lp[j + 1]):
                    xj = xj - self.lx[t] * v[self.li[t]]
                v[j] = xj / self.lx[self.lp[j]]

    cdef int inverse(self) noexcept nogil:
        cdef Py_ssize_t m = self.m, j
        cdef int64_t t, s, first, last, c, r
        cdef double *z = &self.z_val[0]
        cdef double *y = &self.rows_work[0]
        cdef double pivot, lc, total
        cdef const int64_t *lp = self.lp
        cdef const int64_t *li = self.li
        cdef const double *lx = self.lx
        for j in range(m - 1, -1, -1):
            first, last = lp[j], lp[j + 1]
            pivot = lx[first]
            for t in range(first + 1, last):
                z[t] = 0.0
                y[li[t]] = 0.0
            # y <- Z[I, I] l, from the lower triangle: column c gives its own row's sum and adds to the rows below
            for t in range(first + 1, last):
                c = li[t]
                lc = lx[t]
                total = z[lp[c]] * lc
                s = lp[c] + 1
                for r in range(t + 1, last):  # rows of I below c, all on the pattern of column c
                    while li[s] != li[r]:
                        s += 1
                    total += z[s] * lx[r]
                    y[li[r]] += z[s] * lc
                y[c] += total
            total = 0.0
            for t in range(first + 1, last):
                z[t] = -y[li[t]] / pivot
                total += lx[t] * z[t]
            z[first] = (1.0 / pivot - total) / pivot
        return 0

    cdef double inverse_entry(self, Py_ssize_t j, Py_ssize_t k) noexcept nogil:
        cdef int64_t low = self.lp[j], high = self.lp[j + 1], mid
        while low < high:
            mid = (low + high) // 2
            if self.li[mid] < k:
                low = mid + 1
            else:
                high = mid
        return self.z_val[low] if low < self.lp[j + 1] and self.li[low] == k else 0.0

    cdef void gather(self, const leading_t *lead, double *out, bint per_level, double *work) noexcept nogil:
        """``work`` as in `DenseTail.gather`."""
        cdef Py_ssize_t j, x, m = self.m, l = lead.l, size = l * l
        cdef int64_t t
        cdef double *parts = work + self.threads * l
        cdef double *row
        if per_level:  # rows share levels: one thread
            row = &self.rows_work[0]
            for j in range(m):
                for t in range(self.lp[j], self.lp[j + 1]):
                    row[self.li[t]] = self.z_val[t]
                gather_row(lead, j, row, out, True, work)
            return
        memset(parts, 0, m * size * sizeof(double))
        for j in prange(m, schedule="dynamic", chunksize=32, num_threads=self.threads):
            row = &self.rows_work[0] + threadid() * m
            for t in range(self.lp[j], self.lp[j + 1]):
                row[self.li[t]] = self.z_val[t]
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
