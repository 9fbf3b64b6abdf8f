"""Exact gradient and average-information Hessian of the profiled criterion.

With t = Z'Py and Q = V^-1 (ML) or P (REML), each factor's covariance derivative is
    G = sum_j ( [Z'QZ]_jj - (nu / r^2) t_j t_j' )           d(criterion)/dL = 2 G L
with the sums of [Z'QZ]_jj from `traces`. With a fixed scale nu / r^2 = 1, the criterion is log|M|, and what the
response adds to G is the caller's: `Traces.traces` gives sum_j [Z'V^-1 Z]_jj, `chain` takes any G to theta. The model
Hessian is the average information (Gilmour, Thompson and Cullis 1995) plus the exact curvature of Sigma = L L':
    H_ab = nu (f_a'P f_b / r^2 - (f_a'Py)(f_b'Py) / r^4) + 2 G[i_a, i_b]  [same factor, same column]
    f_a  = dV/dtheta_a Py

In: the factors of the last value (`solver`), which the derivatives use up. Cost: that of the traces, and one forward
solve a parameter. Level loops that sum run over the chunks of `traces`.
"""

import numpy as np

from cython.parallel cimport prange
from libc.math cimport exp, isfinite
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastlmm_core._native.criterion.traces cimport Traces
from fastlmm_core._native.leading.level cimport information_row, times_ka
from fastlmm_core._native.small cimport part as next_part
from fastlmm_core._native.tail.tail cimport Tail

__all__ = ["Evaluator"]


