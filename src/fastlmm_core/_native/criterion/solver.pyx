"""One evaluation of the profiled criterion, and the solves that its factors allow.

Everything starts from the cross-products; n appears only in a constant. With K_i = L1 D_i^-1 L1', D_i = L1'A_i L1 + I
for each leading level (`leading/level.pxd`) and C, S, L of the tail (`tail/tail.pyx`):

    log|M|       = sum_i log|D_i| + log|S|
    [C_tD; D'D]  = dense columns D = [X y] after the leading elimination;  Y = L^-1 Lambda_t'C_tD
    L_D L_D'     = D'D - Y'Y;   log|X'V^-1X| from its first p pivots,  r^2 = the last pivot squared
    ML           log|M| + n (1 + log(2 pi r^2 / n)) - sum log w
    REML         log|M| + log|X'V^-1X| + (n-p)(1 + log(2 pi r^2 / (n-p))) - sum log w

With a fixed scale (a working model whose weights carry the scale: a step of iterated least squares, a Laplace
approximation) the value is log|M| alone and there are no dense columns.

In: what `workspace` holds. Out: doubles in conditioned coordinates. No allocation in an evaluation, no GIL.

The object is a workspace with one state: the factors at one theta of one version of the values. Each method takes theta
and makes what it needs of it, or finds it at hand:

    load(values, constant)   other numbers on the same pattern; nothing symbolic is done again
    value(theta)             eliminate, factor; the criterion
    modes(theta)             beta, b, the dense columns' factor
    solve(theta, ...)        Lambda M^-1 Lambda' for many right-hand sides
    invert(theta)            the inverse on its pattern, solves kept possible; `cond_var` the same for one question
    cond_var(theta)          conditional covariances of every level
    derivatives(theta)       gradient and model Hessian (`evaluator`); `traces(theta)` (`traces`) with a fixed scale

After `invert` all the others answer at its theta without a factor of their own, except that `traces` near a singular
factor makes two more and gives up the one at hand: ask for it last.
On one thread loops are plain ones: a parallel region of one thread still ends in a system call, which costs as much as
18 levels do.
"""

import numpy as np

from cython.parallel cimport prange, threadid
from libc.math cimport M_PI, fabs, isfinite, log
from libc.stdint cimport int64_t
from libc.string cimport memcpy
from scipy.linalg.cython_blas cimport dsyrk
from scipy.linalg.cython_lapack cimport dpotrf

from fastlmm_core._native.criterion.workspace cimport Workspace
from fastlmm_core._native.leading.level cimport (
    back_substitute, eliminate_level, eliminate_rhs, level_modes, project_level,
)
from fastlmm_core._native.small cimport FEW, chol, lower_t_times, lower_times, subtract_gram

__all__ = ["Solver"]


