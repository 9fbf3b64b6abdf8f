"""Links: the mean as a function of the linear predictor, and what binomial rows need of it in the tails.

`inverse_link` gives mu and its first three derivatives in eta. For the links that map to (0, 1) `log_probabilities`
gives A = log F and B = log(1 - F) with three derivatives each, so that no row ever forms 1 - p or divides by p:

    A' = f / F,   A'' = A'(g - A'),   A''' = A''(g - A') + A'(g' - A''),   g = f'/f          (B likewise, f -> -f)
"""

from libc.math cimport M_PI, NAN, atan2, exp, expm1, fabs, log, log1p

from fastlmm_core._native.families.special cimport LOG_SQRT_2PI, log_normal_cdf

cdef enum:  # in the order of `fastlmm_core.families.LINKS`
    LOGIT = 0
    PROBIT = 1
    CLOGLOG = 2
    CAUCHIT = 3
    LOG = 4
    IDENTITY = 5
    INVERSE = 6
    SQRT = 7


cdef inline void inverse_link(int link, double eta, double *m) noexcept nogil:
    """m (4,) <- mu, its three derivatives in eta; NaN where the link has no mean."""
    cdef double t, f, g
    if link == LOG:
        m[0] = exp(eta)
        m[1] = m[0]
        m[2] = m[0]
        m[3] = m[0]
    elif link == LOGIT:
        t = exp(-fabs(eta))
        f = 1.0 / (1.0 + t)
        m[0] = f if eta >= 0.0 else t * f
        m[1] = t * f * f
        g = (1.0 - t) * f  # |1 - 2 mu|
        m[2] = -m[1] * g if eta >= 0.0 else m[1] * g
        m[3] = m[1] * (g * g - 2.0 * m[1])
    elif link == PROBIT:
        f = exp(-0.5 * eta * eta - LOG_SQRT_2PI)
        m[0] = exp(log_normal_cdf(eta))
        m[1] = f
        m[2] = -eta * f
        m[3] = (eta * eta - 1.0) * f
    elif link == CLOGLOG:
        t = exp(eta)
        f = exp(eta - t)
        g = 1.0 - t
        m[0] = -expm1(-t)
        m[1] = f
        m[2] = f * g
        m[3] = f * (g * g - t)
    elif link == CAUCHIT:
        t = 1.0 / (1.0 + eta * eta)
        m[0] = atan2(1.0, -eta) / M_PI
        m[1] = t / M_PI
        m[2] = -2.0 * eta * t * m[1]
        m[3] = (6.0 * eta * eta - 2.0) * t * t * m[1]
    elif link == IDENTITY:
        m[0] = eta
        m[1] = 1.0
        m[2] = 0.0
        m[3] = 0.0
    elif link == INVERSE:
        m[0] = 1.0 / eta
        t = m[0] * m[0]
        m[1] = -t
        m[2] = 2.0 * t * m[0]
        m[3] = -6.0 * t * t
    elif link == SQRT:
        m[0] = eta * eta
        m[1] = 2.0 * eta
        m[2] = 2.0
        m[3] = 0.0
    else:
        m[0] = NAN
        m[1] = NAN
        m[2] = NAN
        m[3] = NAN


cdef inline void from_ratio(double r, double g, double g1, double *a) noexcept nogil:
    """a[1:4] from r = f/F, g = f'/f and g' (see the module's note)."""
    a[1] = r
    a[2] = r * (g - r)
    a[3] = a[2] * (g - r) + r * (g1 - a[2])


cdef inline void no_probability(double *a, double *b) noexcept nogil:
    cdef int j
    for j in range(4):
        a[j] = NAN
        b[j] = NAN


cdef inline void logit_probabilities(double eta, double *a, double *b) noexcept nogil:
    cdef double t = exp(-fabs(eta))
    cdef double f = 1.0 / (1.0 + t), r = log1p(t), g
    a[0] = -r if eta >= 0.0 else eta - r
    b[0] = -eta - r if eta >= 0.0 else -r
    b[1] = -f if eta >= 0.0 else -t * f   # -p
    a[1] = t * f if eta >= 0.0 else f     # 1 - p
    a[2] = -t * f * f
    b[2] = a[2]
    g = (1.0 - t) * f
    a[3] = -a[2] * (g if eta >= 0.0 else -g)
    b[3] = a[3]


cdef inline void cloglog_probabilities(double eta, double *a, double *b) noexcept nogil:
    cdef double t = exp(eta), f, g, r
    cdef int j
    for j in range(4):
        b[j] = -t
        a[j] = 0.0
    if t > 700.0:
        return
    f = expm1(t)
    a[0] = log(-expm1(-t))
    r = t / f
    if t < 1e-2:  # 1 - t - t/(e^t - 1) by its series
        g = -t * (0.5 + t * (1.0 / 12 - t * t * (1.0 / 720 - t * t / 30240)))
    else:
        g = 1.0 - t - r
    a[1] = r
    a[2] = r * g
    a[3] = a[2] * g - r * (t + a[2])


cdef inline void log_probabilities(int link, double eta, double *a, double *b) noexcept nogil:
    """a, b (4,) <- log F and log(1 - F) with three derivatives in eta; NaN where F is not a probability."""
    cdef double t, f, g, g1, r
    if link == LOGIT:
        logit_probabilities(eta, a, b)
    elif link == PROBIT:
        a[0] = log_normal_cdf(eta)
        b[0] = log_normal_cdf(-eta)
        f = -0.5 * eta * eta - LOG_SQRT_2PI
        from_ratio(exp(f - a[0]), -eta, -1.0, a)
        r = exp(f - b[0])
        b[1] = -r
        b[2] = -r * (r - eta)
        b[3] = b[2] * (r - eta) - r * (-1.0 - b[2])
    elif link == CLOGLOG:
        cloglog_probabilities(eta, a, b)
    elif link == CAUCHIT:
        f = 1.0 / (1.0 + eta * eta)
        g = -2.0 * eta * f
        g1 = -2.0 * (1.0 - eta * eta) * f * f
        t = atan2(1.0, -eta)
        a[0] = log(t / M_PI)
        from_ratio(f / t, g, g1, a)
        t = atan2(1.0, eta)
        b[0] = log(t / M_PI)
        from_ratio(-f / t, g, g1, b)
    elif link == LOG or link == IDENTITY:
        if link == LOG:
            f = exp(eta)
            r = -expm1(eta)  # 1 - p
            a[0] = eta
            a[1] = 1.0
            a[2] = 0.0
            a[3] = 0.0
            g = f
        else:
            f = eta
            r = 1.0 - eta
            a[0] = log(f)
            a[1] = 1.0 / f
            a[2] = -a[1] * a[1]
            a[3] = 2.0 * a[1] * a[1] * a[1]
        if not (r > 0.0 and f > 0.0):
            no_probability(a, b)
            return
        b[0] = log(r)
        if link == LOG:
            b[1] = -f / r
            b[2] = b[1] / r
            b[3] = b[2] * (1.0 + f) / r
        else:
            b[1] = -1.0 / r
            b[2] = -b[1] * b[1]
            b[3] = 2.0 * b[1] * b[1] * b[1]
    else:
        no_probability(a, b)
