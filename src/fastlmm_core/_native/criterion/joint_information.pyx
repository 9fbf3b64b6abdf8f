"""What degrees of freedom need of a fit with several grouping factors and few random effects: all in one call.

In conditioned coordinates, with the notation of `information`: the Hessian of the profiled criterion is

    H = (nu / r^2) (2 f_a'P f_b - (f_a'Py)(f_b'Py) / r^2) - tr(P V_a P V_b) + 2 G[i_a, i_b]
    tr(P V_a P V_b) = sum_ij tr(Q_ji E_a Q_ij E_b),    G = sum_i Q_ii - (nu / r^2) t_i t_i'

over the levels i of a's factor and j of b's, Q = Z'PZ (Z'V^-1Z by maximum likelihood) cut into blocks of levels; the
last term, the curvature of Sigma = L L', is there for elements of one column of one factor. With
V_1 the covariance of the leading factor alone, C = Z_t'V_1^-1 Z_t and U = Z_1'V_1^-1 Z_t = (I - A K) B,

    Z'V^-1Z = [ (I - A K) A - U H U'   U - U H C ]      H = Lambda_t S^-1 Lambda_t',
              [        .               C - C H C ]

and P takes F F' off, F = Z'V^-1X L_X^-T. Nothing is divided by a factor, so variances of zero need no care.
Cost: N^2 (m + p) for N random effects, m of them in the tail, and N^2 l^2 a pair of parameters; memory N^2.
"""

import numpy as np

from libc.stdint cimport int64_t

from fastlmm_core._native.criterion.evaluator cimport Evaluator
from fastlmm_core._native.leading.level cimport times_ka
from fastlmm_core._native.small cimport lower_times

__all__ = ["joint_information"]


def joint_information(Evaluator evaluator not None, const double[::1] theta not None):
    """Hessian, slopes and what is to be whitened with, as `information.level_information`, of several factors.

    Parameters
    ----------
    evaluator : Evaluator
        With a leading factor and a tail of independent levels, its scale not fixed.
    theta : (k,)

    Returns
    -------
    hessian : (k, k)
        Exact second derivatives of the profiled criterion.
    slopes : (k, rank, rank)
    of_r2 : (k,)
        dr^2 / dtheta.
    factor : (rank, rank)
        L_X, its upper triangle zero.
    r2 : float
    """
    cdef Evaluator e = evaluator
    cdef Py_ssize_t k = e.n_theta, p = e.p, m = e.tail.m, own = e.lead.q * e.lead.l, n = own + m, a, b, x, y
    cdef double scale
    cdef int status
    if not m or e.fixed_scale or e.tail.known or not e.lead.q:
        raise ValueError("a leading factor and others of independent levels, and a scale to be estimated, are needed")
    hessian_, slopes_, of_r2_, factor_ = np.empty((k, k)), np.zeros((k, p, p)), np.empty(k), np.zeros((p, p))
    cdef double[:, ::1] hessian = hessian_, factor = factor_
    cdef double[:, :, ::1] slopes = slopes_
    cdef double[::1] of_r2 = of_r2_, t = np.empty(n)
    cdef double[:, ::1] products = np.zeros((n, n)), f = np.zeros((n, p + 1)), room = np.zeros((n + m, m))
    cdef int64_t[::1] start = np.empty(e.lead.q + e.n_blocks, np.int64)
    cdef Py_ssize_t[:, ::1] span = np.zeros((e.n_groups, 2), np.intp)
    e.enter()
    try:
        e.check_length(theta)
        with nogil:
            status = e.factor_at(&theta[0])
            if status == 0:
                effect_products(e, products, f, room)
                if e.reml:
                    for x in range(n):
                        for y in range(x + 1):
                            for a in range(p):
                                products[x, y] -= f[x, a] * f[y, a]
                for x in range(n):
                    for y in range(x):
                        products[y, x] = products[x, y]
                e.solve_modes()
                e.information(&of_r2[0])  # f_a'Py for now, and h1
                scale = e.nu / e.r2
                for x in range(own):
                    t[x] = e.t_lead[x]
                for x in range(m):
                    t[own + x] = e.t_tail[x]
                level_starts(e, start, span)
                for a in range(k):
                    of_r2[a] = level_slopes(e, a, start, span, f, t, slopes[a])
                    for b in range(a + 1):
                        hessian[a, b] = (scale * (2.0 * e.h1[a, b] - of_r2[a] * of_r2[b] / e.r2)
                                         - trace(e, a, b, start, span, products)
                                         + curvature(e, a, b, start, span, products, t, scale))
                        hessian[b, a] = hessian[a, b]
                for x in range(p):
                    for y in range(x + 1):
                        factor[x, y] = e.ld[x, y]
        e.check(status, theta)
        return hessian_, slopes_, of_r2_, factor_, e.r2
    finally:
        e.leave()


