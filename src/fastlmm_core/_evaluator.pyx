"""One evaluation of the profiled criterion: value, exact gradient, average-information Hessian, conditional modes.

Everything starts from the cross-products; n appears only in a constant. With K_i = L1 D_i^-1 L1', D_i = L1'A_i L1 + I
for each leading level and C, S, L of the tail (`_tail`):

    log|M|       = sum_i log|D_i| + log|S|
    [C_tD; D'D]  = dense columns D = [X y] after the leading elimination;  Y = L^-1 Lambda_t'C_tD
    L_D L_D'     = D'D - Y'Y;   log|X'V^-1X| from its first p pivots,  r^2 = the last pivot squared
    ML           log|M| + n (1 + log(2 pi r^2 / n)) - sum log w
    REML         log|M| + log|X'V^-1X| + (n-p)(1 + log(2 pi r^2 / (n-p))) - sum log w

With t = Z'Py and Q = V^-1 (ML) or P (REML), each factor's covariance derivative is
    G = sum_j ( [Z'QZ]_jj - (nu / r^2) t_j t_j' )           d(criterion)/dL = 2 G L
    leading   [Z'QZ]_ii = (I - A_i K_i) A_i - U_i S^-1 U_i' - e_i e_i',   U_i = (I - A_i K_i) B_i Lambda_t
    tail      [Z'QZ]_jj = L_k^-T (I - [S^-1]_jj) L_k^-1, at a floor when L_k is near singular
where e_i (REML only) carries the fixed effects' share. The model Hessian is the average information (Gilmour, Thompson
& Cullis 1995) plus the exact curvature of Sigma = L L':
    H_ab = nu (f_a'P f_b / r^2 - (f_a'Py)(f_b'Py) / r^4) + 2 G[i_a, i_b]  [same factor, same column]
    f_a  = dV/dtheta_a Py

In: the arrays of a plan. Out: doubles in the plan's conditioned coordinates. No allocation after construction, no GIL.
Layout: tail vectors are stored one after another, (k, m); leading ones by level, (q * l, k). Level loops that sum run
over a fixed number of chunks, so results do not depend on the number of threads.
"""

import numpy as np

from cython.parallel cimport prange, threadid
from libc.math cimport M_PI, fabs, isfinite, log, sqrt
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dsyrk, dtrsm
from scipy.linalg.cython_lapack cimport dpotrf

from fastlmm_core._leading cimport leading_t
from fastlmm_core._tail cimport Tail
from fastlmm_core._tiny cimport chol, lower_t_times, lower_times, solve_lower_t

from fastlmm_core.errors import NumericalError

__all__ = ["Evaluator"]

cdef enum:
    CHUNK = 256     # leading levels a chunk, unless that makes too many
    MAX_CHUNKS = 64


