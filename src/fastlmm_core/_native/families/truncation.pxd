"""Counts without their zeros: what the condition y > 0 adds to a count's row.

    log f(y | y > 0) = log f(y) - T,    T = log(1 - f(0)) = a(v),   a(v) = log(1 - exp(-e^v)),   e^v = -log f(0)

`a` is the complementary log-log link's log F. With f(z) = log log(1 + e^z):

    Poisson   v = eta
    NB2       v = rho + f(eta - rho), rho the log of the size
    NB1       v = eta - rho + f(rho), rho the log of alpha

so that neither 1 - f(0) nor the ratio of two small numbers is ever formed. The expected weight of NB1 has no closed
form; in its place stands that of the rows with zeros times 1 - f(0).
"""

from libc.math cimport exp, log, log1p

from fastlmm_core._native.families.links cimport CLOGLOG, log_probabilities


cdef struct seen_t:        # derivatives of T in eta and rho
    double t, e, ee, eee, r, er, eer, rr


cdef inline void log_softplus(double z, double *f) noexcept nogil:
    """f (4,) <- log log(1 + e^z) and its three derivatives."""
    cdef double x = exp(z), p, soft, g
    if x < 1e-2:
        p = x / (1.0 + x)
        # (log(1 + x) - x) / x^2 by its series: what is left of g after the leading terms cancel
        g = -0.5 + x * (1.0 / 3 - x * (0.25 - x * (0.2 - x * (1.0 / 6 - x * (1.0 / 7 - x * (0.125 - x / 9))))))
        soft = x + x * x * g
        f[0] = z + log1p(x * g)
        g = x * x * g / ((1.0 + x) * soft)
    else:
        p = x / (1.0 + x) if z < 40.0 else 1.0
        soft = log1p(x) if z < 40.0 else z
        f[0] = log(soft)
        g = 1.0 - p - p / soft
    f[1] = p / soft
    f[2] = f[1] * g
    f[3] = f[2] * g - f[1] * (p * (1.0 - p) + f[2])


cdef inline void log_seen(bint nb2, bint nb1, double eta, double rho, seen_t *o) noexcept nogil:
    """T = log P(y > 0) with derivatives, see the module's note."""
    cdef double a[4]
    cdef double unused[4]
    cdef double f[4]
    cdef double g
    if nb2:
        log_softplus(eta - rho, f)
        log_probabilities(CLOGLOG, rho + f[0], a, unused)
        g = 1.0 - f[1]
        o.e = a[1] * f[1]
        o.ee = a[2] * f[1] * f[1] + a[1] * f[2]
        o.eee = a[3] * f[1] * f[1] * f[1] + 3.0 * a[2] * f[1] * f[2] + a[1] * f[3]
        o.r = a[1] * g
        o.er = a[2] * f[1] * g - a[1] * f[2]
        o.eer = a[3] * f[1] * f[1] * g + a[2] * f[2] * (g - 2.0 * f[1]) - a[1] * f[3]
        o.rr = a[2] * g * g + a[1] * f[2]
    elif nb1:
        log_softplus(rho, f)
        log_probabilities(CLOGLOG, eta - rho + f[0], a, unused)
        g = f[1] - 1.0
        o.e = a[1]
        o.ee = a[2]
        o.eee = a[3]
        o.r = a[1] * g
        o.er = a[2] * g
        o.eer = a[3] * g
        o.rr = a[2] * g * g + a[1] * f[2]
    else:
        log_probabilities(CLOGLOG, eta, a, unused)
        o.e = a[1]
        o.ee = a[2]
        o.eee = a[3]
        o.r, o.er, o.eer, o.rr = 0.0, 0.0, 0.0, 0.0
    o.t = a[0]