cdef class Solver(Workspace):
    """A `Workspace` with the criterion's value, modes, solves and variances; parameters as there."""

    cdef int expect_projection(self) except -1:
        """Refuse to read what `cond_var` leaves behind where something else has been computed since."""
        if not self.projected or self.stamp != self.tail.stamp:
            raise ValueError("call cond_var first: the workspace holds something else by now")
        return 0

    # ------------------------------------------------------------------ Python entry points

    def value(self, const double[::1] theta not None):
        """The criterion at ``theta`` (n_theta,), in conditioned coordinates; inf where it overflows."""
        cdef double out = 0.0
        cdef int status
        self.enter()
        try:
            self.check_length(theta)
            with nogil:
                status = self.c_value(&theta[0], &out)
        finally:
            self.leave()
        self.check(status, theta)
        return out

    def modes(self, const double[::1] theta not None):
        """Estimates given ``theta``.

        Returns
        -------
        beta : (p,)
        b_lead : (q, l) conditional modes of the leading factor
        b_tail : (m,) those of the tail, in the plan's order
        ld : (p + 1, p + 1) lower factor of the dense columns' Schur complement
        value : float
        """
        cdef int status
        cdef Py_ssize_t r, c
        self.enter()
        try:
            self.check_length(theta)
            with nogil:
                status = self.c_modes(&theta[0])
                if status == 0:
                    for r in range(self.p):  # what LAPACK left above the diagonal
                        for c in range(r + 1, self.p + 1):
                            self.ld[r, c] = 0.0
            self.check(status, theta)
            beta, b_lead, b_tail, ld = self.solution
            b_lead, b_tail = b_lead[:self.lead.q].copy(), b_tail[:self.tail.m].copy()
            return beta[:self.p].copy(), b_lead, b_tail, ld.copy(), self.criterion
        finally:
            self.leave()

    def invert(self, const double[::1] theta not None):
        """Form the inverse at ``theta`` on its pattern, solves being kept possible."""
        cdef int status
        self.enter()
        try:
            self.check_length(theta)
            with nogil:
                status = self.invert_at(&theta[0], True)
        finally:
            self.leave()
        self.check(status, theta)

    def cond_var(self, const double[::1] theta not None):
        """Conditional covariance of the random effects given ``theta``, in units of sigma^2.

        Returns
        -------
        lead : (q, l, l)
            K_i + K_i B_i Lambda S^-1 Lambda' B_i' K_i.
        tail : list of (q_h, l_h, l_h) arrays, blocks in the plan's order
            L_h [S^-1]_jj L_h'.
        """
        self.enter()
        try:
            self.check_length(theta)
            return self.conditional_blocks(theta)
        finally:
            self.leave()

    cdef object conditional_blocks(self, const double[::1] theta):
        """`cond_var` of a workspace that has been entered."""
        cdef Py_ssize_t l = self.lead.l, lb, g
        cdef int status
        lead_ = np.zeros((max(1, self.lead.q), l, l))
        cdef double[:, :, ::1] lead = lead_
        with nogil:
            status = self.invert_at(&theta[0], False)
            if status == 0:
                self.project(&self.lam[0], True, NULL)
                self.tail.gather(&self.lead, &lead[0, 0, 0], True, &self.work[0])
        self.check(status, theta)
        self.projected = True
        m = np.asarray(self.lead_m)[:self.lead.q * l * l].reshape(self.lead.q, l, l)
        lead_ = lead_[:self.lead.q]
        lead_ += np.matmul(m.transpose(0, 2, 1), m)
        groups = np.asarray(self.block_group)
        tail = []
        for g in range(1, self.n_groups):
            lb = self.group_l[g]
            members = np.flatnonzero(groups == g)
            inv_ = np.empty((len(members), lb, lb))
            self.inverse_blocks_into(members, inv_)
            factor = np.asarray(self.lam[self.group_lam[g]:self.group_lam[g + 1]]).reshape(lb, lb)
            tail.append(factor @ inv_ @ factor.T)
        return lead_, tail

    def solve(self, const double[::1] theta not None, const double[:, ::1] lead not None,
              const double[:, ::1] tail not None):
        """Solve the mixed-model equations without fixed effects for given Z'Wf, k vectors f at once.

        Parameters
        ----------
        theta : (n_theta,)
        lead, tail : (k, q * l) and (k, m)
            Z'Wf of the leading factor and of the tail, in the plan's order.

        Returns
        -------
        b_lead, b_tail
            Lambda M^-1 Lambda' Z'Wf, the best linear predictor of b from f.
        t_lead, t_tail
            Z'V^-1 f = Z'Wf - Z'WZ b.
        """
        self.enter()
        try:
            self.check_length(theta)
            return self.solve_all(theta, lead, tail)
        finally:
            self.leave()

    cdef object solve_all(self, const double[::1] theta, const double[:, ::1] lead, const double[:, ::1] tail):
        """`solve` of a workspace that has been entered."""
        cdef Py_ssize_t k = lead.shape[0], v, i, m = self.tail.m, size = self.lead.q * self.lead.l
        cdef int status = 0
        cdef double value = 0.0
        b_lead_, t_lead_ = np.zeros((k, size)), np.array(lead)
        b_tail_, t_tail_ = np.zeros((k, m)), np.array(tail)
        cdef double[:, ::1] b_lead = b_lead_, t_lead = t_lead_, b_tail = b_tail_, t_tail = t_tail_
        if lead.shape[1] != size or tail.shape[0] != k or tail.shape[1] != m:
            raise ValueError(f"expected {k} x {size} and {k} x {m} right-hand sides")
        with nogil:
            if not self.same(&theta[0]) or (self.inverted and not self.tail.solvable):
                status = self.c_value(&theta[0], &value)
            if status == 0 and k and m:
                for v in prange(k, schedule="static", num_threads=self.threads):
                    for i in range(self.lead.q):
                        eliminate_rhs(&self.lead, i, &self.lead_m[0], &lead[v, 0], &t_tail[v, 0])
                b_tail[:, :] = t_tail
                self.lambda_t(&self.lam[0], &b_tail[0, 0], k)
                self.tail.solve(&b_tail[0, 0], k)
                for v in range(k):
                    for i in range(self.n_blocks):
                        lower_times(&self.lam[self.block_lam[i]], &b_tail[v, self.block_ptr[i]],
                                    self.block_ptr[i + 1] - self.block_ptr[i], 1)
                    self.tail.times(&b_tail[v, 0], &self.t_tail[0], 1)
                    for i in range(m):
                        t_tail[v, i] -= self.t_tail[i]
            if status == 0:
                for v in prange(k, schedule="static", num_threads=self.threads):
                    for i in range(self.lead.q):
                        back_substitute(&self.lead, i, &self.lead_m[0], &b_tail[v, 0] if m else NULL, &b_lead[v, 0],
                                        &t_lead[v, 0], self.lead.l)
        self.check(status, theta)
        return b_lead_, b_tail_, t_lead_, t_tail_

    cdef void inverse_blocks_into(self, const int64_t[::1] members, double[:, :, ::1] out) noexcept nogil:
        cdef Py_ssize_t k, r, c, o
        for k in range(members.shape[0]):
            o = self.block_ptr[members[k]]
            for r in range(out.shape[1]):
                for c in range(r, out.shape[1]):
                    out[k, r, c] = self.tail.inverse_entry(o + r, o + c)
                    out[k, c, r] = out[k, r, c]

    # ------------------------------------------------------------------ value

    cdef int c_value(self, const double *theta, double *value) noexcept nogil:
        """The criterion at ``theta``; nonzero where a factorisation failed."""
        cdef Py_ssize_t a, g, i
        cdef double logdet = 0.0
        self.current = self.inverted = self.solved = self.projected = False
        self.version = self.values.version
        for a in range(self.n_theta):
            if not isfinite(theta[a]):
                return 1
            g = self.theta_group[a]
            self.lam[self.group_lam[g] + self.theta_row[a] * self.group_l[g] + self.theta_col[a]] = theta[a]
        self.eliminate()
        for i in range(self.lead.q):
            logdet += self.logd[i]
        if self.finish(&self.lam[0]) != 0 or not isfinite(logdet):
            return 1
        self.logdet_m += logdet
        if self.fixed_scale:
            value[0] = self.logdet_m + self.constant
        else:
            value[0] = self.logdet_m + self.nu * (1.0 + log(2.0 * M_PI * self.r2 / self.nu)) + self.constant
        if self.reml:
            value[0] += self.logdet_x
        self.criterion = value[0]
        self.stamp = self.tail.stamp
        self.current = True
        return 0

    cdef double rounding(self, double value) noexcept nogil:
        return 1e-12 * (fabs(value - self.constant) + self.nu)  # whatever the units of y

    cdef bint at(self, const double *theta) noexcept nogil:
        """Whether the factors in hand are those of ``theta``, and whole."""
        return self.same(theta) and not self.inverted

    cdef int factor_at(self, const double *theta) noexcept nogil:
        """Factors at ``theta``, made unless they are in hand."""
        cdef double value = 0.0
        return 0 if self.at(theta) else self.c_value(theta, &value)

    cdef int invert_at(self, const double *theta, bint keep) noexcept nogil:
        """The inverse at ``theta``, made unless it is in hand; with ``keep``, solves stay possible."""
        if self.same(theta) and self.inverted and (self.tail.solvable or not keep):
            return 0
        if self.c_modes(theta) != 0 or self.factor_at(theta) != 0:  # modes could not be had afterwards
            return 1
        self.inverted, self.projected = True, False
        self.current = self.tail.inverse(keep) == 0
        return 0 if self.current else 1

    cdef int c_modes(self, const double *theta) noexcept nogil:
        """The solution at ``theta``, made unless it is in hand; nothing with a fixed scale."""
        if self.fixed_scale or (self.solved and self.same(theta)):
            return 0
        if self.factor_at(theta) != 0:
            return 1
        self.solve_modes()
        return 0

    cdef bint same(self, const double *theta) noexcept nogil:
        """Whether factors, or the inverse, are those of ``theta`` and of the values as they are now."""
        cdef Py_ssize_t a, g
        if not self.current or self.version != self.values.version or self.stamp != self.tail.stamp:
            return False
        for a in range(self.n_theta):
            g = self.theta_group[a]
            if theta[a] != self.lam[self.group_lam[g] + self.theta_row[a] * self.group_l[g] + self.theta_col[a]]:
                return False
        return True

    cdef void eliminate(self) noexcept nogil:
        """Leading levels: M_i = R_i^-1 L1' with R_i R_i' = D_i (so K_i = M_i'M_i), then U_i = M_i B_i, C and C_tD."""
        cdef Py_ssize_t i, q = self.lead.q, m = self.tail.m, d = self.lead.d, j, x
        cdef double *dense
        self.lead.even = self.values.even
        if self.threads == 1:
            for i in range(q):
                eliminate_level(&self.lead, i, &self.lam[0], &self.lead_m[0], &self.logd[0])
        else:
            for i in prange(q, schedule="static", num_threads=self.threads):
                eliminate_level(&self.lead, i, &self.lam[0], &self.lead_m[0], &self.logd[0])
        if m:
            dense = &self.c_dense[0, 0]
            for x in range(d):
                for j in range(m):
                    dense[x * m + j] = self.zd_tail[x, j]
            self.tail.assemble(&self.lead, &self.values.tail_val[0], dense, &self.work[0])

    cdef int finish(self, double *lam) noexcept nogil:
        """Factor the tail with block factors ``lam``, then the dense columns."""
        cdef Py_ssize_t m = self.tail.m, j
        cdef int d = <int>self.lead.d, n = <int>(self.lead.q * self.lead.l), info = 0
        cdef char uplo = b"U", no = b"N"
        cdef double minus = -1.0, one = 1.0
        cdef double *ld = &self.ld[0, 0]
        if self.tail.factor(lam, &self.block_ptr[0], &self.block_lam[0], self.n_blocks, &self.logdet_m) != 0:
            return 1
        if self.fixed_scale:
            return 0 if isfinite(self.logdet_m) else 1
        memcpy(ld, &self.dtd[0, 0], d * d * sizeof(double))
        # row-major lower triangles are LAPACK's upper ones throughout
        if d <= FEW:
            subtract_gram(self.lead.ud, ld, n, d)
        else:
            dsyrk(&uplo, &no, &d, &n, &minus, self.lead.ud, &d, &one, ld, &d)
        if m:
            memcpy(&self.y_dense[0, 0], &self.c_dense[0, 0], d * m * sizeof(double))
            self.lambda_t(lam, &self.y_dense[0, 0], d)
            self.tail.reduce(&self.y_dense[0, 0], d, ld)
        if d <= FEW:
            info = chol(ld, d)
        else:
            dpotrf(&uplo, &d, ld, &d, &info)
        if info != 0:
            return 1
        self.logdet_x = 0.0
        for j in range(self.p):
            self.logdet_x += 2.0 * log(ld[j * d + j])
        self.r2 = ld[d * d - 1] * ld[d * d - 1]
        return 0 if isfinite(self.r2) and isfinite(self.logdet_m) else 1

    cdef void lambda_t(self, const double *lam, double *x, Py_ssize_t k) noexcept nogil:
        """x <- Lambda_t' x, k vectors of the tail."""
        cdef Py_ssize_t v, b, m = self.tail.m
        for v in range(k):
            for b in range(self.n_blocks):
                lower_t_times(lam + self.block_lam[b], x + v * m + self.block_ptr[b],
                              self.block_ptr[b + 1] - self.block_ptr[b], 1)

    # ------------------------------------------------------------------ modes and projections

    cdef void solve_modes(self) noexcept nogil:
        """beta, b and t = Z'Py from the factors of the last value."""
        cdef Py_ssize_t p = self.p, m = self.tail.m, i, j, x, b
        cdef double s
        self.solved = True
        for i in range(p - 1, -1, -1):  # L_XX' beta = L_D[p, :p]
            s = self.ld[p, i]
            for j in range(i + 1, p):
                s -= self.ld[j, i] * self.beta[j]
            self.beta[i] = s / self.ld[i, i]
        if m:
            for j in range(m):
                s = self.y_dense[p, j]
                for x in range(p):
                    s -= self.y_dense[x, j] * self.beta[x]
                self.b_tail[j] = s
            self.tail.backward(&self.b_tail[0], 1)
            for b in range(self.n_blocks):
                lower_times(&self.lam[self.block_lam[b]], &self.b_tail[self.block_ptr[b]],
                            self.block_ptr[b + 1] - self.block_ptr[b], 1)
            self.tail.times(&self.b_tail[0], &self.t_tail[0], 1)
            for j in range(m):
                s = self.c_dense[p, j]
                for x in range(p):
                    s -= self.c_dense[x, j] * self.beta[x]
                self.t_tail[j] = s - self.t_tail[j]
        if self.threads == 1:
            for i in range(self.lead.q):
                level_modes(&self.lead, i, &self.beta[0], &self.b_tail[0], &self.lead_m[0], &self.b_lead[0],
                            &self.t_lead[0])
        else:
            for i in prange(self.lead.q, schedule="static", num_threads=self.threads):
                level_modes(&self.lead, i, &self.beta[0], &self.b_tail[0], &self.lead_m[0], &self.b_lead[0],
                            &self.t_lead[0])

    cdef void project(self, const double *lam, bint posterior, double *shrink) noexcept nogil:
        """U_i <- (I - A_i K_i) B_i Lambda_t, or K_i B_i Lambda_t for conditional variances."""
        cdef Py_ssize_t i
        self.lead.even = self.values.even and self.n_groups == 2 and self.group_l[1] == 1  # one factor for all columns
        if self.threads == 1:
            for i in range(self.lead.q):
                project_level(&self.lead, i, lam, &self.lead_m[0], &self.column_block[0], &self.block_ptr[0],
                              &self.block_lam[0], posterior, shrink, &self.work[0])
        else:
            for i in prange(self.lead.q, schedule="static", num_threads=self.threads):
                project_level(&self.lead, i, lam, &self.lead_m[0], &self.column_block[0], &self.block_ptr[0],
                              &self.block_lam[0], posterior, shrink,
                              &self.work[0] + threadid() * 2 * self.lead.l * self.lead.l)