cdef void effect_products(Evaluator e, double[:, ::1] z, double[:, ::1] f, double[:, ::1] room) noexcept nogil:
    """Lower triangle of Z'V^-1Z in ``z`` (n, n) and F in ``f`` (n, p), zero before; ``room`` is for work (n + m, m)."""
    cdef Py_ssize_t q = e.lead.q, l = e.lead.l, m = e.tail.m, p = e.p, own = q * l, i, j, r, c, x
    cdef double s
    cdef double[:, ::1] u = room[:own], h = room[own:own + m], w = room[own + m:own + 2 * m]
    # C in the tail's place of z, H = Lambda S^-1 Lambda' beside it
    for j in range(m):
        h[j, j] = 1.0
        w[0, j] = 1.0
        e.tail.times(&w[0, 0], &z[own + j, own], 1)
        w[0, j] = 0.0
    e.lambda_t(&e.lam[0], &h[0, 0], m)
    e.tail.solve(&h[0, 0], m)
    for j in range(m):
        for i in range(e.n_blocks):
            lower_times(&e.lam[e.block_lam[i]], &h[j, e.block_ptr[i]], e.block_ptr[i + 1] - e.block_ptr[i], 1)
    leading_products(e, z, f, u)
    # F: g = H c of each dense column c, with g in the first row of w
    for x in range(p):
        for j in range(m):
            s = 0.0
            for c in range(m):
                s += h[j, c] * e.c_dense[x, c]
            w[0, j] = s
        for i in range(own):
            for j in range(m):
                f[i, x] -= u[i, j] * w[0, j]
        for i in range(m):
            s = e.c_dense[x, i]
            for j in range(m):
                s -= z[own + i, own + j] * w[0, j]
            f[own + i, x] = s
    for i in range(own + m):
        for x in range(p):
            for c in range(x):
                f[i, x] -= e.ld[x, c] * f[i, c]
            f[i, x] /= e.ld[x, x]
    # w = C H; both blocks of the tail's rows, then the leading factor's
    for i in range(m):
        for j in range(m):
            s = 0.0
            for c in range(m):
                s += z[own + i, own + c] * h[c, j]
            w[i, j] = s
    for i in range(m):
        for r in range(own):
            s = u[r, i]
            for j in range(m):
                s -= w[i, j] * u[r, j]
            z[own + i, r] = s
    for r in range(own):
        for j in range(m):
            s = 0.0
            for c in range(m):
                s += u[r, c] * h[c, j]
            e.work[j] = s
        for i in range(r + 1):
            s = 0.0
            for j in range(m):
                s += e.work[j] * u[i, j]
            z[r, i] -= s
    for i in range(m):  # C - (C H) C, in h's place, which is done with: all of C is read until the end
        for j in range(i + 1):
            h[i, j] = z[own + i, own + j]
            for c in range(m):
                h[i, j] -= w[i, c] * z[own + c, own + j]
    for i in range(m):
        for j in range(i + 1):
            z[own + i, own + j] = h[i, j]


cdef void leading_products(Evaluator e, double[:, ::1] z, double[:, ::1] f, double[:, ::1] u) noexcept nogil:
    """(I - A K) times A, Z_X and B of every leading level: in the diagonal blocks of z, in ``f`` and in ``u``."""
    cdef Py_ssize_t l = e.lead.l, d = e.lead.d, i, r, c, x
    cdef int64_t first, width, b
    cdef double s
    cdef double *ka = &e.small[0]
    cdef const double *a
    cdef const double *strip
    cdef const double *dense
    for i in range(e.lead.q):
        a, first, width = e.lead.a + i * l * l, e.lead.ptr[i], e.lead.ptr[i + 1] - e.lead.ptr[i]
        strip, dense = e.lead.val + l * first, e.lead.zd + i * l * d
        times_ka(&e.lead_m[0] + i * l * l, a, ka, l)
        for r in range(l):
            for c in range(l):
                s = a[r * l + c]
                for x in range(l):
                    s -= ka[x * l + r] * a[x * l + c]
                z[i * l + r, i * l + c] = s
            for c in range(e.p):
                s = dense[r * d + c]
                for x in range(l):
                    s -= ka[x * l + r] * dense[x * d + c]
                f[i * l + r, c] = s
            for b in range(width):
                s = strip[r * width + b]
                for x in range(l):
                    s -= ka[x * l + r] * strip[x * width + b]
                u[i * l + r, e.lead.idx[first + b]] = s


