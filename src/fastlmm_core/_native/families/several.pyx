"""Rows of families with several parameters: ordered categories, and counts with a part of their own for zeros.

Ordered categories, alpha_{k-1} = b and alpha_k = a the thresholds of a row's category, x less eta in each:

    P = F(a) - F(b),   ra = f(a) / P,  rb = f(b) / P,   g = f'/f
    l_a = ra,  l_aa = ra g_a - ra^2,  l_b = -rb,  l_bb = -rb g_b - rb^2,  l_ab = ra rb,  third derivatives likewise

all from logarithms: log F, log(1 - F) and log f, P from the tail in which its two terms are the smaller. Then s, w and
k are sums of these, and derivatives in the thresholds too. Counts with a zero part: see `families/two_part.py`.

In: rows (n,). Out: an array of derivatives (., n), unweighted. Cost: one pass; about 100 ns a row.
"""

import numpy as np

from cython.parallel cimport prange
from libc.math cimport INFINITY, NAN, exp, expm1, fabs, log, log1p
from libc.string cimport memset

from fastlmm_core._native.families.links cimport CLOGLOG, LOGIT, PROBIT
from fastlmm_core._native.families.row cimport family_row, row_t
from fastlmm_core._native.families.special cimport LOG_SQRT_2PI, log_normal_cdf

__all__ = ["ordinal_rows", "two_part_rows"]

cdef double FAR = 300.0  # beyond which a threshold says the same for every link, and e to it squared overflows


cdef struct side_t:
    double below, above, density, g, g1  # log F, log(1 - F), log f, (log f)' and (log f)''


cdef inline void side_of(int link, double x, side_t *o) noexcept nogil:
    """A threshold at x; zero density at infinity."""
    cdef double t, f
    if x == INFINITY or x == -INFINITY:
        o.below = 0.0 if x > 0.0 else -INFINITY
        o.above = -INFINITY if x > 0.0 else 0.0
        o.density, o.g, o.g1 = -INFINITY, 0.0, 0.0
        return
    if link == LOGIT:
        t = exp(-fabs(x))
        f = log1p(t)
        o.below = -f if x >= 0.0 else x - f
        o.above = -x - f if x >= 0.0 else -f
        o.density = -fabs(x) - 2.0 * f
        o.g = (t - 1.0) / (1.0 + t) if x >= 0.0 else (1.0 - t) / (1.0 + t)
        o.g1 = -2.0 * t / ((1.0 + t) * (1.0 + t))
    elif link == PROBIT:
        o.below, o.above = log_normal_cdf(x), log_normal_cdf(-x)
        o.density, o.g, o.g1 = -0.5 * x * x - LOG_SQRT_2PI, -x, -1.0
    elif link == CLOGLOG:
        x = min(x, FAR)
        t = exp(x)
        o.below, o.above = log(-expm1(-t)), -t
        o.density, o.g, o.g1 = x - t, 1.0 - t, -t
    else:
        o.below, o.above, o.density, o.g, o.g1 = NAN, NAN, NAN, NAN, NAN


cdef inline double log_difference(double high, double low) noexcept nogil:
    """log(e^high - e^low); NaN where low is not the lower one."""
    if low == -INFINITY:
        return high
    return high + log(-expm1(low - high)) if low < high else NAN


cdef inline void ordinal_row(int link, double upper, double lower, double *o, Py_ssize_t n) noexcept nogil:
    """Thirteen numbers of a row at a stride of n, see `ordinal_rows`."""
    cdef side_t a, b
    cdef double p, ra, rb, laa, lbb, lab, laaa, lbbb, laab, labb
    side_of(link, upper, &a)
    side_of(link, lower, &b)
    p = log_difference(b.above, a.above) if b.below > a.above else log_difference(a.below, b.below)
    ra, rb = exp(a.density - p), exp(b.density - p)
    laa, lbb, lab = ra * a.g - ra * ra, -rb * b.g - rb * rb, ra * rb
    laaa = ra * (a.g * a.g + a.g1) - 3.0 * ra * ra * a.g + 2.0 * ra * ra * ra
    lbbb = -rb * (b.g * b.g + b.g1) - 3.0 * rb * rb * b.g - 2.0 * rb * rb * rb
    laab, labb = lab * (a.g - 2.0 * ra), lab * (b.g + 2.0 * rb)
    o[0] = p
    o[n] = rb - ra
    o[2 * n] = -(laa + 2.0 * lab + lbb)
    o[3 * n] = laaa + 3.0 * (laab + labb) + lbbb
    o[4 * n] = ra
    o[5 * n] = -rb
    o[6 * n] = laa
    o[7 * n] = lbb
    o[8 * n] = lab
    o[9 * n] = -(laa + lab)
    o[10 * n] = -(lbb + lab)
    o[11 * n] = -(laaa + 2.0 * laab + labb)
    o[12 * n] = -(lbbb + 2.0 * labb + laab)