cdef class Evaluator(Traces):
    """A `Solver` with derivatives; parameters as there."""

    def __init__(self, dict arrays not None, Tail tail not None, Py_ssize_t n, Py_ssize_t p, bint reml, int threads,
                 bint fixed_scale=False):
        Traces.__init__(self, arrays, tail, n, p, reml, threads, fixed_scale)
        self.ready = False
        cdef Py_ssize_t m = tail.m, nt = self.n_theta
        self.ca, self.va = np.zeros((nt, m)), np.zeros((nt - self.n_lead_theta, m))
        self.cx, self.h1 = np.zeros((nt, p + 1)), np.zeros((nt, nt))
        cdef Py_ssize_t used = 0, n_x = self.lead.q * self.lead.l * self.n_lead_theta + 1
        cdef double[::1] room = np.zeros(n_x + self.n_chunks * self.chunk_size())
        self.x_lead = next_part(room, &used, n_x)
        self.chunk_sums = next_part(room, &used, self.n_chunks * self.chunk_size())
        # one spare entry each: an empty leading group still has an address
        cdef int64_t[:, ::1] places = np.zeros((2, self.n_lead_theta + 1), np.int64)
        cdef Py_ssize_t a, at = 0
        for a in range(nt):
            if self.theta_group[a] == 0:
                places[0, at], places[1, at] = self.theta_row[a], self.theta_col[a]
                at += 1
        self.lead_row, self.lead_col = places[0], places[1]
        self.ready = True

    cdef Py_ssize_t chunk_size(self) noexcept nogil:
        cdef Py_ssize_t n1 = self.n_lead_theta, l = self.lead.l
        return n1 * n1 + n1 * self.lead.d + 2 * l * l + n1 + 2 * l * n1 + l * l

    def derivatives(self, const double[::1] theta not None):
        """Criterion, gradient (n_theta,) and model Hessian (n_theta, n_theta) at ``theta``."""
        gradient_, hessian_ = np.empty(self.n_theta), np.empty((self.n_theta, self.n_theta))
        cdef double[::1] gradient = gradient_
        cdef double[:, ::1] hessian = hessian_
        cdef double out = 0.0
        cdef int status
        if self.fixed_scale:
            raise ValueError("with a fixed scale the derivatives are made of `traces`")
        if self.tail.known:
            raise ValueError("the profiled criterion's derivatives are for independent levels")
        self.enter()
        try:
            self.check_length(theta)
            with nogil:
                status = self.factor_at(&theta[0])
                out = self.criterion
                if status == 0:
                    status = self.c_derivatives(&gradient[0], &hessian[0, 0])
        finally:
            self.leave()
        self.check(status, theta)
        return out, gradient_, hessian_

    def chain(self, const double[::1] theta not None, list blocks not None):
        """Derivatives along theta of a function of the covariance matrices Sigma_k = L_k L_k'.

        Parameters
        ----------
        theta : (n_theta,)
        blocks : list of (l, l) arrays
            Symmetric G of each group: the function changes by sum_k <G_k, dSigma_k>.

        Returns
        -------
        gradient : (n_theta,)
            2 G L at each parameter's place.
        curvature : (n_theta, n_theta)
            What Sigma's own curvature adds to the second derivatives, 2 G[i_a, i_b] within a column of one factor.
        """
        self.check_length(theta)
        cdef Py_ssize_t a, nt = self.n_theta
        gradient_, curvature_ = np.empty(nt), np.zeros((nt, nt))
        none = np.zeros(0 if self.lead.q else 1)  # the place of a leading group that is not there
        cdef double[::1] gradient = gradient_, big_g = np.concatenate([none, *map(np.ravel, blocks)])
        cdef double[::1] lam = np.zeros(self.lam.shape[0])
        cdef double[:, ::1] curvature = curvature_
        if big_g.shape[0] != lam.shape[0]:
            raise ValueError(f"{big_g.shape[0]} entries in the blocks, not {lam.shape[0]}")
        for a in range(nt):
            lam[self.place_of(a)] = theta[a]
        self.c_chain(&lam[0], &big_g[0], &gradient[0], &curvature[0, 0])
        return gradient_, curvature_

    cdef Py_ssize_t place_of(self, Py_ssize_t a) noexcept nogil:
        cdef Py_ssize_t g = self.theta_group[a]
        return self.group_lam[g] + self.theta_row[a] * self.group_l[g] + self.theta_col[a]

    cdef void c_chain(self, const double *lam, const double *sums, double *gradient, double *hessian) noexcept nogil:
        """Gradient from G of every factor; its curvature is added to ``hessian``."""
        cdef Py_ssize_t a, b, g, l, nt = self.n_theta
        cdef double h
        cdef const double *big_g
        cdef const double *factor
        for a in range(nt):
            g = self.theta_group[a]
            l = self.group_l[g]
            big_g = sums + self.group_lam[g]
            factor = lam + self.group_lam[g]
            h = 0.0
            for b in range(l):
                h += big_g[self.theta_row[a] * l + b] * factor[b * l + self.theta_col[a]]
            gradient[a] = 2.0 * h
            for b in range(nt):
                if self.theta_group[b] == g and self.theta_col[b] == self.theta_col[a]:
                    hessian[a * nt + b] += 2.0 * big_g[self.theta_row[a] * l + self.theta_row[b]]

    cdef int c_derivatives(self, double *gradient, double *hessian) noexcept nogil:
        """Gradient and model Hessian where `c_value` was last called; the inverse takes its factors' place."""
        cdef Py_ssize_t a, b, nt = self.n_theta
        cdef double scale = self.nu / self.r2, r2 = self.r2
        self.solve_modes()
        self.information(gradient)  # gradient holds f_a'Py for now
        for a in range(nt):
            for b in range(nt):
                hessian[a * nt + b] = scale * (self.h1[a, b] - gradient[a] * gradient[b] / r2)
        if self.group_gradients(scale) != 0:
            return 1
        self.c_chain(&self.lam[0], &self.sums[0], gradient, hessian)
        return 0

    def given_sigma(self, const double[::1] theta not None, double log_sigma):
        """Gradient and model Hessian of the deviance at a given sigma, not the best one; maximum likelihood only.

        With kappa = r^2 / sigma^2 and d r^2 / d theta_a = -f_a'Py the deviance at sigma is

            log|M| + n log(2 pi sigma^2) + kappa - sum log w

        so kappa takes nu's place in G, and the term that profiling sigma out takes from the information is not taken.

        Returns
        -------
        gradient : (1 + n_theta,)
            In (log sigma, theta); sigma in the units of the response that was loaded.
        hessian : (1 + n_theta, 1 + n_theta)
        """
        cdef Py_ssize_t a, b, nt = self.n_theta
        gradient_, hessian_ = np.empty(nt + 1), np.empty((nt + 1, nt + 1))
        inner_, curvature_ = np.empty(nt), np.zeros((nt, nt))
        cdef double[::1] gradient = gradient_, inner = inner_
        cdef double[:, ::1] hessian = hessian_, curvature = curvature_
        cdef double kappa = 0.0
        cdef int status
        if self.fixed_scale or self.reml or self.tail.known:
            raise ValueError("a given sigma is for the deviance of independent levels")
        self.enter()
        try:
            self.check_length(theta)
            with nogil:
                status = self.factor_at(&theta[0])
                if status == 0:
                    kappa = self.r2 * exp(-2.0 * log_sigma)
                    status = 0 if isfinite(kappa) else 1
                if status == 0:
                    self.solve_modes()
                    self.information(&inner[0])
                    gradient[0], hessian[0, 0] = 2.0 * (self.nu - kappa), 4.0 * kappa
                    for a in range(nt):
                        hessian[0, a + 1] = hessian[a + 1, 0] = 2.0 * kappa * inner[a] / self.r2
                        for b in range(nt):
                            curvature[a, b] = kappa / self.r2 * self.h1[a, b]
                    status = self.group_gradients(kappa / self.r2)
                    self.c_chain(&self.lam[0], &self.sums[0], &inner[0], &curvature[0, 0])
        finally:
            self.leave()
        self.check(status, theta)
        gradient_[1:], hessian_[1:, 1:] = inner_, curvature_
        return gradient_, hessian_

    cdef void information(self, double *fpy) noexcept nogil:
        """h1 = f_a'P f_b and ``fpy`` = f_a'Py; also leaves the leading sums of t_i t_i' and (I - A_i K_i) A_i.

        f_a = Z_k v_a with v_a[j] = e_r (L'_c t_j) + L_c t_jr for theta_a = L[r, c].
        """
        cdef Py_ssize_t i, j, size = self.chunk_size()
        memset(&self.chunk_sums[0], 0, self.n_chunks * size * sizeof(double))
        if self.threads == 1:
            for i in range(self.n_chunks):
                self.information_chunk(i)
        else:
            for i in prange(self.n_chunks, schedule="static", num_threads=self.threads):
                self.information_chunk(i)
        for i in range(1, self.n_chunks):
            for j in range(size):
                self.chunk_sums[j] += self.chunk_sums[i * size + j]
        self.leading_information(fpy)
        if self.tail.m:
            self.tail_information(fpy)
        self.project_information()

    cdef void leading_information(self, double *fpy) noexcept nogil:
        """h1, cx and ``fpy`` of the leading parameters, from the sums over levels."""
        cdef Py_ssize_t nt = self.n_theta, n1 = self.n_lead_theta, d = self.lead.d, l = self.lead.l
        cdef Py_ssize_t i, j, x, a = 0, b  # leading parameters keep their order among theta
        cdef double *sums = &self.chunk_sums[0]
        for i in range(nt):
            if self.theta_group[i] != 0:
                continue
            b = 0
            for j in range(nt):
                if self.theta_group[j] == 0:
                    self.h1[i, j] = sums[a * n1 + b]
                    b += 1
            for x in range(self.p):
                self.cx[i, x] = sums[n1 * n1 + a * d + x]
            fpy[i] = sums[n1 * n1 + n1 * d + 2 * l * l + a]
            a += 1

    cdef void tail_information(self, double *fpy) noexcept nogil:
        """h1, cx and ``fpy`` of the tail's parameters, before projection; L^-1 Lambda_t'C v of every one in ``ca``."""
        cdef Py_ssize_t nt = self.n_theta, n1 = self.n_lead_theta, m = self.tail.m, a, b, j, x, k = 0
        cdef double s
        if n1:
            if self.threads == 1:
                for j in range(m):
                    information_row(&self.lead, j, &self.x_lead[0], n1, nt, &self.theta_group[0], &self.ca[0, 0], m)
            else:
                for j in prange(m, schedule="static", num_threads=self.threads):
                    information_row(&self.lead, j, &self.x_lead[0], n1, nt, &self.theta_group[0], &self.ca[0, 0], m)
        self.tail_directions(fpy)
        for a in range(nt):  # C v of the tail's own parameters
            if self.theta_group[a] != 0:
                self.tail.times(&self.va[k, 0], &self.ca[a, 0], 1)
                k += 1
        k = 0
        for a in range(nt):
            if self.theta_group[a] == 0:
                continue
            for x in range(self.p):
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
        self.tail.reduce(&self.ca[0, 0], nt, NULL)

    cdef void tail_directions(self, double *fpy) noexcept nogil:
        """v_a of the tail's parameters, in ``va``, and ``fpy``, their products with t."""
        cdef Py_ssize_t a, b, c, r, x, g, o, l, k = 0
        cdef double s
        cdef const double *factor
        for a in range(self.n_theta):
            g = self.theta_group[a]
            if g == 0:
                continue
            l, r, c = self.group_l[g], self.theta_row[a], self.theta_col[a]
            factor = &self.lam[self.group_lam[g]]
            memset(&self.va[k, 0], 0, self.tail.m * sizeof(double))
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
        cdef Py_ssize_t first = chunk * self.lead.q // self.n_chunks, last = (chunk + 1) * self.lead.q // self.n_chunks
        cdef double *sums = &self.chunk_sums[chunk * self.chunk_size()]
        if self.lead.l == 1:
            information_levels(self, first, last, sums, 1)
        elif self.lead.l == 2:
            information_levels(self, first, last, sums, 2)
        elif self.lead.l == 3:
            information_levels(self, first, last, sums, 3)
        else:
            information_levels(self, first, last, sums, self.lead.l)

    cdef int group_gradients(self, double scale) noexcept nogil:
        """G of every factor, into ``sums``; ``scale`` is nu / r^2, or one over a given sigma's square."""
        cdef Py_ssize_t l = self.lead.l, n1 = self.n_lead_theta, d = self.lead.d, b, r, c, g, o
        cdef double *sums = &self.chunk_sums[0] + n1 * n1 + n1 * d
        memset(&self.sums[0], 0, self.sums.shape[0] * sizeof(double))
        for r in range(l * l):
            self.sums[r] = sums[l * l + r] - scale * sums[r]
        for b in range(self.n_blocks):
            g = self.block_group[b]
            l, o = self.group_l[g], self.block_ptr[b]
            for r in range(l):
                for c in range(l):
                    self.sums[self.group_lam[g] + r * l + c] -= scale * self.t_tail[o + r] * self.t_tail[o + c]
        return self.all_traces()