cdef void level_starts(Evaluator e, int64_t[::1] start, Py_ssize_t[:, ::1] span) noexcept nogil:
    """First effect of each level, group by group, and where each group begins and ends in that list."""
    cdef Py_ssize_t i, g, at = e.lead.q
    for i in range(e.lead.q):
        start[i] = i * e.lead.l
    span[0, 1] = at
    for g in range(1, e.n_groups):
        span[g, 0] = at
        for i in range(e.n_blocks):
            if e.block_group[i] == g:
                start[at] = e.lead.q * e.lead.l + e.block_ptr[i]
                at += 1
        span[g, 1] = at


cdef double level_slopes(Evaluator e, Py_ssize_t a, const int64_t[::1] start, const Py_ssize_t[:, ::1] span,
                         const double[:, ::1] f, const double[::1] t, double[:, ::1] slopes) noexcept nogil:
    """dr^2/dtheta_a; ``slopes`` (p, p), zero before, becomes sum_i F_i'E_a F_i."""
    cdef Py_ssize_t g = e.theta_group[a], l = e.group_l[g], i, s, x, y
    cdef const double *v = &e.lam[e.group_lam[g] + e.theta_col[a]]
    cdef double along, out = 0.0
    cdef int64_t o, r
    for i in range(span[g, 0], span[g, 1]):
        o = start[i]
        r, along = o + e.theta_row[a], 0.0
        for s in range(l):
            along += v[s * l] * t[o + s]
        out -= 2.0 * t[r] * along
        for y in range(e.p):
            along = 0.0
            for s in range(l):
                along += v[s * l] * f[o + s, y]
            for x in range(e.p):
                slopes[x, y] += f[r, x] * along
                slopes[y, x] += f[r, x] * along
    return out


cdef double trace(Evaluator e, Py_ssize_t a, Py_ssize_t b, const int64_t[::1] start, const Py_ssize_t[:, ::1] span,
                  const double[:, ::1] q) noexcept nogil:
    """tr(P V_a P V_b): with E_a = e_r v' + v e_r', E_b = e_s w' + w e_s' it is, block by block of q,

        2 (v'Q e_s)(e_r'Q w) + 2 (v'Q w)(e_r'Q e_s)
    """
    cdef Py_ssize_t g = e.theta_group[a], h = e.theta_group[b], lg = e.group_l[g], lh = e.group_l[h], i, j, x, y
    cdef const double *v = &e.lam[e.group_lam[g] + e.theta_col[a]]
    cdef const double *w = &e.lam[e.group_lam[h] + e.theta_col[b]]
    cdef double total = 0.0, ve, rw, vw, part
    cdef int64_t r, s, o, c
    for i in range(span[g, 0], span[g, 1]):
        o = start[i]
        r = o + e.theta_row[a]
        for j in range(span[h, 0], span[h, 1]):
            c = start[j]
            s = c + e.theta_row[b]
            ve = rw = vw = 0.0
            for y in range(lh):
                rw += q[r, c + y] * w[y * lh]
            for x in range(lg):
                ve += v[x * lg] * q[o + x, s]
                part = 0.0
                for y in range(lh):
                    part += q[o + x, c + y] * w[y * lh]
                vw += v[x * lg] * part
            total += 2.0 * (ve * rw + vw * q[r, s])
    return total


cdef double curvature(Evaluator e, Py_ssize_t a, Py_ssize_t b, const int64_t[::1] start, const Py_ssize_t[:, ::1] span,
                      const double[:, ::1] q, const double[::1] t, double scale) noexcept nogil:
    """2 G[i_a, i_b] for two elements of one column of one factor, zero otherwise."""
    cdef Py_ssize_t g = e.theta_group[a], i
    cdef double total = 0.0
    cdef int64_t r, s
    if e.theta_group[b] != g or e.theta_col[a] != e.theta_col[b]:
        return 0.0
    for i in range(span[g, 0], span[g, 1]):
        r, s = start[i] + e.theta_row[a], start[i] + e.theta_row[b]
        total += q[r, s] - scale * t[r] * t[s]
    return 2.0 * total
