"""Traces of Z'QZ by factor: what the criterion's slope along each covariance matrix is made of.

With Q = V^-1 (ML, fixed scale) or P (REML), each factor's sum over its levels of

    leading   [Z'QZ]_ii = (I - A_i K_i) A_i - U_i S^-1 U_i' - e_i e_i',   U_i = (I - A_i K_i) B_i Lambda_t
    tail      [Z'QZ]_jj = L_k^-T (I - [S^-1]_jj) L_k^-1, extrapolated from lifted factors when L_k is near singular;
              with a precision P between levels the sum over j is L_k^-T (q I - sum_jk P_jk [S^-1]_jk) L_k^-1

where e_i (REML only) carries the fixed effects' share.

In: the factors of the last value (`solver`), which the traces use up. Out: (l, l) a factor, one after another in
``sums``. Cost: an inverse of S on its pattern and a gather like the elimination's scatter; three times that where a
factor is lifted. Level loops that sum run over a fixed number of chunks, so results do not depend on the number of
threads.
"""

import numpy as np

from cython.parallel cimport prange
from libc.math cimport fabs, sqrt
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dtrsm

from fastlmm_core._native.criterion.solver cimport Solver
from fastlmm_core._native.leading.level cimport correction_chunk, times_ka
from fastlmm_core._native.small cimport FEW, chol, part, solve_lower_t
from fastlmm_core._native.tail.tail cimport Tail, levels_t

__all__ = ["Traces"]

cdef double FLOOR = 1e-6  # squared floor of a tail factor's singular values, over one over the weight a level has

cdef enum:
    CHUNK = 256     # leading levels a chunk, unless that makes too many
    MAX_CHUNKS = 64


