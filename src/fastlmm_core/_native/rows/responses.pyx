"""Responses of one design: residuals on the conditioned fixed-effects columns Q and their cross-products.

For responses Y (n, k) with Q'WQ = I but for rounding, in three passes over the rows, a chunk of rows at a time:

    E = Y - Q (C_1 + C_2)       C_1 from Y, C_2 from what rounding left in Y - Q C_1
    norms^2 = diag(E'WE),  xty = Q'WE / norms,  Z'WE / norms for every grouping factor

Cost: O(n k (p + sum l)); memory n k doubles. Products of a few thousand flops go through plain loops, which take a
fraction of a call to BLAS; there a response's results do not depend on those beside it.
"""

import numpy as np

from libc.math cimport sqrt
from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dgemm

from fastlmm_core._native.rows.crossprod cimport add_level_sums

__all__ = ["ResponseProducts"]

cdef enum:
    FEW = 4       # columns of Q for which a single response takes one loop over the rows, however many
    LOOPS = 4096  # numbers in Q, or in Q for k responses, up to which loops beat BLAS otherwise


cdef double LARGEST = 1e145, SMALLEST = 1e-145  # norms beyond these have lost digits to overflow or underflow


cdef struct factor_t:
    const int32_t *codes  # (n,)
    const double *z       # (n, l), NULL for a column of ones
    Py_ssize_t l, size    # columns; random effects