cdef inline void information_levels(Evaluator e, Py_ssize_t first, Py_ssize_t last, double *gram,
                                    Py_ssize_t l) noexcept nogil:
    """`Evaluator.information_chunk` for blocks of l columns."""
    cdef Py_ssize_t d = e.lead.d, p = e.p, n1 = e.n_lead_theta, i, a, b, r, c, x, y
    cdef double *zx = gram + n1 * n1
    cdef double *tt = zx + n1 * d
    cdef double *shrunk = tt + l * l
    cdef double *fpy = shrunk + l * l
    cdef double *v = fpy + n1      # (n1, l)
    cdef double *av = v + n1 * l   # (n1, l)
    cdef double *ka = av + n1 * l  # K_i A_i
    cdef const double *lam = &e.lam[0]
    cdef const int64_t *row = &e.lead_row[0]
    cdef const int64_t *col = &e.lead_col[0]
    cdef const double *aa
    cdef const double *t
    cdef const double *zd
    cdef double *xl
    cdef double s
    for i in range(first, last):
        aa = e.lead.a + i * l * l
        t = &e.t_lead[0] + i * l
        zd = e.lead.zd + i * l * d
        xl = &e.x_lead[0] + i * l * n1
        times_ka(&e.lead_m[0] + i * l * l, aa, ka, l)
        for r in range(l):
            for c in range(l):
                tt[r * l + c] += t[r] * t[c]
                s = aa[r * l + c]
                for x in range(l):
                    s -= aa[r * l + x] * ka[x * l + c]
                shrunk[r * l + c] += s
        for a in range(n1):
            r, c = row[a], col[a]
            s = 0.0
            for x in range(l):
                s += lam[x * l + c] * t[x]
                v[a * l + x] = lam[x * l + c] * t[r]
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
        for a in range(n1):
            for b in range(n1):
                s = gram[a * n1 + b]
                for x in range(l):
                    s += av[a * l + x] * xl[x * n1 + b]
                gram[a * n1 + b] = s
