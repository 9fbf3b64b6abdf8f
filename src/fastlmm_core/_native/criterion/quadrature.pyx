"""Marginal deviance of a generalised linear mixed model with one grouping factor, by Laplace's approximation or
adaptive Gauss-Hermite quadrature, with its exact gradient.

Rows are sorted by level, and every level is a problem of its own: with a = L'z the row's loadings and
h(u) = |u|^2 - 2 sum l(x'gamma + a'u + offset),

    u~      minimises h                                  M = A'WA + I = C C'      (W observed, or expected)
    u_k     = u~ + C^-T z_k, weights e_k = omega_k exp(-(h(u_k) - h(u~)) / 2 + |z_k|^2 / 2),  p_k = e_k / sum e
    d       = sum over levels of  h(u~) + log|M| - 2 log sum e_k                        (one node: Laplace)

Gradient, the nodes' movement included: with q_k = 2 u_k - 2 A's_k, Y = (sum p_k z_k q_k') C^-T, S the symmetric
matrix with Y's lower triangle, E = M^-1 - C^-T S C^-1 / 2, c_i = k_i a_i'E a_i and the adjoint
v = M_o^-1 (A'c + sum p_k q_k), M_o the observed matrix:

    dd/dgamma   X'(c - W A v - 2 sum p_k s_k)
    dd/dL[r, c] (Z'(c - W A v))_r u~_c + v_c t_r + 2 (Z'WZ L E)_rc - 2 sum p_k (Z's_k)_r u_kc,   t = Z's
    dd/drho     sum (a'E a) w_rho + v'A's_rho - 2 sum p_k l_rho

No division by L: exact where it is singular. The model Hessian is the average information of the Laplace
approximation (exact in gamma and rho but for log|M|) plus the exact curvature of Sigma = L L'. Derivatives of u~
predict it at the next parameters:  du~/dL[r, c] = M_o^-1 (e_c t_r - L'Z'WZ e_r u~_c),  du~/dgamma = -M_o^-1 A'WX,
du~/drho = M_o^-1 A's_rho.

Parameters are (theta, gamma, rho). Levels are shared out in a fixed number of chunks, so that results do not depend on
the number of threads. Cost of an evaluation: two to four passes over the rows and one a node, n p^2 / 2 for X'WX.
Liu and Pierce (1994), Biometrika 81; Pinheiro and Chao (2006), J. Comput. Graph. Stat. 15.
"""

import numpy as np

from cython.parallel cimport prange, threadid
from libc.math cimport exp, fabs, isfinite, log
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from fastlmm_core._native.criterion.criterion cimport Criterion
from fastlmm_core._native.families.row cimport family_row, row_constant, row_t
from fastlmm_core._native.small cimport chol, lower_times, solve_lower, solve_lower_t

from fastlmm_core.errors import InUseError, NumericalError

__all__ = ["Quadrature"]

cdef enum:
    MAX_CHUNKS = 64
    CHUNK = 64         # levels a chunk, unless that makes too many
    MAX_STEPS = 100    # of the search for one level's modes
    PARALLEL = 20000   # rows from which on a second thread pays

cdef double SMALL = 1e-12  # squared Newton decrement whose step leaves an error of rounding's size
cdef double TINY = 1e-22   # the same of a step without quadratic convergence