cdef class Traces(Solver):
    """A `Solver` with the traces of Z'QZ; parameters as there."""

    def __init__(self, dict arrays not None, Tail tail not None, Py_ssize_t n, Py_ssize_t p, bint reml, int threads,
                 bint fixed_scale=False):
        Solver.__init__(self, arrays, tail, n, p, reml, threads, fixed_scale)
        self.ready = False
        cdef Py_ssize_t m = tail.m, n_lam = self.lam.shape[0], widest = max(arrays["group_l"])
        self.n_chunks = max(1, min(MAX_CHUNKS, (self.lead.q + CHUNK - 1) // CHUNK))
        cdef Py_ssize_t n_corrections = self.n_chunks * self.lead.l * (self.lead.l + 1)  # sums of a chunk, and a column
        cdef double[::1] room = np.zeros(3 * n_lam + 2 * m * p + 1 + n_corrections + 8 * widest * widest)
        cdef Py_ssize_t used = 0
        self.lam_lifted, self.omega = part(room, &used, n_lam), part(room, &used, 2 * m * p + 1)
        self.sums, self.parts = part(room, &used, n_lam), part(room, &used, n_lam)
        self.corrections, self.small = part(room, &used, n_corrections), part(room, &used, 8 * widest * widest)
        self.ready = True

    def traces(self, const double[::1] theta not None):
        """sum_j [Z_k'V^-1 Z_k]_jj of each group at ``theta``, with a fixed scale.

        Returns
        -------
        list of (l, l) arrays
            Half the derivative of log|M| by the group's covariance matrix Sigma_k.
        """
        cdef int status
        if not self.fixed_scale:
            raise ValueError("traces of V^-1 need a fixed scale; `derivatives` has the profiled criterion's")
        self.enter()
        try:
            self.check_length(theta)
            with nogil:
                status = self.factor_at(&theta[0]) if not self.same(&theta[0]) else 0
                if status == 0:
                    self.leading_shrinkage()
                    status = self.all_traces()
            sums = np.array(self.sums)
        finally:
            self.leave()
        self.check(status, theta)
        ends, widths = np.asarray(self.group_lam), np.asarray(self.group_l)
        parts = [sums[a:b].reshape(l, l).copy() for a, b, l in zip(ends[:self.n_groups], ends[1:], widths, strict=True)]
        return parts if self.lead.q else parts[1:]

    cdef void leading_shrinkage(self) noexcept nogil:
        """``sums`` begins with sum_i (I - A_i K_i) A_i, in the order of the levels."""
        cdef Py_ssize_t i, r, c, x, l = self.lead.l
        cdef double s
        cdef double *ka = &self.small[0]
        cdef const double *a
        memset(&self.sums[0], 0, self.sums.shape[0] * sizeof(double))
        for i in range(self.lead.q):
            a = self.lead.a + i * l * l
            times_ka(&self.lead_m[0] + i * l * l, a, ka, l)
            for r in range(l):
                for c in range(l):
                    s = a[r * l + c]
                    for x in range(l):
                        s -= a[r * l + x] * ka[x * l + c]
                    self.sums[r * l + c] += s

    cdef int all_traces(self) noexcept nogil:
        """Add the traces of Z'QZ to ``sums``, which hold the leading factor's own part.

        Where a tail factor is near singular they are taken with Sigma lifted by f^2 I and by 2 f^2 I, and extrapolated
        to no lift: they are smooth in the lift, so what is left is of order f^4.
        """
        if self.tail.m == 0 or not self.lift_tail(1.0):
            return self.add_traces(&self.lam[0], 1.0)
        self.current = False
        if self.finish(&self.lam_lifted[0]) != 0 or self.add_traces(&self.lam_lifted[0], 2.0) != 0:
            return 1
        if self.reml and self.p:  # the leading rows' dense columns were used up
            self.eliminate()
        self.lift_tail(2.0)
        if self.finish(&self.lam_lifted[0]) != 0:
            return 1
        return self.add_traces(&self.lam_lifted[0], -1.0)

    cdef int add_traces(self, const double *lam, double weight) noexcept nogil:
        """Add ``weight`` times sum_j [Z'QZ]_jj, less the leading factor's own part, from the factors at ``lam``.

        The tail's part is L^-T (q I - sum_j [S^-1]_jj) L^-1. Uses up the factors.
        """
        cdef Py_ssize_t r, c, x, g, l, p = self.p
        cdef levels_t levels
        cdef double *trace = &self.parts[0]
        cdef double *block
        memset(trace, 0, self.parts.shape[0] * sizeof(double))
        if self.tail.m and self.reml:
            self.make_omega()
        self.projected = False
        self.project(lam, False, &self.shrink[0] if self.reml and p else NULL)
        if self.reml and p:
            self.fixed_correction(trace)
        if self.tail.m:
            if not (self.current and self.inverted):
                self.inverted = True
                if self.tail.inverse(False) != 0:
                    self.current = False
                    return 1
            self.gather_into(trace)
            levels.n = self.n_blocks
            levels.ptr, levels.group = &self.block_ptr[0], &self.block_group[0]
            levels.group_l, levels.group_lam = &self.group_l[0], &self.group_lam[0]
            self.tail.traces(&levels, &self.omega[0], p if self.reml else 0, trace)
        for g in range(1, self.n_groups):
            l = self.group_l[g]
            block = trace + self.group_lam[g]
            for r in range(l):
                for c in range(r):
                    block[r * l + c] = block[c * l + r]
            for r in range(l):  # columns, then rows
                solve_lower_t(lam + self.group_lam[g], block + r, l, l)
            for r in range(l):
                solve_lower_t(lam + self.group_lam[g], block + r * l, l, 1)
        for x in range(self.parts.shape[0]):
            self.sums[x] += weight * trace[x]
        return 0

    cdef void gather_into(self, double *big_g) noexcept nogil:
        cdef Py_ssize_t x, size = self.lead.l * self.lead.l
        cdef double *out = &self.small[0]
        memset(out, 0, size * sizeof(double))
        self.tail.gather(&self.lead, out, False, &self.work[0])
        for x in range(size):
            big_g[x] -= out[x]

    cdef int lift_tail(self, double multiple) noexcept nogil:
        """Copy lam, with near-singular tail factors replaced by chol(L L' + multiple f^2 I); 1 when there are any.

        [S^-1]_jj tends to I as L_k tends to 0, so its distance from I loses digits below f. G is a function of Sigma
        alone, so any factor of the lifted matrix serves.
        """
        cdef Py_ssize_t g, l, r, c, x
        cdef double f, s, norm, floor = FLOOR
        cdef int lifted = 0
        cdef double *w = &self.small[0]
        cdef const double *factor
        cdef double *out
        memcpy(&self.lam_lifted[0], &self.lam[0], self.lam.shape[0] * sizeof(double))
        for g in range(1, self.n_groups):
            l, f = self.group_l[g], sqrt(floor * self.group_levels[g] / self.values.total_weight)
            factor, out = &self.lam[self.group_lam[g]], &self.lam_lifted[self.group_lam[g]]
            norm = 0.0  # |L^-1|_F, at least 1 / the smallest singular value
            for c in range(l):
                for r in range(l):
                    w[r] = 1.0 if r == c else 0.0
                for r in range(c, l):
                    for x in range(c, r):
                        w[r] -= factor[r * l + x] * w[x]
                    if fabs(factor[r * l + r]) < 1e-300:
                        norm = 1e300
                        break
                    w[r] /= factor[r * l + r]
                    norm += w[r] * w[r]
            if norm * f * f < 1.0:
                continue
            lifted = 1
            for r in range(l):
                for c in range(r + 1):
                    s = multiple * f * f if r == c else 0.0
                    for x in range(c + 1):
                        s += factor[r * l + x] * factor[c * l + x]
                    w[r * l + c] = s
            chol(w, l)
            for r in range(l):
                for c in range(r + 1):
                    out[r * l + c] = w[r * l + c]
        return lifted

    cdef void make_omega(self) noexcept nogil:
        """omega (m, p): S^-1 S_tX L_XX^-T, the fixed effects' share of the inverse."""
        cdef Py_ssize_t m = self.tail.m, p = self.p, x, y, j
        cdef int mm = <int>m, pp = <int>p, d = <int>self.lead.d
        cdef char side = b"R", uplo = b"U", no = b"N"
        cdef double one = 1.0
        cdef double *w = &self.omega[0] + m * p
        if p == 0:
            return
        memcpy(w, &self.y_dense[0, 0], p * m * sizeof(double))
        self.tail.backward(w, p)
        if p <= FEW:
            for x in range(p):
                for y in range(x):
                    for j in range(m):
                        w[x * m + j] -= self.ld[x, y] * w[y * m + j]
                for j in range(m):
                    w[x * m + j] /= self.ld[x, x]
        else:
            dtrsm(&side, &uplo, &no, &no, &mm, &pp, &one, &self.ld[0, 0], &d, w, &mm)
        for x in range(p):
            for j in range(m):
                self.omega[j * p + x] = w[x * m + j]

    cdef void fixed_correction(self, double *out) noexcept nogil:
        """Subtract sum_i e_i e_i', e_i = (I - A_i K_i) Z_X L_XX^-T - U_i omega, from ``out`` (l, l)."""
        cdef Py_ssize_t q = self.lead.q, l = self.lead.l, d = self.lead.d, p = self.p, i, r, c
        cdef Py_ssize_t size = l * l, step = l * (l + 1)
        cdef int dd = <int>d, pp = <int>p, rows = <int>(q * l)
        cdef char side = b"L", uplo = b"U", yes = b"T", no = b"N"
        cdef double one = 1.0
        memcpy(self.lead.ud, self.lead.zd, q * l * d * sizeof(double))
        if p <= FEW:
            for i in range(rows):
                for r in range(p):
                    for c in range(r):
                        self.lead.ud[i * d + r] -= self.ld[r, c] * self.lead.ud[i * d + c]
                    self.lead.ud[i * d + r] /= self.ld[r, r]
        else:
            dtrsm(&side, &uplo, &yes, &no, &pp, &rows, &one, &self.ld[0, 0], &dd, self.lead.ud, &dd)
        if self.threads == 1:
            for i in range(self.n_chunks):
                correction_chunk(&self.lead, i * q // self.n_chunks, (i + 1) * q // self.n_chunks, p, &self.shrink[0],
                                 &self.omega[0], &self.corrections[i * step])
        else:
            for i in prange(self.n_chunks, schedule="static", num_threads=self.threads):
                correction_chunk(&self.lead, i * q // self.n_chunks, (i + 1) * q // self.n_chunks, p, &self.shrink[0],
                                 &self.omega[0], &self.corrections[i * step])
        for i in range(self.n_chunks):
            for r in range(size):
                out[r] -= self.corrections[i * step + r]