cdef class ResponseProducts:
    """The rows of a design, ready for any responses.

    Parameters
    ----------
    X : (n, p) float64
    basis : (p, rank) float64
        Q = X basis.
    q : (n, rank) float64 or None
        Q itself where it is kept; formed a chunk at a time otherwise.
    w : (n,) float64 or None
        Weights; None stands for ones.
    metric : (rank, rank) float64
        Inverse of Q'WQ.
    codes, columns : lists of (n,) int32 and of ((n, l) float64 or None)
        Levels and columns of each grouping factor.
    levels : list of int
        Levels of each.
    chunk : int
        Rows handled at a time.
    span : float
        A residual this much smaller than its response is not ordinary.
    """

    cdef tuple arguments  # of the constructor; own the arrays that the pointers point into
    cdef list owned
    cdef const double *X
    cdef const double *basis
    cdef const double *kept
    cdef const double *w
    cdef const double *metric
    cdef factor_t *factors
    cdef Py_ssize_t n_factors, n, p, rank, chunk
    cdef double span

    def __cinit__(self, const double[:, ::1] X not None, const double[:, ::1] basis not None,
                  const double[:, ::1] q, const double[::1] w, const double[:, ::1] metric not None,
                  list codes not None, list columns not None, list levels not None, Py_ssize_t chunk, double span):
        cdef Py_ssize_t g
        cdef const int32_t[::1] c
        cdef const double[:, ::1] z
        self.n, self.p, self.rank, self.chunk = X.shape[0], X.shape[1], basis.shape[1], chunk
        if not len(codes) == len(columns) == len(levels):
            raise ValueError("codes, columns and levels differ in length")
        if chunk < 1:
            raise ValueError(f"{chunk} rows at a time")
        self.n_factors, self.span = len(codes), span
        self.factors = <factor_t *>calloc(self.n_factors + 1, sizeof(factor_t))
        if self.factors == NULL:
            raise MemoryError
        if basis.shape[0] != self.p or metric.shape[0] != self.rank or metric.shape[1] != self.rank:
            raise ValueError("the basis and its metric do not match X")
        self.arguments = (X, basis, q, w, metric, codes, columns, levels, chunk, span)
        self.owned = []
        if self.rank:
            self.X, self.basis, self.metric = &X[0, 0], &basis[0, 0], &metric[0, 0]
        if q is not None and self.rank:
            if q.shape[0] != self.n or q.shape[1] != self.rank:
                raise ValueError("q does not match X and the basis")
            self.kept = &q[0, 0]
        if w is not None:
            if w.shape[0] != self.n:
                raise ValueError("w does not match X")
            self.w = &w[0]
        for g in range(self.n_factors):
            c, z = codes[g], columns[g]
            if c.shape[0] != self.n or (z is not None and z.shape[0] != self.n):
                raise ValueError(f"grouping factor {g} does not match X")
            self.owned += [c, z]
            self.factors[g].codes = &c[0]
            self.factors[g].l = 1
            if z is not None:
                self.factors[g].z, self.factors[g].l = &z[0, 0], z.shape[1]
            self.factors[g].size = self.factors[g].l * <Py_ssize_t>levels[g]

    def __dealloc__(self):
        free(self.factors)

    def __reduce__(self):
        X, basis, q, w, metric, *rest = self.arguments
        return ResponseProducts, (np.asarray(X), np.asarray(basis), None if q is None else np.asarray(q),
                                  None if w is None else np.asarray(w), np.asarray(metric), *rest)

    @property
    def calls_blas(self):
        """Whether BLAS takes part for a single response: Q is large, or not kept."""
        return (self.rank > FEW and self.rank * self.n > LOOPS) or (self.rank > 0 and self.kept == NULL)

    def __call__(self, const double[:, ::1] Y not None):
        """Residualise responses, scale the residuals to norm one and take their cross-products.

        Parameters
        ----------
        Y : (n, k) float64

        Returns
        -------
        coefficients : (rank, k)
            C_1 + C_2.
        sizes, norms : (k,)
            Norms of Y and of E. Where a norm is zero, so is everything below.
        dense : tuple of (q * l, k)
            Z'WE / norms, one array a grouping factor.
        xty : (rank, k)
        ordinary : bool
            Every norm is a number above ``span`` times its size, and neither huge nor tiny.
        """
        if Y.shape[0] != self.n:
            raise ValueError(f"{Y.shape[0]} rows, but the design has {self.n}")
        cdef Py_ssize_t k = Y.shape[1], rank = self.rank, g, s, part = min(self.chunk, self.n)
        found, lengths = np.zeros((2, rank, k)), np.zeros((2, k))
        dense = tuple([np.zeros((self.factors[g].size, k)) for g in range(self.n_factors)])
        cdef bint ordinary = True
        cdef double[:, :, ::1] c = found
        cdef double[:, ::1] size = lengths, target
        cdef double *coefficients = &c[0, 0, 0] if rank * k else NULL
        cdef double *moments = coefficients + rank * k
        # residuals, a step, a chunk of Q where it is not kept, a weighted chunk of residuals where BLAS needs one
        cdef bint blas = rank * self.n * k > LOOPS
        cdef Py_ssize_t spare = part * rank if self.kept == NULL else 0
        cdef Py_ssize_t total = self.n * k + rank * k + spare + (part * k if blas and self.w != NULL else 0) + 1
        cdef double *e = <double *>malloc(total * sizeof(double))
        cdef double *step = e + self.n * k
        cdef double *buffer = step + rank * k
        if e == NULL:
            raise MemoryError(f"{self.n * k} residuals")
        try:
            if k:
                memcpy(e, &Y[0, 0], self.n * k * sizeof(double))
                with nogil:
                    memset(step, 0, rank * k * sizeof(double))
                    self.add_squares(e, &size[0, 0], k)
                    for g in range(3 if rank else 0):  # C_1, C_2, and what is left
                        memset(moments, 0, rank * k * sizeof(double))
                        self.sweep(e, step, moments, buffer, buffer + spare, k, blas)
                        times_metric(self.metric, moments, step, rank, k)
                        for s in range(rank * k if g < 2 else 0):
                            coefficients[s] += step[s]
                    self.add_squares(e, &size[1, 0], k)
                    for g in range(k):
                        size[0, g], size[1, g] = sqrt(size[0, g]), sqrt(size[1, g])
                        ordinary = ordinary and self.span * size[0, g] < size[1, g] < LARGEST and size[1, g] > SMALLEST
                    scale(moments, &size[1, 0], rank, k)
                for g in range(self.n_factors):
                    target = dense[g]
                    with nogil:
                        add_level_sums(self.factors[g].codes, self.factors[g].z, self.w, e, &target[0, 0], self.n,
                                       self.factors[g].l, k)
                        scale(&target[0, 0], &size[1, 0], self.factors[g].size, k)
        finally:
            free(e)
        return found[0], lengths[0], lengths[1], dense, found[1], ordinary

    cdef const double *basis_rows(self, Py_ssize_t start, Py_ssize_t rows, double *buffer) noexcept nogil:
        """Rows of Q (rows, rank)."""
        cdef char no = b"N"
        cdef int rank = <int>self.rank, n = <int>rows, p = <int>self.p
        cdef double one = 1.0, zero = 0.0
        if self.kept != NULL:
            return self.kept + start * rank
        dgemm(&no, &no, &rank, &n, &p, &one, <double *>self.basis, &rank, <double *>self.X + start * p, &p, &zero,
              buffer, &rank)
        return buffer

    cdef void sweep(self, double *e, const double *step, double *moments, double *buffer, double *weighted,
                    Py_ssize_t k, bint blas) noexcept nogil:
        """e <- E - Q step, then moments (rank, k) += Q'WE."""
        cdef Py_ssize_t start = 0, rows
        cdef const double *q
        cdef const double *w
        while start < self.n:
            rows = min(self.chunk, self.n - start)
            q = self.basis_rows(start, rows, buffer)
            if k == 1 and self.rank <= FEW:
                w = NULL
                if self.w != NULL:
                    w = self.w + start
                few_columns(q, w, step, e + start, moments, rows, self.rank)
                start += rows
                continue
            subtract(q, step, e + start * k, rows, self.rank, k, blas)
            self.add_moments(q, start, rows, e + start * k, moments, k, weighted, blas)
            start += rows

    cdef void add_squares(self, const double *e, double *out, Py_ssize_t k) noexcept nogil:
        """out (k,) += weighted squares of the columns of e (n, k)."""
        cdef Py_ssize_t i, c
        cdef double w = 1.0
        for i in range(self.n):
            if self.w != NULL:
                w = self.w[i]
            for c in range(k):
                out[c] += w * e[i * k + c] * e[i * k + c]

    cdef void add_moments(self, const double *q, Py_ssize_t start, Py_ssize_t rows, const double *e, double *out,
                          Py_ssize_t k, double *weighted, bint blas) noexcept nogil:
        """out (rank, k) += Q'We; ``weighted`` has room for e where BLAS meets weights."""
        cdef Py_ssize_t i, a, c, rank = self.rank
        cdef double w = 1.0, x
        cdef char no = b"N", yes = b"T"
        cdef int n = <int>rows, p = <int>rank, kk = <int>k
        cdef double one = 1.0
        if blas:
            if self.w != NULL:
                for i in range(rows):
                    for c in range(k):
                        weighted[i * k + c] = self.w[start + i] * e[i * k + c]
                e = weighted
            dgemm(&no, &yes, &kk, &p, &n, &one, <double *>e, &kk, <double *>q, &p, &one, out, &kk)
            return
        for i in range(rows):
            if self.w != NULL:
                w = self.w[start + i]
            for a in range(rank):
                x = q[i * rank + a]
                for c in range(k):
                    out[a * k + c] += x * (w * e[i * k + c])


