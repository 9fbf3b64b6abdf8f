"""Gradient and model Hessian of a generalised linear mixed model with one grouping factor, of `level_values`' deviance.

The nodes' movement included: with q_k = 2 u_k - 2 A's_k, Y = (sum p_k z_k q_k') C^-T, S the symmetric
matrix with Y's lower triangle, E = M^-1 - C^-T S C^-1 / 2, c_i = k_i a_i'E a_i and the adjoint
v = M_o^-1 (A'c + sum p_k q_k), M_o the observed matrix:

    dd/dgamma   X'(c - W A v - 2 sum p_k s_k)
    dd/dL[r, c] (Z'(c - W A v))_r u~_c + v_c t_r + 2 (Z'WZ L E)_rc - 2 sum p_k (Z's_k)_r u_kc,   t = Z's
    dd/drho     sum (a'E a) w_rho + v'A's_rho - 2 sum p_k l_rho

No division by L: exact where it is singular. The model Hessian is the average information of the Laplace
approximation (exact in gamma and rho but for log|M|) plus the exact curvature of Sigma = L L'. Derivatives of u~
predict it at the next parameters:  du~/dL[r, c] = M_o^-1 (e_c t_r - L'Z'WZ e_r u~_c),  du~/dgamma = -M_o^-1 A'WX,
du~/drho = M_o^-1 A's_rho.

Cost: one pass over the rows, n p^2 / 2 for X'WX.
"""

import numpy as np

from cython.parallel cimport prange, threadid
from libc.math cimport isfinite
from libc.string cimport memcpy, memset

from fastlmm_core._native.criterion.level_values cimport LevelValues
from fastlmm_core._native.small cimport chol, lower_times, solve_lower, solve_lower_t

from fastlmm_core.errors import NumericalError

__all__ = ["Quadrature"]


cdef struct sums_t:        # what levels add up to
    double *gradient
    double *ff             # F'V^-1F, F the derivatives of the working response in theta
    double *fx
    double *xx
    double *rx             # rows of rho
    double *rf
    double *rr
    double *big            # G: curvature in Sigma

cdef struct level_t:       # workspace of one level
    double *root           # C of M
    double *inv            # M^-1, then E
    double *obs            # C of M_o
    double *bo             # Z'WZ
    double *be             # the same with log|M|'s weights
    double *bl             # Z'WZ L
    double *qq             # Z'V^-1Z
    double *y              # Z'WZ L with log|M|'s weights
    double *ac             # A'c + qbar, then v
    double *zc             # Z'c, then Z'(c - W A v)
    double *ar
    double *zr
    double *mr             # M_o^-1 A's_rho
    double *col
    double *zx             # Z'WX
    double *va             # (nt, l)
    double *qv