cdef class Quadrature(Criterion):
    """Workspace of one model.

    Parameters
    ----------
    family, link : int
        Codes of `families`.
    ptr : (q + 1,) int64
        Rows of level i are ``ptr[i]`` to ``ptr[i + 1]``.
    X, z : (n, p), (n, l)
        Conditioned columns, rows sorted by level.
    offset : (n,)
    m : (n,)
        Trials or prior weights.
    freq : (n,) or (0,)
        How often a row counts.
    row, col : (n_theta,) int64
        Element of L that each covariance parameter is.
    estimated : bool
        Whether the family's extra parameter is free; it is the last parameter then.
    rho : float
        Its value where it is not.
    nodes, log_weights : (N, l), (N,)
        Gauss-Hermite nodes for the standard normal and the logarithms of weights that sum to one; one node at zero
        is Laplace.
    expected : bool
        Expected instead of observed weights in log|M| and for the nodes.
    threads : int
    rho_range : (low, high)
        Where the family's extra parameter does something; the deviance is constant beyond.
    """

    cdef readonly Py_ssize_t n, q, l, p, n_theta, n_nodes, n_chunks, n_steps
    cdef int family, link, threads
    cdef readonly bint estimated, expected
    cdef double rho, rho_low, rho_high, constant, constant_r, constant_rr, constant_at
    cdef bint constant_known
    cdef const int64_t[::1] ptr, row, col
    cdef const double[:, ::1] x_rows, z_rows, nodes
    cdef const double[::1] offset, m, freq, log_weights
    cdef double[::1] y
    cdef double[::1] factor, base, s, w, k, we, sr, wr, lrr, sbar, score_now, x_now, x_at
    cdef double[:, ::1] a_rows, u, t, u_at
    cdef double[:, :, ::1] mat, tu, moved, jac
    cdef double[:, ::1] qbar
    cdef double[::1] lr
    cdef double[::1] chunk_values, chunk_sums, work, total
    cdef int64_t[::1] status
    cdef Py_ssize_t work_size, sum_size
    cdef bint predicting, busy

    def __init__(self, int family, int link, ptr, X, z, offset, m, freq, row, col, bint estimated, double rho, nodes,
                 log_weights, bint expected, int threads, tuple rho_range):
        cdef Py_ssize_t n, q, l, p, nt, nf
        self.family, self.link, self.estimated, self.rho, self.expected = family, link, estimated, rho, expected
        self.rho_low, self.rho_high = rho_range
        self.ptr, self.row, self.col = ptr, row, col
        self.x_rows, self.z_rows, self.offset, self.m, self.freq = X, z, offset, m, freq
        self.nodes, self.log_weights = nodes, log_weights
        n, p, l, q, nt = X.shape[0], X.shape[1], z.shape[1], len(ptr) - 1, len(row)
        if not (z.shape[0] == len(offset) == len(m) == ptr[q] == n and nodes.shape[1] == l and len(freq) in (0, n)):
            raise ValueError("rows, levels and nodes do not belong together")
        self.n, self.p, self.l, self.q, self.n_theta = n, p, l, q, nt
        self.n_nodes = len(log_weights)
        self.threads = threads if n * (self.n_nodes + p) > PARALLEL else 1
        nf = nt + p + estimated
        self.n_free = nf
        self.n_chunks = max(1, min(MAX_CHUNKS, (q + CHUNK - 1) // CHUNK))
        self.y = np.zeros(n)
        self.factor, self.base = np.zeros(l * l), np.zeros(n)
        self.s, self.w, self.k, self.we = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
        self.sr, self.wr, self.lrr = np.zeros(n), np.zeros(n), np.zeros(n)
        self.sbar, self.score_now = np.zeros(n), np.zeros(n)
        self.x_now, self.x_at = np.zeros(nf), np.zeros(nf)
        self.a_rows, self.u, self.t, self.u_at = np.zeros((n, l)), np.zeros((q, l)), np.zeros((q, l)), np.zeros((q, l))
        self.mat, self.tu, self.moved = np.zeros((q, l, l)), np.zeros((q, l, l)), np.zeros((q, l, l))
        self.jac, self.qbar, self.lr = np.zeros((q, nf, l)), np.zeros((q, l)), np.zeros(q)
        self.sum_size = nf + nt * nt + nt * p + p * p + p + nt + 1 + l * l
        self.work_size = 8 * l * l + 16 * l + l * p + 2 * p + 2 * nt * l + 2 * nt + 8
        self.chunk_values = np.zeros(self.n_chunks)
        self.chunk_sums = np.zeros(self.n_chunks * self.sum_size)
        self.status = np.zeros(self.n_chunks, np.int64)
        self.work = np.zeros(self.threads * self.work_size)
        self.total = np.zeros(self.sum_size + 2 * p * max(p, nt) + 1)
        self.ready = True

    def __reduce__(self):
        raise TypeError("a Quadrature is a workspace: pickle or copy the result it serves")

    cdef int enter(self) except -1:
        Criterion.enter(self)
        if self.busy:
            raise InUseError("this model is at work in another call: each thread, and each callback, needs its own")
        self.busy = True
        return 0

    cdef void leave(self) noexcept:
        self.busy = False

    # ------------------------------------------------------------------ Python entry points

    def set_response(self, const double[::1] y not None):
        """Replace the response (n,), sorted by level; modes begin at zero again."""
        self.enter()
        self.leave()
        if y.shape[0] != self.n:
            raise ValueError("the response does not belong to this model")
        self.y[:] = y
        self.c_reset()

    cdef void c_reset(self) noexcept nogil:
        self.constant_known = False
        self.predicting = False
        memset(&self.u_at[0, 0], 0, self.q * self.l * sizeof(double))

    def value(self, const double[::1] x not None):
        """The deviance at ``x`` (n_free,)."""
        cdef double out = 0.0
        cdef int status
        self.check_length(x)
        self.enter()
        try:
            with nogil:
                status = self.c_value(&x[0], &out)
        finally:
            self.leave()
        if status != 0:
            raise NumericalError(f"the likelihood cannot be evaluated at {np.asarray(x)}")
        return out

    def derivatives(self, const double[::1] x not None):
        """Deviance, gradient (n_free,) and model Hessian (n_free, n_free) at ``x``."""
        gradient_, hessian_ = np.empty(self.n_free), np.empty((self.n_free, self.n_free))
        cdef double[::1] gradient = gradient_
        cdef double[:, ::1] hessian = hessian_
        cdef int status
        cdef double out = 0.0
        self.check_length(x)
        self.enter()
        try:
            with nogil:
                status = self.c_value(&x[0], &out)
                if status == 0:
                    status = self.c_derivatives(&gradient[0], &hessian[0, 0])
        finally:
            self.leave()
        if status != 0:
            raise NumericalError(f"the likelihood cannot be differentiated at {np.asarray(x)}")
        return out, gradient_, hessian_

    def modes(self):
        """b = L u~ (q, l) of the last value."""
        return np.asarray(self.u) @ np.asarray(self.factor).reshape(self.l, self.l).T

    def cond_var(self):
        """L M^-1 L' (q, l, l) of the last value: the conditional covariance of b."""
        factor = np.asarray(self.factor).reshape(self.l, self.l)
        return factor @ np.linalg.inv(np.asarray(self.mat)) @ factor.T

    cdef double rounding(self, double value) noexcept nogil:
        return 1e-12 * (fabs(value) + self.n)

    # ------------------------------------------------------------------ value

    cdef int c_value(self, const double *x, double *value) noexcept nogil:
        cdef Py_ssize_t i, l = self.l, p = self.p, nt = self.n_theta
        cdef double total = 0.0, rho = self.rho
        for i in range(self.n_free):
            if not isfinite(x[i]):
                return 1
            self.x_now[i] = x[i]
        for i in range(nt):
            self.factor[self.row[i] * l + self.col[i]] = x[i]
        if self.estimated:
            rho = min(max(x[nt + p], self.rho_low), self.rho_high)
        self.find_constant(rho)
        if self.threads == 1:
            for i in range(self.n_chunks):
                self.value_chunk(i, x, rho)
        else:
            for i in prange(self.n_chunks, schedule="dynamic", num_threads=self.threads):
                self.value_chunk(i, x, rho)
        for i in range(self.n_chunks):
            if self.status[i] != 0:
                return 1
            total += self.chunk_values[i]
        value[0] = total - 2.0 * self.constant
        return 0 if isfinite(value[0]) else 1

    cdef void find_constant(self, double rho) noexcept nogil:
        """The part of the log-likelihood that is free of eta, and its derivatives in rho."""
        cdef Py_ssize_t i
        cdef double f = 1.0, dr = 0.0, drr = 0.0, c
        if self.constant_known and self.constant_at == rho:
            return
        self.constant, self.constant_r, self.constant_rr = 0.0, 0.0, 0.0
        for i in range(self.n):
            if self.freq.shape[0]:
                f = self.freq[i]
            c = row_constant(self.family, self.y[i], self.m[i], rho, &dr, &drr)
            self.constant += f * c
            self.constant_r += f * dr
            self.constant_rr += f * drr
        self.constant_known, self.constant_at = True, rho

    cdef void value_chunk(self, Py_ssize_t chunk, const double *x, double rho) noexcept nogil:
        cdef Py_ssize_t first = chunk * self.q // self.n_chunks, last = (chunk + 1) * self.q // self.n_chunks
        cdef Py_ssize_t i, j, r, c, l = self.l, p = self.p
        cdef const double *gamma = x + self.n_theta
        cdef double *work = &self.work[0] + threadid() * self.work_size
        cdef double eta, value
        self.status[chunk] = 0
        self.chunk_values[chunk] = 0.0
        for i in range(self.ptr[first], self.ptr[last]):
            eta = self.offset[i]
            for j in range(p):
                eta += self.x_rows[i, j] * gamma[j]
            self.base[i] = eta
            for c in range(l):
                eta = 0.0
                for r in range(c, l):
                    eta += self.z_rows[i, r] * self.factor[r * l + c]
                self.a_rows[i, c] = eta
        for i in range(first, last):
            value = 0.0
            if self.find_mode(i, x, rho, work) != 0 or self.level_value(i, rho, work, &value) != 0:
                self.status[chunk] = 1
                return
            self.chunk_values[chunk] += value

    cdef double pass_rows(self, Py_ssize_t i, const double *u, double rho, double *g, double *mat,
                          bint observed) noexcept nogil:
        """h(u) with -h'/2 into ``g`` (l,) and M into ``mat`` (l, l): observed weights, or never less than expected."""
        cdef Py_ssize_t b, r, c, l = self.l
        cdef double h = 0.0, eta, f = 1.0, w
        cdef const double *a
        cdef row_t o
        cdef bint counted = self.freq.shape[0] > 0
        for r in range(l):
            h += u[r] * u[r]
            g[r] = -u[r]
            for c in range(r):
                mat[r * l + c] = 0.0
            mat[r * l + r] = 1.0
        for b in range(self.ptr[i], self.ptr[i + 1]):
            a = &self.a_rows[b, 0]
            eta = self.base[b]
            for r in range(l):
                eta += a[r] * u[r]
            family_row(self.family, self.link, self.y[b], eta, self.m[b], rho, False, &o)
            if counted:
                f = self.freq[b]
            h -= 2.0 * f * o.l
            w = f * (o.w if observed else max(o.w, o.we))
            for r in range(l):
                g[r] += f * o.s * a[r]
                for c in range(r + 1):
                    mat[r * l + c] += w * a[r] * a[c]
        return h

    cdef int find_mode(self, Py_ssize_t i, const double *x, double rho, double *work) noexcept nogil:
        """u~ of level i by Newton's method from where the last derivatives predict it."""
        cdef Py_ssize_t r, j, step, l = self.l
        cdef double *u = &self.u[i, 0]
        cdef double *g = work
        cdef double *mat = g + l
        cdef double *old = mat + l * l
        cdef double *move = old + l
        cdef double h, before = 0.0, decrement, scale = 1.0, enough
        cdef bint have = False
        cdef int fallback = 0
        memcpy(u, &self.u_at[i, 0], l * sizeof(double))
        if self.predicting:
            for j in range(self.n_free):
                for r in range(l):
                    u[r] += self.jac[i, j, r] * (x[j] - self.x_at[j])
        for step in range(MAX_STEPS):
            h = self.pass_rows(i, u, rho, g, mat, True)
            if not have and not isfinite(h):
                fallback += 1
                if fallback > 2:
                    return 1
                for r in range(l):
                    u[r] = self.u_at[i, r] if fallback == 1 else 0.0
                continue
            if have and not h <= before + 1e-12 * (fabs(before) + 1.0):
                scale *= 0.5
                if scale < 1e-10:
                    return 1
                for r in range(l):
                    u[r] = old[r] + scale * move[r]
                continue
            enough = SMALL
            if chol(mat, l) != 0:  # away from the mode of a link that is not canonical
                self.pass_rows(i, u, rho, g, mat, False)
                enough = TINY
                if chol(mat, l) != 0:
                    return 1
            memcpy(move, g, l * sizeof(double))
            solve_lower(mat, move, l, 1)
            decrement = 0.0
            for r in range(l):
                decrement += move[r] * move[r]
            solve_lower_t(mat, move, l, 1)
            if not isfinite(decrement):
                return 1
            memcpy(old, u, l * sizeof(double))
            for r in range(l):
                u[r] += move[r]
            if decrement < enough:
                self.n_steps = step
                return 0
            before, have, scale = h, True, 1.0
        return 1

    cdef int level_value(self, Py_ssize_t i, double rho, double *work, double *value) noexcept nogil:
        """The level's part of d from its mode; leaves what the derivatives need."""
        cdef Py_ssize_t b, r, c, k, l = self.l
        cdef double *u = &self.u[i, 0]
        cdef double *t = &self.t[i, 0]
        cdef double *mat = &self.mat[i, 0, 0]
        cdef double *root = work
        cdef double *at = root + l * l
        cdef double *q = at + l
        cdef double *tk = q + l
        cdef double h = 0.0, hk, eta, f = 1.0, total, e, logdet = 0.0, lr, square
        cdef const double *a
        cdef const double *node
        cdef row_t o
        cdef bint counted = self.freq.shape[0] > 0, laplace = self.n_nodes == 1
        for r in range(l):
            h += u[r] * u[r]
            t[r] = 0.0
            for c in range(l):
                mat[r * l + c] = 1.0 if r == c else 0.0
                self.tu[i, r, c] = 0.0
                self.moved[i, r, c] = 0.0
            self.qbar[i, r] = 0.0
        self.lr[i] = 0.0
        for b in range(self.ptr[i], self.ptr[i + 1]):
            a = &self.a_rows[b, 0]
            eta = self.base[b]
            for r in range(l):
                eta += a[r] * u[r]
            family_row(self.family, self.link, self.y[b], eta, self.m[b], rho, True, &o)
            if counted:
                f = self.freq[b]
            h -= 2.0 * f * o.l
            self.s[b], self.w[b] = f * o.s, f * o.w
            self.we[b] = f * (o.we if self.expected else o.w)
            self.k[b] = f * (o.ke if self.expected else o.k)
            self.sr[b], self.lrr[b] = f * o.sr, f * o.lrr
            self.wr[b] = f * (o.wer if self.expected else o.wr)
            self.sbar[b] = self.s[b]
            self.lr[i] += f * o.lr
            for r in range(l):
                t[r] += self.s[b] * self.z_rows[b, r]
                for c in range(r + 1):
                    mat[r * l + c] += self.we[b] * a[r] * a[c]
        if not isfinite(h):
            return 1
        for r in range(l):
            for c in range(r):
                mat[c * l + r] = mat[r * l + c]
        memcpy(root, mat, l * l * sizeof(double))
        if chol(root, l) != 0:
            return 1
        for r in range(l):
            logdet += 2.0 * log(root[r * l + r])
        value[0] = h + logdet
        if laplace:
            for r in range(l):
                for c in range(l):
                    self.tu[i, r, c] = t[r] * u[c]
            return 0
        total = 0.0
        self.lr[i] = 0.0
        for b in range(self.ptr[i], self.ptr[i + 1]):
            self.sbar[b] = 0.0
        for k in range(self.n_nodes):
            node = &self.nodes[k, 0]
            memcpy(at, node, l * sizeof(double))
            solve_lower_t(root, at, l, 1)
            hk, square, lr = 0.0, 0.0, 0.0
            for r in range(l):
                at[r] += u[r]
                hk += at[r] * at[r]
                square += node[r] * node[r]
            for b in range(self.ptr[i], self.ptr[i + 1]):
                a = &self.a_rows[b, 0]
                eta = self.base[b]
                for r in range(l):
                    eta += a[r] * at[r]
                family_row(self.family, self.link, self.y[b], eta, self.m[b], rho, self.estimated, &o)
                if counted:
                    f = self.freq[b]
                hk -= 2.0 * f * o.l
                lr += f * o.lr
                self.score_now[b] = f * o.s
            if not isfinite(hk):
                continue  # no mass there
            e = exp(self.log_weights[k] - 0.5 * (hk - h) + 0.5 * square)
            total += e
            self.lr[i] += e * lr
            for r in range(l):
                q[r] = 2.0 * at[r]
                tk[r] = 0.0
            for b in range(self.ptr[i], self.ptr[i + 1]):
                eta = self.score_now[b]
                self.sbar[b] += e * eta
                for r in range(l):
                    q[r] -= 2.0 * eta * self.a_rows[b, r]
                    tk[r] += eta * self.z_rows[b, r]
            for r in range(l):
                self.qbar[i, r] += e * q[r]
                for c in range(l):
                    self.moved[i, r, c] += e * node[r] * q[c]
                    self.tu[i, r, c] += e * tk[r] * at[c]
        if not (total > 0.0 and isfinite(total)):
            return 1
        value[0] -= 2.0 * log(total)
        e = 1.0 / total
        self.lr[i] *= e
        for b in range(self.ptr[i], self.ptr[i + 1]):
            self.sbar[b] *= e
        for r in range(l):
            self.qbar[i, r] *= e
            for c in range(l):
                self.moved[i, r, c] *= e
                self.tu[i, r, c] *= e
        return 0

    # ------------------------------------------------------------------ derivatives

    cdef int c_derivatives(self, double *gradient, double *hessian) noexcept nogil:
        cdef Py_ssize_t i, j, a, b, nt = self.n_theta, p = self.p, nf = self.n_free, l = self.l, size = self.sum_size
        cdef double *total = &self.total[0]
        cdef const double *ff = total + nf
        cdef double *fx = total + nf + nt * nt
        cdef double *xx = fx + nt * p
        cdef const double *rx = xx + p * p
        cdef const double *rf = rx + p
        cdef const double *rr = rf + nt
        cdef const double *g = rr + 1
        cdef double *root = total + size
        cdef double *half = root + p * p
        cdef double h, top = 0.0
        memset(&self.chunk_sums[0], 0, self.n_chunks * size * sizeof(double))
        if self.threads == 1:
            for i in range(self.n_chunks):
                self.derivative_chunk(i)
        else:
            for i in prange(self.n_chunks, schedule="dynamic", num_threads=self.threads):
                self.derivative_chunk(i)
        memset(total, 0, size * sizeof(double))
        for i in range(self.n_chunks):
            if self.status[i] != 0:
                return 1
            for j in range(size):
                total[j] += self.chunk_sums[i * size + j]
        for j in range(nf):
            gradient[j] = total[j]
        if self.estimated:
            gradient[nt + p] -= 2.0 * self.constant_r
        for a in range(p):
            top = max(top, xx[a * p + a])
            for b in range(a):
                xx[b * p + a] = xx[a * p + b]
        memcpy(root, xx, p * p * sizeof(double))
        for a in range(p):
            root[a * p + a] += 1e-12 * top
        if chol(root, p) != 0:
            return 1
        for a in range(nt):
            for j in range(p):
                half[a * p + j] = fx[a * p + j]
            solve_lower(root, half + a * p, p, 1)
        for a in range(nt):
            for b in range(nt):
                h = ff[a * nt + b]
                for j in range(p):
                    h += half[a * p + j] * half[b * p + j]
                if self.col[a] == self.col[b]:
                    h += 2.0 * g[self.row[a] * l + self.row[b]]
                hessian[a * nf + b] = h
            for j in range(p):
                hessian[a * nf + nt + j] = 2.0 * fx[a * p + j]
                hessian[(nt + j) * nf + a] = 2.0 * fx[a * p + j]
        for a in range(p):
            for b in range(p):
                hessian[(nt + a) * nf + nt + b] = 2.0 * xx[a * p + b]
        if self.estimated:
            for a in range(nt):
                hessian[a * nf + nf - 1] = -2.0 * rf[a]
                hessian[(nf - 1) * nf + a] = -2.0 * rf[a]
            for a in range(p):
                hessian[(nt + a) * nf + nf - 1] = -2.0 * rx[a]
                hessian[(nf - 1) * nf + nt + a] = -2.0 * rx[a]
            hessian[nf * nf - 1] = -2.0 * (self.constant_rr + rr[0])
            if not self.rho_low < self.x_now[nf - 1] < self.rho_high:  # nothing depends on rho any more
                gradient[nf - 1] = 0.0
                for a in range(nf):
                    hessian[a * nf + nf - 1] = 0.0
                    hessian[(nf - 1) * nf + a] = 0.0
                hessian[nf * nf - 1] = 1.0
        memcpy(&self.u_at[0, 0], &self.u[0, 0], self.q * l * sizeof(double))
        memcpy(&self.x_at[0], &self.x_now[0], nf * sizeof(double))
        self.predicting = True
        for j in range(nf):
            if not isfinite(gradient[j]):
                return 1
        return 0

    cdef void derivative_chunk(self, Py_ssize_t chunk) noexcept nogil:
        cdef Py_ssize_t i
        cdef double *work = &self.work[0] + threadid() * self.work_size
        for i in range(chunk * self.q // self.n_chunks, (chunk + 1) * self.q // self.n_chunks):
            if self.level_derivatives(i, &self.chunk_sums[chunk * self.sum_size], work) != 0:
                self.status[chunk] = 1
                return

    cdef int level_derivatives(self, Py_ssize_t i, double *sums, double *work) noexcept nogil:
        """Add the level's part to the gradient, [F X]'V^-1[F X], the rows of rho and G; its modes' derivatives."""
        cdef Py_ssize_t b, r, c, j, k, a, l = self.l, p = self.p, nt = self.n_theta, nf = self.n_free
        cdef const double *lam = &self.factor[0]
        cdef const double *u = &self.u[i, 0]
        cdef const double *t = &self.t[i, 0]
        cdef double *gradient = sums
        cdef double *ff = gradient + nf
        cdef double *fx = ff + nt * nt
        cdef double *xx = fx + nt * p
        cdef double *rx = xx + p * p
        cdef double *rf = rx + p
        cdef double *rr = rf + nt
        cdef double *big = rr + 1
        cdef double *root = work               # C of M
        cdef double *inv = root + l * l        # M^-1, then E
        cdef double *obs = inv + l * l         # C of M_o
        cdef double *bo = obs + l * l          # Z'WZ
        cdef double *be = bo + l * l           # the same with log|M|'s weights
        cdef double *bl = be + l * l           # Z'WZ L
        cdef double *qq = bl + l * l           # Z'V^-1Z
        cdef double *y = qq + l * l
        cdef double *ac = y + l * l            # A'c + qbar, then v
        cdef double *zc = ac + l
        cdef double *lv = zc + l
        cdef double *ar = lv + l
        cdef double *zr = ar + l
        cdef double *mr = zr + l               # M_o^-1 A's_rho
        cdef double *small = mr + l
        cdef double *col = small + l
        cdef double *zx = col + l              # Z'WX
        cdef double *va = zx + l * p           # (nt, l)
        cdef double *qv = va + nt * l
        cdef double g, w, s, total
        cdef const double *arow
        cdef const double *zrow
        cdef const double *xrow
        memcpy(root, &self.mat[i, 0, 0], l * l * sizeof(double))
        if chol(root, l) != 0:
            return 1
        for c in range(l):  # M^-1 by columns
            for r in range(l):
                col[r] = 1.0 if r == c else 0.0
            solve_lower(root, col, l, 1)
            solve_lower_t(root, col, l, 1)
            for r in range(l):
                inv[r * l + c] = col[r]
        if self.n_nodes > 1:
            self.moved_nodes(i, root, inv, y, col)
        memset(bo, 0, 2 * l * l * sizeof(double))
        memset(zc, 0, l * sizeof(double))
        memset(ar, 0, 2 * l * sizeof(double))
        memset(zx, 0, l * p * sizeof(double))
        memcpy(ac, &self.qbar[i, 0], l * sizeof(double))
        for b in range(self.ptr[i], self.ptr[i + 1]):
            arow, zrow = &self.a_rows[b, 0], &self.z_rows[b, 0]
            xrow = &self.x_rows[b, 0] if p else NULL
            g = 0.0
            for r in range(l):
                for c in range(l):
                    g += arow[r] * inv[r * l + c] * arow[c]
            w = self.w[b]
            s = self.k[b] * g
            for r in range(l):
                ac[r] += s * arow[r]
                zc[r] += s * zrow[r]
                for c in range(r + 1):
                    bo[r * l + c] += w * zrow[r] * zrow[c]
                for j in range(p):
                    zx[r * p + j] += w * zrow[r] * xrow[j]
            if self.expected:
                for r in range(l):
                    for c in range(r + 1):
                        be[r * l + c] += self.we[b] * zrow[r] * zrow[c]
            total = s - 2.0 * self.sbar[b]
            for j in range(p):
                gradient[nt + j] += total * xrow[j]
                for k in range(j + 1):
                    xx[j * p + k] += w * xrow[j] * xrow[k]
            if self.estimated:
                gradient[nf - 1] += g * self.wr[b]
                s = self.sr[b]
                for r in range(l):
                    ar[r] += s * arow[r]
                    zr[r] += s * zrow[r]
                for j in range(p):
                    rx[j] += s * xrow[j]
        for r in range(l):
            for c in range(r):
                bo[c * l + r] = bo[r * l + c]
                be[c * l + r] = be[r * l + c]
        if not self.expected:
            memcpy(be, bo, l * l * sizeof(double))
        times_lower(bo, lam, bl, l)
        if self.expected:  # M_o = L'Z'WZ L + I
            for r in range(l):
                for c in range(r + 1):
                    total = 1.0 if r == c else 0.0
                    for k in range(r, l):
                        total += lam[k * l + r] * bl[k * l + c]
                    obs[r * l + c] = total
            if chol(obs, l) != 0:
                return 1
        else:
            memcpy(obs, root, l * l * sizeof(double))
        solve_lower(obs, ac, l, 1)
        solve_lower_t(obs, ac, l, 1)  # v
        memcpy(lv, ac, l * sizeof(double))
        lower_times(lam, lv, l, 1)
        for r in range(l):  # tau = Z'(c - W A v)
            for c in range(l):
                zc[r] -= bo[r * l + c] * lv[c]
        for j in range(p):
            for r in range(l):
                gradient[nt + j] -= zx[r * p + j] * lv[r]
        times_lower(be, lam, y, l)  # Z'WZ L with log|M|'s weights
        for a in range(nt):
            r, c = self.row[a], self.col[a]
            total = zc[r] * u[c] + ac[c] * t[r] - 2.0 * self.tu[i, r, c]
            for k in range(l):
                total += 2.0 * y[r * l + k] * inv[k * l + c]
            gradient[a] += total
        # Q = B - B L M_o^-1 L'B, column by column; then G
        for c in range(l):
            for r in range(l):
                col[r] = bl[c * l + r]
            solve_lower(obs, col, l, 1)
            solve_lower_t(obs, col, l, 1)
            for r in range(l):
                total = bo[r * l + c]
                for k in range(l):
                    total -= bl[r * l + k] * col[k]
                qq[r * l + c] = total
        for r in range(l):
            for c in range(l):
                big[r * l + c] += qq[r * l + c] - t[r] * t[c] + 0.5 * (t[r] * zc[c] + zc[r] * t[c])
        if self.expected:  # log|M|'s part of G has its own weights
            for c in range(l):
                for r in range(l):
                    col[r] = y[c * l + r]
                solve_lower(root, col, l, 1)
                solve_lower_t(root, col, l, 1)
                for r in range(l):
                    total = be[r * l + c] - qq[r * l + c]
                    for k in range(l):
                        total -= y[r * l + k] * col[k]
                    big[r * l + c] += total
        if self.estimated:
            memcpy(mr, ar, l * sizeof(double))
            solve_lower(obs, mr, l, 1)
            solve_lower_t(obs, mr, l, 1)
            gradient[nf - 1] -= 2.0 * self.lr[i]
            for r in range(l):
                gradient[nf - 1] += ac[r] * ar[r]
                rr[0] += ar[r] * mr[r]
            for b in range(self.ptr[i], self.ptr[i + 1]):
                rr[0] += self.lrr[b]
            for r in range(l):  # Z'r_rho
                for c in range(l):
                    zr[r] -= bl[r * l + c] * mr[c]
            memcpy(small, mr, l * sizeof(double))
            lower_times(lam, small, l, 1)
            for j in range(p):
                for r in range(l):
                    rx[j] -= zx[r * p + j] * small[r]
            for r in range(l):
                self.jac[i, nf - 1, r] = mr[r]
        for j in range(p):  # modes' derivatives and X'V^-1X
            for r in range(l):
                col[r] = 0.0
                for k in range(r, l):
                    col[r] -= lam[k * l + r] * zx[k * p + j]
            solve_lower(obs, col, l, 1)
            for k in range(l):
                self.jac[i, nt + j, k] = col[k]
            for k in range(j + 1):
                total = 0.0
                for r in range(l):
                    total += col[r] * self.jac[i, nt + k, r]
                xx[j * p + k] -= total
        for j in range(p):
            solve_lower_t(obs, &self.jac[i, nt + j, 0], l, 1)
        for a in range(nt):
            r, c = self.row[a], self.col[a]
            total = 0.0
            for k in range(l):
                total += lam[k * l + c] * t[k]
                va[a * l + k] = lam[k * l + c] * t[r]
            va[a * l + r] += total
            for k in range(l):
                self.jac[i, a, k] = -bl[r * l + k] * u[c]
            self.jac[i, a, c] += t[r]
            solve_lower(obs, &self.jac[i, a, 0], l, 1)
            solve_lower_t(obs, &self.jac[i, a, 0], l, 1)
        for a in range(nt):
            for r in range(l):
                qv[a * l + r] = 0.0
                for c in range(l):
                    qv[a * l + r] += qq[r * l + c] * va[a * l + c]
            if self.estimated:
                for r in range(l):
                    rf[a] += va[a * l + r] * zr[r]
            for b in range(a + 1):
                total = 0.0
                for r in range(l):
                    total += qv[a * l + r] * va[b * l + r]
                ff[a * nt + b] += total
                if a != b:
                    ff[b * nt + a] += total
            # v'(Z'WX - B L M_o^-1 L'Z'WX) = v'(Z'WX + B L du/dgamma)
            for k in range(l):
                col[k] = 0.0
                for r in range(l):
                    col[k] += va[a * l + r] * bl[r * l + k]
            for j in range(p):
                total = 0.0
                for r in range(l):
                    total += va[a * l + r] * zx[r * p + j] + col[r] * self.jac[i, nt + j, r]
                fx[a * p + j] += total
        return 0

    cdef void moved_nodes(self, Py_ssize_t i, const double *root, double *inv, double *y, double *col) noexcept nogil:
        """E of the module's note from M^-1: what the movement of the nodes with M adds."""
        cdef Py_ssize_t r, c, l = self.l
        for r in range(l):
            for c in range(l):
                y[r * l + c] = self.moved[i, r, c]
            solve_lower(root, y + r * l, l, 1)
        for r in range(l):
            for c in range(r + 1, l):
                y[r * l + c] = y[c * l + r]
        for c in range(l):
            solve_lower_t(root, y + c, l, l)
        for r in range(l):
            solve_lower_t(root, y + r * l, l, 1)
        for r in range(l * l):
            inv[r] -= 0.5 * y[r]


cdef inline void times_lower(const double *b, const double *lam, double *out, Py_ssize_t l) noexcept nogil:
    """out <- B L for a lower triangular L."""
    cdef Py_ssize_t r, c, k
    cdef double total
    for r in range(l):
        for c in range(l):
            total = 0.0
            for k in range(c, l):
                total += b[r * l + k] * lam[k * l + c]
            out[r * l + c] = total