cdef void few_columns(const double *q, const double *w, const double *step, double *e, double *moments,
                      Py_ssize_t rows, Py_ssize_t rank) noexcept nogil:
    """A sweep over rows for one response and one to four columns, each number of them compiled by itself."""
    if rank == 1:
        sweep_rows(q, w, step, e, moments, rows, 1)
    elif rank == 2:
        sweep_rows(q, w, step, e, moments, rows, 2)
    elif rank == 3:
        sweep_rows(q, w, step, e, moments, rows, 3)
    else:
        sweep_rows(q, w, step, e, moments, rows, 4)


cdef inline void sweep_rows(const double *q, const double *w, const double *step, double *e, double *moments,
                            Py_ssize_t rows, Py_ssize_t rank) noexcept nogil:
    """e <- e - Q step and moments += Q'We, in the order in which `subtract` and `add_moments` sum."""
    cdef Py_ssize_t i, a
    cdef double x
    cdef double total[FEW]
    for a in range(rank):
        total[a] = moments[a]
    for i in range(rows):
        x = e[i]
        for a in range(rank):
            x -= q[i * rank + a] * step[a]
        e[i] = x
        if w != NULL:
            x *= w[i]
        for a in range(rank):
            total[a] += q[i * rank + a] * x
    for a in range(rank):
        moments[a] = total[a]


cdef void subtract(const double *q, const double *step, double *e, Py_ssize_t rows, Py_ssize_t rank, Py_ssize_t k,
                   bint blas) noexcept nogil:
    """e (rows, k) -= Q step."""
    cdef Py_ssize_t i, a, c
    cdef double x, one = 1.0, minus = -1.0
    cdef char no = b"N"
    cdef int n = <int>rows, p = <int>rank, kk = <int>k
    if blas:
        dgemm(&no, &no, &kk, &n, &p, &minus, <double *>step, &kk, <double *>q, &p, &one, e, &kk)
        return
    for i in range(rows):
        for a in range(rank):
            x = q[i * rank + a]
            for c in range(k):
                e[i * k + c] -= x * step[a * k + c]


cdef void times_metric(const double *metric, const double *x, double *out, Py_ssize_t rank,
                       Py_ssize_t k) noexcept nogil:
    """out (rank, k) <- metric x."""
    cdef Py_ssize_t a, b, c
    memset(out, 0, rank * k * sizeof(double))
    for a in range(rank):
        for b in range(rank):
            for c in range(k):
                out[a * k + c] += metric[a * rank + b] * x[b * k + c]


cdef void scale(double *x, const double *norms, Py_ssize_t rows, Py_ssize_t k) noexcept nogil:
    """Divide the columns of x (rows, k) by their norms, where these are not zero."""
    cdef Py_ssize_t i, c
    for i in range(rows):
        for c in range(k):
            if norms[c] > 0.0:
                x[i * k + c] /= norms[c]