def ordinal_rows(int link, const double[::1] y, const double[::1] eta, const double[::1] bounds, int threads):
    """Derivatives of log P(y) for categories y = 0, 1, ...

    Parameters
    ----------
    bounds : (K + 1,)
        Minus infinity, the thresholds, infinity.

    Returns
    -------
    (13, n): l, s, w, k; l_a, l_b, l_aa, l_bb, l_ab; s_a, s_b; w_a, w_b.
    """
    cdef Py_ssize_t n = y.shape[0], top = bounds.shape[0] - 2, i, k
    out_ = np.empty((13, n))
    cdef double[:, ::1] out = out_
    if eta.shape[0] != n:
        raise ValueError("y and eta differ in length")
    for i in range(n):
        if not (y[i] >= 0.0 and y[i] <= top):
            raise ValueError(f"category {y[i]} is none of 0 to {top}")
    for i in prange(n, schedule="static", num_threads=threads, nogil=True):
        k = <Py_ssize_t>y[i]
        ordinal_row(link, bounds[k + 1] - eta[i], bounds[k] - eta[i], &out[0, i], n)
    return out_


cdef inline double softplus(double x) noexcept nogil:
    return (x if x > 0.0 else 0.0) + log1p(exp(-fabs(x)))


cdef inline double expit(double x) noexcept nogil:
    cdef double t = exp(-fabs(x))
    return 1.0 / (1.0 + t) if x >= 0.0 else t / (1.0 + t)


cdef void two_part_row(int family, int link, bint hurdle, double y, double eta, double z, double rho, double *o,
                       Py_ssize_t n) noexcept nogil:
    """Eighteen numbers of a row at a stride of n, see `two_part_rows`."""
    cdef row_t c
    cdef double p = expit(z), t, t1, t2, we
    cdef Py_ssize_t j
    memset(&c, 0, sizeof(row_t))
    for j in range(18):
        o[j * n] = 0.0
    o[15 * n] = p * (1.0 - p) * (1.0 - 2.0 * p)
    if y > 0.0:
        family_row(family, link, y, eta, 1.0, rho, True, &c)
        o[0], o[n], o[2 * n], o[4 * n] = c.l - softplus(z), c.s, c.w, c.k
        o[5 * n], o[6 * n], o[7 * n], o[8 * n] = c.lr, c.lrr, c.sr, c.wr
        o[9 * n], o[10 * n] = -p, -p * (1.0 - p)
        we = c.we
    elif hurdle:
        o[0], o[9 * n], o[10 * n] = -softplus(-z), 1.0 - p, -p * (1.0 - p)
        family_row(family, link, 1.0, eta, 1.0, rho, True, &c)
        we = c.we
    else:
        family_row(family, link, 0.0, eta, 1.0, rho, True, &c)
        we = c.we
        t = expit(c.l - z)  # P(the zero is the counts' own)
        t1 = t * (1.0 - t)
        t2 = t1 * (1.0 - 2.0 * t)
        o[0] = z + softplus(c.l - z) - softplus(z)
        o[n] = t * c.s
        o[2 * n] = t * c.w - t1 * c.s * c.s
        o[4 * n] = t * c.k + 3.0 * t1 * c.s * c.w - t2 * c.s * c.s * c.s
        o[5 * n] = t * c.lr
        o[6 * n] = t1 * c.lr * c.lr + t * c.lrr
        o[7 * n] = t1 * c.lr * c.s + t * c.sr
        o[8 * n] = t1 * c.lr * c.w + t * c.wr - t2 * c.lr * c.s * c.s - 2.0 * t1 * c.s * c.sr
        o[9 * n] = 1.0 - t - p
        o[10 * n] = t1 - p * (1.0 - p)
        o[11 * n] = -t1 * c.s
        o[12 * n] = t2 * c.s * c.s - t1 * c.w
        o[13 * n] = -t1 * c.lr
        o[14 * n] = -t2 * c.s
        o[15 * n] += t2
        o[16 * n] = t2 * c.lr * c.s + t1 * c.sr
        o[17 * n] = -t2 * c.lr
    if not hurdle:  # less what is not seen of a zero
        if y > 0.0:
            family_row(family, link, 0.0, eta, 1.0, rho, True, &c)
        t = exp(c.l) * c.s * c.s * expit(z - c.l)
        we = max(c.we - t, 1e-3 * c.we)
    o[3 * n] = (1.0 - p) * we


def two_part_rows(int family, int link, bint hurdle, const double[::1] y, const double[::1] eta, const double[::1] z,
                  double rho, int threads):
    """Derivatives of counts' rows with a zero part.

    Parameters
    ----------
    family, link : int
        Codes of the counts: of the truncated ones for a hurdle.
    z : (n,)
        Log odds of the zero part.

    Returns
    -------
    (18, n): l, s, w, we, k; l_rho, l_rho rho, s_rho, w_rho; l_z, l_zz, s_z, w_z, l_z rho; and of the weights
    v = -l_eta z and x = -l_zz: v_z, x_z, v_rho, x_rho. l is less what `row_constant` has of the counts above zero.
    """
    cdef Py_ssize_t n = y.shape[0], i
    out_ = np.empty((18, n))
    cdef double[:, ::1] out = out_
    if eta.shape[0] != n or z.shape[0] != n:
        raise ValueError("y, eta and z differ in length")
    for i in prange(n, schedule="static", num_threads=threads, nogil=True):
        two_part_row(family, link, hurdle, y[i], eta[i], z[i], rho, &out[0, i], n)
    return out_