cdef class Quadrature(LevelValues):
    """`LevelValues` with derivatives: workspace of one model, which an optimiser can minimise."""

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

    cdef int c_derivatives(self, double *gradient, double *hessian) noexcept nogil:
        cdef Py_ssize_t i, j, p = self.p, nt = self.n_theta, nf = self.n_free, size = self.sum_size
        cdef double *total = &self.total[0]
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
        if self.fill_hessian(hessian) != 0:
            return 1
        if self.estimated and not self.rho_low < self.x_now[nf - 1] < self.rho_high:  # nothing depends on rho any more
            gradient[nf - 1] = 0.0
            for j in range(nf):
                hessian[j * nf + nf - 1] = 0.0
                hessian[(nf - 1) * nf + j] = 0.0
            hessian[nf * nf - 1] = 1.0
        memcpy(&self.u_at[0, 0], &self.u[0, 0], self.q * self.l * sizeof(double))
        memcpy(&self.x_at[0], &self.x_now[0], nf * sizeof(double))
        self.predicting = True
        for j in range(nf):
            if not isfinite(gradient[j]):
                return 1
        return 0

    cdef int fill_hessian(self, double *hessian) noexcept nogil:
        """The model Hessian from the levels' sums."""
        cdef Py_ssize_t j, a, b, nt = self.n_theta, p = self.p, nf = self.n_free, l = self.l
        cdef sums_t v
        cdef double *root = &self.total[0] + self.sum_size
        cdef double *half = root + p * p
        cdef double h, top = 0.0
        self.point_sums(&self.total[0], &v)
        for a in range(p):
            top = max(top, v.xx[a * p + a])
            for b in range(a):
                v.xx[b * p + a] = v.xx[a * p + b]
        memcpy(root, v.xx, p * p * sizeof(double))
        for a in range(p):
            root[a * p + a] += 1e-12 * top
        if chol(root, p) != 0:
            return 1
        for a in range(nt):
            for j in range(p):
                half[a * p + j] = v.fx[a * p + j]
            solve_lower(root, half + a * p, p, 1)
        for a in range(nt):
            for b in range(nt):
                h = v.ff[a * nt + b]
                for j in range(p):
                    h += half[a * p + j] * half[b * p + j]
                if self.col[a] == self.col[b]:
                    h += 2.0 * v.big[self.row[a] * l + self.row[b]]
                hessian[a * nf + b] = h
            for j in range(p):
                hessian[a * nf + nt + j] = 2.0 * v.fx[a * p + j]
                hessian[(nt + j) * nf + a] = 2.0 * v.fx[a * p + j]
        for a in range(p):
            for b in range(p):
                hessian[(nt + a) * nf + nt + b] = 2.0 * v.xx[a * p + b]
        if self.estimated:
            for a in range(nt):
                hessian[a * nf + nf - 1] = -2.0 * v.rf[a]
                hessian[(nf - 1) * nf + a] = -2.0 * v.rf[a]
            for a in range(p):
                hessian[(nt + a) * nf + nf - 1] = -2.0 * v.rx[a]
                hessian[(nf - 1) * nf + nt + a] = -2.0 * v.rx[a]
            hessian[nf * nf - 1] = -2.0 * (self.constant_rr + v.rr[0])
        return 0

    cdef void point_sums(self, double *at, sums_t *v) noexcept nogil:
        cdef Py_ssize_t p = self.p, nt = self.n_theta
        v.gradient = at
        v.ff = v.gradient + self.n_free
        v.fx = v.ff + nt * nt
        v.xx = v.fx + nt * p
        v.rx = v.xx + p * p
        v.rf = v.rx + p
        v.rr = v.rf + nt
        v.big = v.rr + 1

    cdef void point_work(self, double *at, level_t *v) noexcept nogil:
        cdef Py_ssize_t l = self.l, square = l * l
        v.root, v.inv, v.obs = at, at + square, at + 2 * square
        v.bo, v.be, v.bl = at + 3 * square, at + 4 * square, at + 5 * square
        v.qq, v.y = at + 6 * square, at + 7 * square
        v.ac = at + 8 * square
        v.zc, v.ar, v.zr = v.ac + l, v.ac + 2 * l, v.ac + 3 * l
        v.mr, v.col, v.zx = v.ac + 4 * l, v.ac + 5 * l, v.ac + 6 * l
        v.va = v.zx + l * self.p
        v.qv = v.va + self.n_theta * l

    cdef void derivative_chunk(self, Py_ssize_t chunk) noexcept nogil:
        cdef Py_ssize_t i
        cdef sums_t sums
        cdef double *work = &self.work[0] + threadid() * self.work_size
        self.point_sums(&self.chunk_sums[chunk * self.sum_size], &sums)
        for i in range(chunk * self.q // self.n_chunks, (chunk + 1) * self.q // self.n_chunks):
            if self.level_derivatives(i, &sums, work) != 0:
                self.status[chunk] = 1
                return

    cdef int level_derivatives(self, Py_ssize_t i, sums_t *sums, double *work) noexcept nogil:
        """Add the level's part to the gradient, [F X]'V^-1[F X], the rows of rho and G; its modes' derivatives."""
        cdef level_t v
        self.point_work(work, &v)
        if self.invert(i, &v) != 0:
            return 1
        self.add_rows(i, &v, sums)
        if self.factor_observed(&v) != 0:
            return 1
        self.add_gradient(i, &v, sums)
        self.add_curvature(i, &v, sums)
        if self.estimated:
            self.add_rho(i, &v, sums)
        self.move_with_gamma(i, &v, sums)
        self.move_with_theta(i, &v)
        self.add_theta(i, &v, sums)
        return 0

    cdef int invert(self, Py_ssize_t i, level_t *v) noexcept nogil:
        """C of M and M^-1, or E."""
        cdef Py_ssize_t r, c, l = self.l
        memcpy(v.root, &self.mat[i, 0, 0], l * l * sizeof(double))
        if chol(v.root, l) != 0:
            return 1
        for c in range(l):  # M^-1 by columns
            for r in range(l):
                v.col[r] = 1.0 if r == c else 0.0
            solve(v.root, v.col, l)
            for r in range(l):
                v.inv[r * l + c] = v.col[r]
        if self.n_nodes > 1:
            self.moved_nodes(i, v.root, v.inv, v.y, v.col)
        return 0

    cdef void add_rows(self, Py_ssize_t i, level_t *v, sums_t *sums) noexcept nogil:
        """One pass over the level's rows: sums of their own, Z'WZ, Z'WX, Z'c and A'c."""
        cdef Py_ssize_t b, r, c, j, k, l = self.l, p = self.p, nt = self.n_theta, nf = self.n_free
        cdef double g, w, s, total
        cdef const double *arow
        cdef const double *zrow
        cdef const double *xrow
        memset(v.bo, 0, 2 * l * l * sizeof(double))
        memset(v.zc, 0, l * sizeof(double))
        memset(v.ar, 0, 2 * l * sizeof(double))
        memset(v.zx, 0, l * p * sizeof(double))
        memcpy(v.ac, &self.qbar[i, 0], l * sizeof(double))
        for b in range(self.ptr[i], self.ptr[i + 1]):
            arow, zrow = &self.a_rows[b, 0], &self.z_rows[b, 0]
            xrow = &self.x_rows[b, 0] if p else NULL
            g = 0.0
            for r in range(l):
                for c in range(l):
                    g += arow[r] * v.inv[r * l + c] * arow[c]
            w = self.w[b]
            s = self.k[b] * g
            for r in range(l):
                v.ac[r] += s * arow[r]
                v.zc[r] += s * zrow[r]
                for c in range(r + 1):
                    v.bo[r * l + c] += w * zrow[r] * zrow[c]
                for j in range(p):
                    v.zx[r * p + j] += w * zrow[r] * xrow[j]
            if self.expected:
                for r in range(l):
                    for c in range(r + 1):
                        v.be[r * l + c] += self.we[b] * zrow[r] * zrow[c]
            total = s - 2.0 * self.sbar[b]
            for j in range(p):
                sums.gradient[nt + j] += total * xrow[j]
                for k in range(j + 1):
                    sums.xx[j * p + k] += w * xrow[j] * xrow[k]
            if self.estimated:
                sums.gradient[nf - 1] += g * self.wr[b]
                s = self.sr[b]
                for r in range(l):
                    v.ar[r] += s * arow[r]
                    v.zr[r] += s * zrow[r]
                for j in range(p):
                    sums.rx[j] += s * xrow[j]
        for r in range(l):
            for c in range(r):
                v.bo[c * l + r] = v.bo[r * l + c]
                v.be[c * l + r] = v.be[r * l + c]
        if not self.expected:
            memcpy(v.be, v.bo, l * l * sizeof(double))

    cdef int factor_observed(self, level_t *v) noexcept nogil:
        """Z'WZ L and C of M_o."""
        cdef Py_ssize_t r, c, k, l = self.l
        cdef const double *lam = &self.factor[0]
        cdef double total
        times_lower(v.bo, lam, v.bl, l)
        if self.expected:  # M_o = L'Z'WZ L + I
            for r in range(l):
                for c in range(r + 1):
                    total = 1.0 if r == c else 0.0
                    for k in range(r, l):
                        total += lam[k * l + r] * v.bl[k * l + c]
                    v.obs[r * l + c] = total
            if chol(v.obs, l) != 0:
                return 1
        else:
            memcpy(v.obs, v.root, l * l * sizeof(double))
        return 0

    cdef void add_gradient(self, Py_ssize_t i, level_t *v, sums_t *sums) noexcept nogil:
        """The adjoint v and what it adds to the gradient in gamma and theta."""
        cdef Py_ssize_t r, c, j, k, a, l = self.l, p = self.p, nt = self.n_theta
        cdef const double *lam = &self.factor[0]
        cdef const double *u = &self.u[i, 0]
        cdef const double *t = &self.t[i, 0]
        cdef double total
        solve(v.obs, v.ac, l)  # v
        memcpy(v.col, v.ac, l * sizeof(double))
        lower_times(lam, v.col, l, 1)
        for r in range(l):  # tau = Z'(c - W A v)
            for c in range(l):
                v.zc[r] -= v.bo[r * l + c] * v.col[c]
        for j in range(p):
            for r in range(l):
                sums.gradient[nt + j] -= v.zx[r * p + j] * v.col[r]
        times_lower(v.be, lam, v.y, l)  # Z'WZ L with log|M|'s weights
        for a in range(nt):
            r, c = self.row[a], self.col[a]
            total = v.zc[r] * u[c] + v.ac[c] * t[r] - 2.0 * self.tu[i, r, c]
            for k in range(l):
                total += 2.0 * v.y[r * l + k] * v.inv[k * l + c]
            sums.gradient[a] += total

    cdef void add_curvature(self, Py_ssize_t i, level_t *v, sums_t *sums) noexcept nogil:
        """Q = B - B L M_o^-1 L'B, column by column; then G."""
        cdef Py_ssize_t r, c, k, l = self.l
        cdef const double *t = &self.t[i, 0]
        cdef double total
        for c in range(l):
            for r in range(l):
                v.col[r] = v.bl[c * l + r]
            solve(v.obs, v.col, l)
            for r in range(l):
                total = v.bo[r * l + c]
                for k in range(l):
                    total -= v.bl[r * l + k] * v.col[k]
                v.qq[r * l + c] = total
        for r in range(l):
            for c in range(l):
                sums.big[r * l + c] += v.qq[r * l + c] - t[r] * t[c] + 0.5 * (t[r] * v.zc[c] + v.zc[r] * t[c])
        if self.expected:  # log|M|'s part of G has its own weights
            for c in range(l):
                for r in range(l):
                    v.col[r] = v.y[c * l + r]
                solve(v.root, v.col, l)
                for r in range(l):
                    total = v.be[r * l + c] - v.qq[r * l + c]
                    for k in range(l):
                        total -= v.y[r * l + k] * v.col[k]
                    sums.big[r * l + c] += total

    cdef void add_rho(self, Py_ssize_t i, level_t *v, sums_t *sums) noexcept nogil:
        """Gradient and rows of the family's extra parameter; its modes' derivatives."""
        cdef Py_ssize_t b, r, c, j, l = self.l, p = self.p, nf = self.n_free
        cdef const double *lam = &self.factor[0]
        memcpy(v.mr, v.ar, l * sizeof(double))
        solve(v.obs, v.mr, l)
        sums.gradient[nf - 1] -= 2.0 * self.lr[i]
        for r in range(l):
            sums.gradient[nf - 1] += v.ac[r] * v.ar[r]
            sums.rr[0] += v.ar[r] * v.mr[r]
        for b in range(self.ptr[i], self.ptr[i + 1]):
            sums.rr[0] += self.lrr[b]
        for r in range(l):  # Z'r_rho
            for c in range(l):
                v.zr[r] -= v.bl[r * l + c] * v.mr[c]
        memcpy(v.col, v.mr, l * sizeof(double))
        lower_times(lam, v.col, l, 1)
        for j in range(p):
            for r in range(l):
                sums.rx[j] -= v.zx[r * p + j] * v.col[r]
        for r in range(l):
            self.jac[i, nf - 1, r] = v.mr[r]

    cdef void move_with_gamma(self, Py_ssize_t i, level_t *v, sums_t *sums) noexcept nogil:
        """The modes' derivatives in gamma, and X'V^-1X."""
        cdef Py_ssize_t r, j, k, l = self.l, p = self.p, nt = self.n_theta
        cdef const double *lam = &self.factor[0]
        cdef double total
        for j in range(p):
            for r in range(l):
                v.col[r] = 0.0
                for k in range(r, l):
                    v.col[r] -= lam[k * l + r] * v.zx[k * p + j]
            solve_lower(v.obs, v.col, l, 1)
            for k in range(l):
                self.jac[i, nt + j, k] = v.col[k]
            for k in range(j + 1):
                total = 0.0
                for r in range(l):
                    total += v.col[r] * self.jac[i, nt + k, r]
                sums.xx[j * p + k] -= total
        for j in range(p):
            solve_lower_t(v.obs, &self.jac[i, nt + j, 0], l, 1)

    cdef void move_with_theta(self, Py_ssize_t i, level_t *v) noexcept nogil:
        """The modes' derivatives in theta, and F's part of each."""
        cdef Py_ssize_t r, c, a, k, l = self.l, nt = self.n_theta
        cdef const double *lam = &self.factor[0]
        cdef const double *u = &self.u[i, 0]
        cdef const double *t = &self.t[i, 0]
        cdef double total
        for a in range(nt):
            r, c = self.row[a], self.col[a]
            total = 0.0
            for k in range(l):
                total += lam[k * l + c] * t[k]
                v.va[a * l + k] = lam[k * l + c] * t[r]
            v.va[a * l + r] += total
            for k in range(l):
                self.jac[i, a, k] = -v.bl[r * l + k] * u[c]
            self.jac[i, a, c] += t[r]
            solve(v.obs, &self.jac[i, a, 0], l)

    cdef void add_theta(self, Py_ssize_t i, level_t *v, sums_t *sums) noexcept nogil:
        """F'V^-1F, F'V^-1X and rho's row with F."""
        cdef Py_ssize_t r, c, j, a, b, k, l = self.l, p = self.p, nt = self.n_theta
        cdef double total
        for a in range(nt):
            for r in range(l):
                v.qv[a * l + r] = 0.0
                for c in range(l):
                    v.qv[a * l + r] += v.qq[r * l + c] * v.va[a * l + c]
            if self.estimated:
                for r in range(l):
                    sums.rf[a] += v.va[a * l + r] * v.zr[r]
            for b in range(a + 1):
                total = 0.0
                for r in range(l):
                    total += v.qv[a * l + r] * v.va[b * l + r]
                sums.ff[a * nt + b] += total
                if a != b:
                    sums.ff[b * nt + a] += total
            # v'(Z'WX - B L M_o^-1 L'Z'WX) = v'(Z'WX + B L du/dgamma)
            for k in range(l):
                v.col[k] = 0.0
                for r in range(l):
                    v.col[k] += v.va[a * l + r] * v.bl[r * l + k]
            for j in range(p):
                total = 0.0
                for r in range(l):
                    total += v.va[a * l + r] * v.zx[r * p + j] + v.col[r] * self.jac[i, nt + j, r]
                sums.fx[a * p + j] += total

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


cdef inline void solve(const double *root, double *x, Py_ssize_t l) noexcept nogil:
    """x <- (R R')^-1 x."""
    solve_lower(root, x, l, 1)
    solve_lower_t(root, x, l, 1)


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
