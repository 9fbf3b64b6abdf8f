"""Marginal deviance of a generalised linear mixed model with one grouping factor, level by level: modes and nodes.

Rows are sorted by level, and every level is a problem of its own: with a = L'z the row's loadings and
h(u) = |u|^2 - 2 sum l(x'gamma + a'u + offset),

    u~      minimises h                                  M = A'WA + I = C C'      (W observed, or expected)
    u_k     = u~ + C^-T z_k, weights e_k = omega_k exp(-(h(u_k) - h(u~)) / 2 + |z_k|^2 / 2),  p_k = e_k / sum e
    d       = sum over levels of  h(u~) + log|M| - 2 log sum e_k                        (one node: Laplace)

Parameters are (theta, gamma, rho). Levels are shared out in a fixed number of chunks, so that results do not depend on
the number of threads. Cost of an evaluation: two to four passes over the rows and one a node.
Liu and Pierce (1994), Biometrika 81; Pinheiro and Chao (2006), J. Comput. Graph. Stat. 15.
"""

import numpy as np

from cython.parallel cimport prange, threadid
from libc.math cimport exp, fabs, isfinite, log
from libc.string cimport memcpy, memset

from fastlmm_core._native.criterion.criterion cimport Criterion
from fastlmm_core._native.families.row cimport family_row, row_constant, row_t
from fastlmm_core._native.small cimport chol, solve_lower, solve_lower_t

from fastlmm_core.errors import InUseError, NumericalError

__all__ = ["LevelValues"]

cdef enum:
    MAX_CHUNKS = 64
    CHUNK = 64         # levels a chunk, unless that makes too many
    MAX_STEPS = 100    # of the search for one level's modes
    PARALLEL = 20000   # rows from which on a second thread pays

cdef double SMALL = 1e-12  # squared Newton decrement whose step leaves an error of rounding's size
cdef double CROOKED = 0.05  # share of a step below which the observed weights are no guide to the next one
cdef double TINY = 1e-22   # the same of a step without quadratic convergence


cdef class LevelValues(Criterion):
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
        raise TypeError(f"a {type(self).__name__} is a workspace: pickle or copy the result it serves")

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

    def place(self):
        """Modes u (q, l) where derivatives were last taken, zero before."""
        self.enter()
        self.leave()
        return np.array(self.u_at)

    def begin_at(self, const double[:, ::1] u not None):
        """The next search for the modes begins at ``u`` (q, l)."""
        self.enter()
        self.leave()
        if u.shape[0] != self.q or u.shape[1] != self.l:
            raise ValueError("the modes do not belong to this model")
        self.u_at[:] = u
        self.predicting = False

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

    def modes(self):
        """b = L u~ (q, l) of the last value."""
        self.enter()
        self.leave()
        return np.asarray(self.u) @ np.asarray(self.factor).reshape(self.l, self.l).T

    def cond_var(self):
        """L M^-1 L' (q, l, l) of the last value: the conditional covariance of b."""
        self.enter()
        self.leave()
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
        cdef bint have = False, guarded = False
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
                    if guarded:
                        return 1
                    memcpy(u, old, l * sizeof(double))  # M all but singular: its direction is none
                    guarded, have = True, False
                    continue
                for r in range(l):
                    u[r] = old[r] + scale * move[r]
                continue
            enough = SMALL
            if have:
                guarded = scale < CROOKED
            if guarded or chol(mat, l) != 0:  # away from the mode of a link that is not canonical
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
        cdef Py_ssize_t b, r, c, l = self.l
        cdef double *u = &self.u[i, 0]
        cdef double *t = &self.t[i, 0]
        cdef double *mat = &self.mat[i, 0, 0]
        cdef double *root = work
        cdef double h = 0.0, eta, f = 1.0, logdet = 0.0
        cdef const double *a
        cdef row_t o
        cdef bint counted = self.freq.shape[0] > 0
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
        if self.n_nodes == 1:
            for r in range(l):
                for c in range(l):
                    self.tu[i, r, c] = t[r] * u[c]
            return 0
        return self.add_nodes(i, rho, h, work, value)

    cdef int add_nodes(self, Py_ssize_t i, double rho, double h, double *work, double *value) noexcept nogil:
        """Laplace's value of the level becomes that of its nodes; ``work`` begins with C of M, ``h`` is h(u~)."""
        cdef Py_ssize_t b, r, c, k, l = self.l
        cdef const double *u = &self.u[i, 0]
        cdef const double *root = work
        cdef double *at = work + l * l
        cdef double *q = at + l
        cdef double *tk = q + l
        cdef double hk, eta, f = 1.0, total = 0.0, e, lr, square
        cdef const double *a
        cdef const double *node
        cdef row_t o
        cdef bint counted = self.freq.shape[0] > 0
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