cdef class Evaluator:
    """Workspace and methods of one planned model.

    Parameters
    ----------
    arrays : dict
        As laid out by `fastlmm_core.core.plan`; kept, never written to.
    tail : Tail
        The engine.
    n : int
        Observations.
    p : int
        Columns of X (full rank).
    reml : bool
    constant : float
        Added to the criterion: undoes the conditioning and holds -sum(log w).
    threads : int
    """

    def __init__(self, dict arrays, Tail tail, Py_ssize_t n, Py_ssize_t p, bint reml, double constant, int threads):
        cdef Py_ssize_t l, m = tail.m, d = p + 1, nt
        cdef const double[:, :, ::1] a = arrays["a"]
        cdef double[:, ::1] zd = np.array(arrays["zd"])  # copies: `set_response` writes their last column
        cdef const int64_t[::1] longs
        cdef const int32_t[::1] ints
        cdef const double[::1] doubles
        cdef double[::1] scratch
        cdef double[:, ::1] scratch2
        self.arrays = dict(arrays)
        self.tail, self.reml, self.constant, self.threads = tail, reml, constant, threads
        self.p = p
        self.nu = n - p if reml else n
        self.block_ptr, self.block_lam = arrays["block_ptr"], arrays["block_lam"]
        self.block_group, self.column_block = arrays["block_group"], arrays["column_block"]
        self.group_l, self.group_lam, self.group_floor = arrays["group_l"], arrays["group_lam"], arrays["group_floor"]
        self.theta_group, self.theta_row = arrays["theta_group"], arrays["theta_row"]
        self.theta_col = arrays["theta_col"]
        self.dtd, self.zd_tail = np.array(arrays["dtd"]), np.array(arrays["zd_tail"])
        self.arrays["zd"] = zd
        self.n_theta = nt = self.theta_group.shape[0]
        self.n_lead_theta = int(np.sum(np.asarray(arrays["theta_group"]) == 0))
        self.n_groups = self.group_l.shape[0]
        self.n_blocks = self.block_ptr.shape[0] - 1

        self.lead.q, self.lead.l = a.shape[0], a.shape[1]
        l = self.lead.l
        self.lead.m, self.lead.d = m, d
        self.lead.a, self.lead.zd = &a[0, 0, 0], &zd[0, 0]
        longs = arrays["ptr"]
        self.lead.ptr = &longs[0]
        longs = arrays["t_ptr"]
        self.lead.t_ptr = &longs[0]
        if arrays["idx"].shape[0]:
            ints = arrays["idx"]
            self.lead.idx = &ints[0]
            doubles = arrays["val"]
            self.lead.val = &doubles[0]
            ints = arrays["t_lead"]
            self.lead.t_lead = &ints[0]
            longs = arrays["t_pos"]
            self.lead.t_pos = &longs[0]
            scratch = np.empty(arrays["val"].shape[0])
            self.arrays["u"] = scratch
            self.lead.u = &scratch[0]
        scratch2 = np.empty((self.lead.q * l, d))
        self.arrays["ud"] = scratch2
        self.lead.ud = &scratch2[0, 0]
        self.n_chunks = min(MAX_CHUNKS, (self.lead.q + CHUNK - 1) // CHUNK)

        cdef Py_ssize_t n_lam = arrays["group_lam"][self.n_groups]
        cdef Py_ssize_t widest = max(arrays["group_l"])
        self.lam, self.lam_lifted = np.zeros(n_lam), np.zeros(n_lam)
        self.lead_m = np.empty(self.lead.q * l * l)
        self.logd = np.empty(self.lead.q)
        self.work = np.empty(threads * max(d, l) + (m + 2 * threads) * l * l)
        self.c_dense, self.y_dense, self.ld = np.empty((d, m)), np.empty((d, m)), np.empty((d, d))
        self.beta = np.zeros(d)
        self.b_tail, self.t_tail = np.zeros(m + 1), np.zeros(m + 1)
        self.b_lead, self.t_lead = np.zeros(self.lead.q * l), np.zeros(self.lead.q * l)
        self.ca, self.va = np.zeros((nt, m)), np.zeros((nt - self.n_lead_theta, m))
        self.cx, self.h1 = np.zeros((nt, d)), np.zeros((nt, nt))
        self.x_lead = np.zeros(self.lead.q * l * self.n_lead_theta)
        self.omega = np.zeros(2 * m * p + 1)
        self.sums, self.traces = np.zeros(n_lam), np.zeros(n_lam)
        self.chunk_sums = np.zeros(self.n_chunks * self.chunk_size())
        self.small = np.zeros(8 * widest * widest)

    cdef Py_ssize_t chunk_size(self) noexcept nogil:
        cdef Py_ssize_t n1 = self.n_lead_theta, l = self.lead.l
        return n1 * n1 + n1 * self.lead.d + 2 * l * l + n1 + 2 * l * n1 + l * l

    # ------------------------------------------------------------------ Python entry points

    def set_response(self, const double[::1] lead, const double[::1] tail, const double[::1] xty, double constant):
        """Replace the response.

        Parameters
        ----------
        lead : (q * l,)
            Z'We of the leading factor, e the conditioned residual of the new response.
        tail : (m,)
            Z'We of the tail, in the plan's order.
        xty : (p,)
            Q'We.
        constant : float
            As in the constructor.
        """
        if lead.shape[0] != self.lead.q * self.lead.l or tail.shape[0] != self.tail.m or xty.shape[0] != self.p:
            raise ValueError("the response's cross-products do not belong to this model")
        with nogil:
            self.c_set_response(&lead[0], 1, &tail[0] if self.tail.m else NULL, 1, &xty[0] if self.p else NULL, 1,
                                constant)

    cdef void c_set_response(self, const double *lead, Py_ssize_t lead_step, const double *tail, Py_ssize_t tail_step,
                             const double *xty, Py_ssize_t xty_step, double constant) noexcept nogil:
        cdef Py_ssize_t i, p = self.p, d = p + 1
        for i in range(self.lead.q * self.lead.l):
            self.lead.zd[i * d + p] = lead[i * lead_step]
        for i in range(self.tail.m):
            self.zd_tail[p, i] = tail[i * tail_step]
        for i in range(p):
            self.dtd[p, i] = xty[i * xty_step]
            self.dtd[i, p] = xty[i * xty_step]
        self.constant = constant
        self.current = False

    def value(self, const double[::1] theta):
        """The criterion at ``theta`` (n_theta,), in conditioned coordinates; inf where it overflows."""
        cdef double out = 0.0
        cdef int status
        with nogil:
            status = self.c_value(&theta[0], &out)
        if status != 0:
            raise NumericalError(f"the factorisation failed at theta = {np.asarray(theta)}")
        return out

    def derivatives(self, const double[::1] theta):
        """Criterion, gradient (n_theta,) and model Hessian (n_theta, n_theta) at ``theta``."""
        gradient_, hessian_ = np.empty(self.n_theta), np.empty((self.n_theta, self.n_theta))
        cdef double[::1] gradient = gradient_
        cdef double[:, ::1] hessian = hessian_
        cdef double out = 0.0
        cdef int status
        with nogil:
            status = self.c_value(&theta[0], &out)
            if status == 0:
                status = self.c_derivatives(&gradient[0], &hessian[0, 0])
        if status != 0:
            raise NumericalError(f"the factorisation failed at theta = {np.asarray(theta)}")
        return out, gradient_, hessian_

    def modes(self, const double[::1] theta):
        """Estimates given ``theta``.

        Returns
        -------
        beta : (p,)
        b_lead : (q, l) conditional modes of the leading factor
        b_tail : (m,) those of the tail, in the plan's order
        ld : (p + 1, p + 1) lower factor of the dense columns' Schur complement
        logdet_m, logdet_x, r2 : float
        """
        cdef double value = 0.0
        cdef int status = 0
        with nogil:
            if not self.at(&theta[0]):
                status = self.c_value(&theta[0], &value)
            if status == 0:
                value = self.criterion
                self.solve_modes()
        if status != 0:
            raise NumericalError(f"the factorisation failed at theta = {np.asarray(theta)}")
        return (np.array(self.beta[:self.p]), np.array(self.b_lead).reshape(self.lead.q, self.lead.l),
                np.array(self.b_tail[:self.tail.m]), np.tril(self.ld), value)

    def cond_var(self, const double[::1] theta):
        """Conditional covariance of the random effects given ``theta``, in units of sigma^2.

        Returns
        -------
        lead : (q, l, l)
            K_i + K_i B_i Lambda S^-1 Lambda' B_i' K_i.
        tail : list of (q_h, l_h, l_h) arrays, blocks in the plan's order
            L_h [S^-1]_jj L_h'.
        """
        cdef Py_ssize_t l = self.lead.l, lb, g
        cdef int status
        cdef double value = 0.0
        lead_ = np.zeros((self.lead.q, l, l))
        cdef double[:, :, ::1] lead = lead_
        with nogil:
            status = self.c_value(&theta[0], &value)
            self.current = False
            if status == 0:
                self.project(&self.lam[0], True)
                status = self.tail.inverse()
            if status == 0:
                self.tail.gather(&self.lead, &lead[0, 0, 0], True, &self.work[0])
        if status != 0:
            raise NumericalError(f"the factorisation failed at theta = {np.asarray(theta)}")
        m = np.asarray(self.lead_m).reshape(self.lead.q, l, l)
        lead_ += np.matmul(m.transpose(0, 2, 1), m)
        groups = np.asarray(self.block_group)
        tail = []
        for g in range(1, self.n_groups):
            lb = self.group_l[g]
            members = np.flatnonzero(groups == g)
            inv_ = np.empty((len(members), lb, lb))
            self.inverse_blocks(members, inv_)
            factor = np.asarray(self.lam[self.group_lam[g]:self.group_lam[g + 1]]).reshape(lb, lb)
            tail.append(factor @ inv_ @ factor.T)
        return lead_, tail

    def solve(self, const double[::1] theta, const double[:, ::1] lead, const double[:, ::1] tail):
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
        cdef Py_ssize_t k = lead.shape[0], v, i, m = self.tail.m, size = self.lead.q * self.lead.l
        cdef int status
        cdef double value = 0.0
        b_lead_, t_lead_ = np.zeros((k, size)), np.array(lead)
        b_tail_, t_tail_ = np.zeros((k, m)), np.array(tail)
        cdef double[:, ::1] b_lead = b_lead_, t_lead = t_lead_, b_tail = b_tail_, t_tail = t_tail_
        if lead.shape[1] != size or tail.shape[0] != k or tail.shape[1] != m:
            raise ValueError(f"expected {k} x {size} and {k} x {m} right-hand sides")
        with nogil:
            status = self.c_value(&theta[0], &value)
            if status == 0 and k and m:
                for v in prange(k, schedule="static", num_threads=self.threads):
                    for i in range(self.lead.q):
                        eliminate_rhs(&self.lead, i, &self.lead_m[0], &lead[v, 0], &t_tail[v, 0])
                b_tail[:, :] = t_tail
                self.lambda_t(&self.lam[0], &b_tail[0, 0], k)
                self.tail.forward(&b_tail[0, 0], k)
                self.tail.backward(&b_tail[0, 0], k)
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
                                        &t_lead[v, 0])
        if status != 0:
            raise NumericalError(f"the factorisation failed at theta = {np.asarray(theta)}")
        return b_lead_, b_tail_, t_lead_, t_tail_

    cdef void inverse_blocks_into(self, const int64_t[::1] members, double[:, :, ::1] out) noexcept nogil:
        cdef Py_ssize_t k, r, c, o
        for k in range(members.shape[0]):
            o = self.block_ptr[members[k]]
            for r in range(out.shape[1]):
                for c in range(r, out.shape[1]):
                    out[k, r, c] = self.tail.inverse_entry(o + r, o + c)
                    out[k, c, r] = out[k, r, c]

    def inverse_blocks(self, members, out):
        """Diagonal blocks of S^-1 for the tail blocks listed, after an inverse has been formed."""
        cdef const int64_t[::1] view = members
        cdef double[:, :, ::1] target = out
        with nogil:
            self.inverse_blocks_into(view, target)

    # ------------------------------------------------------------------ value

    cdef int c_value(self, const double *theta, double *value) noexcept nogil:
        """The criterion at ``theta``; nonzero where a factorisation failed."""
        cdef Py_ssize_t a, g, i
        cdef double logdet = 0.0
        self.current = False
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
        value[0] = self.logdet_m + self.nu * (1.0 + log(2.0 * M_PI * self.r2 / self.nu)) + self.constant
        if self.reml:
            value[0] += self.logdet_x
        self.criterion = value[0]
        self.current = True
        return 0

    cdef bint at(self, const double *theta) noexcept nogil:
        """Whether the factors in hand are those of ``theta``."""
        cdef Py_ssize_t a, g
        if not self.current:
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
        for i in prange(q, schedule="static", num_threads=self.threads if q * d > 4096 or m else 1):
            eliminate_level(&self.lead, i, &self.lam[0], &self.lead_m[0], &self.logd[0])
        if m:
            dense = &self.c_dense[0, 0]
            for x in range(d):
                for j in range(m):
                    dense[x * m + j] = self.zd_tail[x, j]
            self.tail.assemble(&self.lead, dense, &self.work[0])

    cdef int finish(self, double *lam) noexcept nogil:
        """Factor the tail with block factors ``lam``, then the dense columns."""
        cdef Py_ssize_t m = self.tail.m, j
        cdef int d = <int>self.lead.d, n = <int>(self.lead.q * self.lead.l), k = <int>m, info = 0
        cdef char uplo = b"U", no = b"N", yes = b"T"
        cdef double minus = -1.0, one = 1.0
        cdef double *ld = &self.ld[0, 0]
        if self.tail.factor(lam, &self.block_ptr[0], &self.block_lam[0], self.n_blocks, &self.logdet_m) != 0:
            return 1
        memcpy(ld, &self.dtd[0, 0], d * d * sizeof(double))
        # row-major lower triangles are LAPACK's upper ones throughout
        dsyrk(&uplo, &no, &d, &n, &minus, self.lead.ud, &d, &one, ld, &d)
        if m:
            memcpy(&self.y_dense[0, 0], &self.c_dense[0, 0], d * m * sizeof(double))
            self.lambda_t(lam, &self.y_dense[0, 0], d)
            self.tail.forward(&self.y_dense[0, 0], d)
            dsyrk(&uplo, &yes, &d, &k, &minus, &self.y_dense[0, 0], &k, &one, ld, &d)
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

    # ------------------------------------------------------------------ modes

    cdef void solve_modes(self) noexcept nogil:
        """beta, b and t = Z'Py from the factors of the last value."""
        cdef Py_ssize_t p = self.p, m = self.tail.m, i, j, x, b
        cdef double s
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
        for i in prange(self.lead.q, schedule="static", num_threads=self.threads if m else 1):
            level_modes(&self.lead, i, &self.beta[0], &self.b_tail[0], &self.lead_m[0], &self.b_lead[0],
                        &self.t_lead[0])

    # ------------------------------------------------------------------ derivatives

    cdef int c_derivatives(self, double *gradient, double *hessian) noexcept nogil:
        """Gradient and model Hessian where `c_value` was last called; uses up its factors."""
        cdef Py_ssize_t a, b, g, l, nt = self.n_theta
        cdef double scale = self.nu / self.r2, r2 = self.r2, h
        cdef const double *big_g
        cdef const double *factor
        self.current = False
        self.solve_modes()
        self.information(gradient)  # gradient holds f_a'Py for now
        for a in range(nt):
            for b in range(nt):
                hessian[a * nt + b] = scale * (self.h1[a, b] - gradient[a] * gradient[b] / r2)
        if self.group_gradients() != 0:
            return 1
        for a in range(nt):
            g = self.theta_group[a]
            l = self.group_l[g]
            big_g = &self.sums[self.group_lam[g]]
            factor = &self.lam[self.group_lam[g]]
            h = 0.0
            for b in range(l):
                h += big_g[self.theta_row[a] * l + b] * factor[b * l + self.theta_col[a]]
            gradient[a] = 2.0 * h
            for b in range(nt):
                if self.theta_group[b] == g and self.theta_col[b] == self.theta_col[a]:
                    hessian[a * nt + b] += 2.0 * big_g[self.theta_row[a] * l + self.theta_row[b]]
        return 0

    cdef void information(self, double *fpy) noexcept nogil:
        """h1 = f_a'P f_b and ``fpy`` = f_a'Py; also leaves the leading sums of t_i t_i' and (I - A_i K_i) A_i.

        f_a = Z_k v_a with v_a[j] = e_r (L'_c t_j) + L_c t_jr for theta_a = L[r, c].
        """
        cdef Py_ssize_t nt = self.n_theta, n1 = self.n_lead_theta, m = self.tail.m, d = self.lead.d, p = self.p
        cdef Py_ssize_t l = self.lead.l, i, j, a, b, c, r, x, g, o, k
        cdef Py_ssize_t size = self.chunk_size(), tails = nt - n1
        cdef double s
        cdef double *part
        cdef const double *factor
        memset(&self.chunk_sums[0], 0, self.n_chunks * size * sizeof(double))
        for i in prange(self.n_chunks, schedule="static", num_threads=self.threads):
            self.information_chunk(i)
        for i in range(1, self.n_chunks):
            for j in range(size):
                self.chunk_sums[j] += self.chunk_sums[i * size + j]
        part = &self.chunk_sums[0]
        a = 0  # leading parameters keep their order among theta
        for i in range(nt):
            if self.theta_group[i] != 0:
                continue
            b = 0
            for j in range(nt):
                if self.theta_group[j] == 0:
                    self.h1[i, j] = part[a * n1 + b]
                    b += 1
            for x in range(p):
                self.cx[i, x] = part[n1 * n1 + a * d + x]
            fpy[i] = part[n1 * n1 + n1 * d + 2 * l * l + a]
            a += 1
        if m == 0:
            self.project_information()
            return
        if n1:
            for j in prange(m, schedule="static", num_threads=self.threads):
                information_row(&self.lead, j, &self.x_lead[0], n1, nt, &self.theta_group[0], &self.ca[0, 0], m)
        k = 0
        for a in range(nt):
            g = self.theta_group[a]
            if g == 0:
                continue
            l, r, c = self.group_l[g], self.theta_row[a], self.theta_col[a]
            factor = &self.lam[self.group_lam[g]]
            memset(&self.va[k, 0], 0, m * sizeof(double))
            fpy[a] = 0.0
            for b in range(self.n_blocks):
                if self.block_group[b] != g:
                    continue
                o = self.block_ptr[b]
                s = 0.0
                for x in range(l):
                    s += factor[x * l + c] * self.t_tail[o + x]
                    self.va[k, o + x] += factor[x * l + c] * self.t_tail[o + r]
                self.va[k, o + r] += s
                for x in range(l):
                    fpy[a] += self.va[k, o + x] * self.t_tail[o + x]
            k += 1
        # C v for the tail's own parameters, written behind the leading ones' rows of `ca`
        if tails:
            self.tail_products()
        k = 0
        for a in range(nt):
            if self.theta_group[a] == 0:
                continue
            for x in range(p):
                s = 0.0
                for j in range(m):
                    s = s + self.c_dense[x, j] * self.va[k, j]
                self.cx[a, x] = s
            for b in range(nt):  # f_b'V1^-1 f_a = v_a'c_b
                s = 0.0
                for j in range(m):
                    s = s + self.va[k, j] * self.ca[b, j]
                self.h1[a, b] = s
                self.h1[b, a] = s
            k += 1
        self.lambda_t(&self.lam[0], &self.ca[0, 0], nt)
        self.tail.forward(&self.ca[0, 0], nt)
        self.project_information()

    cdef void tail_products(self) noexcept nogil:
        cdef Py_ssize_t a, k = 0
        for a in range(self.n_theta):
            if self.theta_group[a] != 0:
                self.tail.times(&self.va[k, 0], &self.ca[a, 0], 1)
                k += 1

    cdef void project_information(self) noexcept nogil:
        """h1 <- h1 - F F' - F_X F_X', with F in ``ca`` and F_X = L_XX^-1 (c_X - Y_X'F) in ``cx``."""
        cdef Py_ssize_t nt = self.n_theta, m = self.tail.m, p = self.p, a, b, j, x, y
        cdef double s
        for a in range(nt):
            for x in range(p):
                s = self.cx[a, x]
                for j in range(m):
                    s = s - self.ca[a, j] * self.y_dense[x, j]
                for y in range(x):
                    s = s - self.ld[x, y] * self.cx[a, y]
                self.cx[a, x] = s / self.ld[x, x]
        for a in range(nt):
            for b in range(a + 1):
                s = self.h1[a, b]
                for j in range(m):
                    s = s - self.ca[a, j] * self.ca[b, j]
                for x in range(p):
                    s = s - self.cx[a, x] * self.cx[b, x]
                self.h1[a, b] = s
                self.h1[b, a] = s

    cdef void information_chunk(self, Py_ssize_t chunk) noexcept nogil:
        """Sums over a chunk of levels of v_a'A x_b, Z_X'x_a, t t', (I - A K) A and v_a't, with x = (I - K A) v."""
        cdef Py_ssize_t q = self.lead.q, l = self.lead.l, d = self.lead.d, p = self.p, n1 = self.n_lead_theta
        cdef Py_ssize_t i, a, b, r, c, x, y, k
        cdef double *gram = &self.chunk_sums[chunk * self.chunk_size()]
        cdef double *zx = gram + n1 * n1
        cdef double *tt = zx + n1 * d
        cdef double *shrunk = tt + l * l
        cdef double *fpy = shrunk + l * l
        cdef double *v = fpy + n1      # (n1, l)
        cdef double *av = v + n1 * l   # (n1, l)
        cdef double *ka = av + n1 * l  # K_i A_i
        cdef const double *aa
        cdef const double *mm
        cdef const double *t
        cdef const double *zd
        cdef double *xl
        cdef double s
        for i in range(chunk * q // self.n_chunks, (chunk + 1) * q // self.n_chunks):
            aa = self.lead.a + i * l * l
            mm = &self.lead_m[i * l * l]
            t = &self.t_lead[i * l]
            zd = self.lead.zd + i * l * d
            xl = &self.x_lead[0] + i * l * n1
            times_ka(mm, aa, ka, l)
            for r in range(l):
                for c in range(l):
                    tt[r * l + c] += t[r] * t[c]
                    s = aa[r * l + c]
                    for x in range(l):
                        s -= aa[r * l + x] * ka[x * l + c]
                    shrunk[r * l + c] += s
            a = 0
            for k in range(self.n_theta):
                if self.theta_group[k] != 0:
                    continue
                r, c = self.theta_row[k], self.theta_col[k]
                s = 0.0
                for x in range(l):
                    s += self.lam[x * l + c] * t[x]
                    v[a * l + x] = self.lam[x * l + c] * t[r]
                v[a * l + r] += s
                for x in range(l):
                    fpy[a] += v[a * l + x] * t[x]
                    s = 0.0
                    for y in range(l):
                        s += aa[x * l + y] * v[a * l + y]
                    av[a * l + x] = s
                for x in range(l):
                    s = v[a * l + x]
                    for y in range(l):
                        s -= ka[x * l + y] * v[a * l + y]
                    xl[x * n1 + a] = s
                    for y in range(p):
                        zx[a * d + y] += s * zd[x * d + y]
                a += 1
            for a in range(n1):
                for b in range(n1):
                    for x in range(l):
                        gram[a * n1 + b] += av[a * l + x] * xl[x * n1 + b]

    cdef int group_gradients(self) noexcept nogil:
        """G of every factor, into ``sums``.

        Where a tail factor is near singular the traces are taken with Sigma lifted by f^2 I and by 2 f^2 I, and
        extrapolated to no lift: they are smooth in the lift, so what is left is of order f^4.
        """
        cdef Py_ssize_t l = self.lead.l, n1 = self.n_lead_theta, d = self.lead.d, b, r, c, g, o
        cdef double scale = self.nu / self.r2
        cdef double *part = &self.chunk_sums[0] + n1 * n1 + n1 * d
        memset(&self.sums[0], 0, self.sums.shape[0] * sizeof(double))
        for r in range(l * l):
            self.sums[r] = part[l * l + r] - scale * part[r]
        for b in range(self.n_blocks):
            g = self.block_group[b]
            l, o = self.group_l[g], self.block_ptr[b]
            for r in range(l):
                for c in range(l):
                    self.sums[self.group_lam[g] + r * l + c] -= scale * self.t_tail[o + r] * self.t_tail[o + c]
        if self.tail.m == 0 or not self.lift_tail(1.0):
            return self.add_traces(&self.lam[0], 1.0)
        if self.finish(&self.lam_lifted[0]) != 0 or self.add_traces(&self.lam_lifted[0], 2.0) != 0:
            return 1
        self.eliminate()
        self.lift_tail(2.0)
        if self.finish(&self.lam_lifted[0]) != 0:
            return 1
        return self.add_traces(&self.lam_lifted[0], -1.0)

    cdef int add_traces(self, const double *lam, double weight) noexcept nogil:
        """Add ``weight`` times sum_j [Z'QZ]_jj, less the leading factor's own part, from the factors at ``lam``.

        The tail's part is L^-T (q I - sum_j [S^-1]_jj) L^-1. Uses up the factors.
        """
        cdef Py_ssize_t b, r, c, x, g, o, l, p = self.p
        cdef double s
        cdef double *trace = &self.traces[0]
        cdef double *block
        memset(trace, 0, self.traces.shape[0] * sizeof(double))
        if self.tail.m and self.reml:
            self.make_omega()
        self.project(lam, False)
        if self.reml and p:
            self.fixed_correction(trace)
        if self.tail.m:
            if self.tail.inverse() != 0:
                return 1
            self.gather_into(trace)
        for b in range(self.n_blocks):
            g = self.block_group[b]
            l, o = self.group_l[g], self.block_ptr[b]
            block = trace + self.group_lam[g]
            for r in range(l):
                for c in range(r, l):
                    s = self.tail.inverse_entry(o + r, o + c)
                    if self.reml:
                        for x in range(p):
                            s += self.omega[(o + r) * p + x] * self.omega[(o + c) * p + x]
                    block[r * l + c] -= s
                block[r * l + r] += 1.0
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
        for x in range(self.traces.shape[0]):
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
        cdef double f, s, norm
        cdef int lifted = 0
        cdef double *w = &self.small[0]
        cdef const double *factor
        cdef double *out
        memcpy(&self.lam_lifted[0], &self.lam[0], self.lam.shape[0] * sizeof(double))
        for g in range(1, self.n_groups):
            l, f = self.group_l[g], self.group_floor[g]
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
        cdef Py_ssize_t m = self.tail.m, p = self.p, x, j
        cdef int mm = <int>m, pp = <int>p, d = <int>self.lead.d
        cdef char side = b"R", uplo = b"U", no = b"N"
        cdef double one = 1.0
        cdef double *w = &self.omega[0] + m * p
        if p == 0:
            return
        memcpy(w, &self.y_dense[0, 0], p * m * sizeof(double))
        self.tail.backward(w, p)
        dtrsm(&side, &uplo, &no, &no, &mm, &pp, &one, &self.ld[0, 0], &d, w, &mm)
        for x in range(p):
            for j in range(m):
                self.omega[j * p + x] = w[x * m + j]

    cdef void project(self, const double *lam, bint posterior) noexcept nogil:
        """U_i <- (I - A_i K_i) B_i Lambda_t, or K_i B_i Lambda_t for conditional variances."""
        cdef Py_ssize_t i
        for i in prange(self.lead.q, schedule="static", num_threads=self.threads if self.tail.m else 1):
            project_level(&self.lead, i, lam, &self.lead_m[0], &self.column_block[0], &self.block_ptr[0],
                          &self.block_lam[0], posterior, &self.work[0] + threadid() * 2 * self.lead.l * self.lead.l)

    cdef void fixed_correction(self, double *out) noexcept nogil:
        """Subtract sum_i e_i e_i', e_i = (I - A_i K_i) Z_X L_XX^-T - U_i omega, from ``out`` (l, l)."""
        cdef Py_ssize_t q = self.lead.q, l = self.lead.l, d = self.lead.d, p = self.p, i, r
        cdef Py_ssize_t size = l * l
        cdef int dd = <int>d, pp = <int>p, rows = <int>(q * l)
        cdef char side = b"L", uplo = b"U", yes = b"T", no = b"N"
        cdef double one = 1.0
        memcpy(self.lead.ud, self.lead.zd, q * l * d * sizeof(double))
        dtrsm(&side, &uplo, &yes, &no, &pp, &rows, &one, &self.ld[0, 0], &dd, self.lead.ud, &dd)
        for i in prange(self.n_chunks, schedule="static", num_threads=self.threads):
            correction_chunk(&self.lead, i * q // self.n_chunks, (i + 1) * q // self.n_chunks, p, &self.lead_m[0],
                             &self.omega[0], &self.chunk_sums[i * self.chunk_size()])
        for i in range(self.n_chunks):
            for r in range(size):
                out[r] -= self.chunk_sums[i * self.chunk_size() + r]


cdef inline void times_ka(const double *m, const double *a, double *ka, Py_ssize_t l) noexcept nogil:
    """ka <- K A = M'M A."""
    cdef Py_ssize_t r, c, x, y
    cdef double s, k
    for r in range(l):
        for c in range(l):
            s = 0.0
            for x in range(l):
                k = 0.0
                for y in range(l):
                    k += m[y * l + r] * m[y * l + x]
                s += k * a[x * l + c]
            ka[r * l + c] = s


cdef inline void eliminate_level(const leading_t *s, Py_ssize_t i, const double *lam, double *m_all,
                                 double *logd) noexcept nogil:
    cdef Py_ssize_t l = s.l, d = s.d, r, c, x, y
    cdef int64_t first = s.ptr[i], width = s.ptr[i + 1] - first, b
    cdef const double *a = s.a + i * l * l
    cdef double *m = m_all + i * l * l
    cdef const double *zd = s.zd + i * l * d
    cdef double *ud = s.ud + i * l * d
    cdef const double *val = s.val + l * first
    cdef double *u = s.u + l * first
    cdef double total, inner, f
    if l == 1:
        total = lam[0] * lam[0] * a[0] + 1.0
        logd[i] = log(total)
        m[0] = lam[0] / sqrt(total)
    else:
        # the lower triangle of D_i, factored in place of M_i
        for r in range(l):
            for c in range(r + 1):
                total = 1.0 if r == c else 0.0
                for x in range(r, l):
                    inner = 0.0
                    for y in range(c, l):
                        inner += a[x * l + y] * lam[y * l + c]
                    total += lam[x * l + r] * inner
                m[r * l + c] = total
        chol(m, l)
        total = 0.0
        for r in range(l):
            total += 2.0 * log(m[r * l + r])
        logd[i] = total
        # M = R^-1 L' column by column from the right: column c of L' is zero below row c, so row r of the result needs
        # R's rows up to r, which must stay intact until the last column is done; R moves to the stack of columns below
        level_m(m, lam, l)
    for r in range(l):
        for x in range(d):
            total = 0.0
            for c in range(l):
                total += m[r * l + c] * zd[c * d + x]
            ud[r * d + x] = total
        f = m[r * l]
        for b in range(width):
            u[r * width + b] = f * val[b]
        for c in range(1, l):
            f = m[r * l + c]
            for b in range(width):
                u[r * width + b] += f * val[c * width + b]


cdef inline void level_m(double *m, const double *lam, Py_ssize_t l) noexcept nogil:
    """m <- R^-1 L' for the lower triangular R held in ``m``.

    R^-1 is formed in place first (row by row, bottom up, each entry from entries not yet overwritten), then times L'.
    """
    cdef Py_ssize_t r, c, x
    cdef double total
    for c in range(l):  # R^-1, column by column: entries below the diagonal of column c need R and column c only
        m[c * l + c] = 1.0 / m[c * l + c]
    for r in range(1, l):
        for c in range(r):
            total = 0.0
            for x in range(c, r):
                total += m[r * l + x] * m[x * l + c]
            m[c * l + r] = -total * m[r * l + r]  # parked above the diagonal: row r of R is still needed
        for c in range(r):
            m[r * l + c] = m[c * l + r]
    for r in range(l):  # row r of R^-1 has r + 1 entries; the product with L' fills the row from the right
        for c in range(l - 1, -1, -1):
            total = 0.0
            for x in range(min(r, c) + 1):
                total += m[r * l + x] * lam[c * l + x]
            m[r * l + c] = total


cdef inline void level_modes(const leading_t *s, Py_ssize_t i, const double *beta, const double *b_tail,
                             const double *m_all, double *b_lead, double *t_lead) noexcept nogil:
    """r_i = Z'y - Z'X beta, then `back_substitute`."""
    cdef Py_ssize_t l = s.l, d = s.d, r, x
    cdef const double *zd = s.zd + i * l * d
    cdef double *t = t_lead + i * l
    for r in range(l):
        t[r] = zd[r * d + d - 1]
        for x in range(d - 1):
            t[r] -= zd[r * d + x] * beta[x]
    back_substitute(s, i, m_all, b_tail, b_lead, t_lead)


cdef inline void eliminate_rhs(const leading_t *s, Py_ssize_t i, const double *m_all, const double *rhs,
                               double *tail) noexcept nogil:
    """tail <- tail - U_i' M_i r_i: a right-hand side loses its leading part."""
    cdef Py_ssize_t l = s.l, r, c
    cdef int64_t first = s.ptr[i], width = s.ptr[i + 1] - first, b
    cdef const double *m = m_all + i * l * l
    cdef double total
    for r in range(l):
        total = 0.0
        for c in range(l):
            total += m[r * l + c] * rhs[i * l + c]
        for b in range(width):
            tail[s.idx[first + b]] -= total * s.u[l * first + r * width + b]


cdef inline void back_substitute(const leading_t *s, Py_ssize_t i, const double *m_all, const double *b_tail,
                                 double *b_lead, double *t_lead) noexcept nogil:
    """t_i holds r_i: t_i <- t_i - B_i b_t;  b_i = K_i t_i;  t_i <- t_i - A_i b_i."""
    cdef Py_ssize_t l = s.l, r, c
    cdef int64_t first = s.ptr[i], width = s.ptr[i + 1] - first, b
    cdef const double *val = s.val + l * first
    cdef const double *m = m_all + i * l * l
    cdef double *t = t_lead + i * l
    cdef double *out = b_lead + i * l
    cdef double total
    for r in range(l):
        total = t[r]
        for b in range(width):
            total -= val[r * width + b] * b_tail[s.idx[first + b]]
        t[r] = total
        out[r] = 0.0
    for c in range(l):
        total = 0.0
        for r in range(l):
            total += m[c * l + r] * t[r]
        for r in range(l):
            out[r] += m[c * l + r] * total
    for r in range(l):
        for c in range(l):
            t[r] -= s.a[i * l * l + r * l + c] * out[c]


cdef inline void information_row(const leading_t *s, Py_ssize_t j, const double *x_lead, Py_ssize_t n1, Py_ssize_t nt,
                                 const int64_t *theta_group, double *ca, Py_ssize_t m) noexcept nogil:
    """Column j of c_a = sum_i B_i' x_a,i for the leading parameters."""
    cdef Py_ssize_t a, k, i, r
    cdef int64_t t, first, width
    cdef double value
    for k in range(nt):
        if theta_group[k] == 0:
            ca[k * m + j] = 0.0
    for t in range(s.t_ptr[j], s.t_ptr[j + 1]):
        i = s.t_lead[t]
        first = s.ptr[i]
        width = s.ptr[i + 1] - first
        for r in range(s.l):
            value = s.val[s.l * first + r * width + s.t_pos[t] - first]
            a = 0
            for k in range(nt):
                if theta_group[k] == 0:
                    ca[k * m + j] += value * x_lead[(i * s.l + r) * n1 + a]
                    a += 1


cdef inline void project_level(const leading_t *s, Py_ssize_t i, const double *lam, double *m_all,
                               const int64_t *column_block, const int64_t *block_ptr, const int64_t *block_lam,
                               bint posterior, double *work) noexcept nogil:
    """``work`` holds 2 l^2 doubles. Leaves (I - A K) in place of M_i unless ``posterior``."""
    cdef Py_ssize_t l = s.l, r, c, x, y, lb
    cdef int64_t first = s.ptr[i], width = s.ptr[i + 1] - first, b
    cdef const double *a = s.a + i * l * l
    cdef double *m = m_all + i * l * l
    cdef const double *val = s.val + l * first
    cdef double *u = s.u + l * first
    cdef const double *factor
    cdef double total, f
    for r in range(l):  # work <- K
        for c in range(l):
            total = 0.0
            for x in range(l):
                total += m[x * l + r] * m[x * l + c]
            work[r * l + c] = total
    if not posterior:
        for r in range(l):
            for c in range(l):
                total = 1.0 if r == c else 0.0
                for x in range(l):
                    total -= a[r * l + x] * work[x * l + c]
                work[l * l + r * l + c] = total
        for x in range(l * l):
            work[x] = work[l * l + x]
            m[x] = work[x]
    for r in range(l):
        f = work[r * l]
        for b in range(width):
            u[r * width + b] = f * val[b]
        for c in range(1, l):
            f = work[r * l + c]
            for b in range(width):
                u[r * width + b] += f * val[c * width + b]
        b = 0
        while b < width:  # times Lambda_t, block by block: entry c needs entries >= c, so upwards in place
            x = column_block[s.idx[first + b]]
            lb = block_ptr[x + 1] - block_ptr[x]
            factor = lam + block_lam[x]
            for c in range(lb):
                total = 0.0
                for y in range(c, lb):
                    total += u[r * width + b + y] * factor[y * lb + c]
                u[r * width + b + c] = total
            b += lb


cdef inline void correction_chunk(const leading_t *s, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t p,
                                  const double *shrink, const double *omega, double *out) noexcept nogil:
    """Sum of e_i e_i' over levels [start, stop); ``ud`` holds Z_X L_XX^-T, overwritten; ``shrink`` is I - A_i K_i."""
    cdef Py_ssize_t l = s.l, d = s.d, i, r, c, x
    cdef int64_t first, width, b
    cdef double *e
    cdef double u, total
    memset(out, 0, l * l * sizeof(double))
    cdef double *column = out + l * l
    for i in range(start, stop):
        e = s.ud + i * l * d
        for x in range(p):
            for r in range(l):
                column[r] = e[r * d + x]
            for r in range(l):
                total = 0.0
                for c in range(l):
                    total += shrink[i * l * l + r * l + c] * column[c]
                e[r * d + x] = total
        first = s.ptr[i]
        width = s.ptr[i + 1] - first
        for r in range(l):
            for b in range(width):
                u = s.u[l * first + r * width + b]
                for x in range(p):
                    e[r * d + x] -= u * omega[s.idx[first + b] * p + x]
        for r in range(l):
            for c in range(l):
                for x in range(p):
                    out[r * l + c] += e[r * d + x] * e[c * d + x]
