"""One row of a generalised linear model: its log density and derivatives in eta and in the extra parameter.

    l                      log density, less what does not depend on eta (`row_constant`)
    s, w, k                dl/deta, -d2l/deta2, dw/deta: score, observed weight, its slope
    we, ke                 expected weight and its slope (the same where y does not enter w)
    lr, sr, wr, wer, lrr   derivatives in rho, the log of the extra parameter, of l, s, w, we, and d2l/drho2

From derivatives in mu (l1, l2, l3) and of the inverse link (m1, m2, m3):

    s = l1 m1,     w = -(l2 m1^2 + l1 m2),     k = -(l3 m1^3 + 3 l2 m1 m2 + l1 m3)

Binomial rows go through log F and log(1 - F) instead (`links`), pairs used most are written out. ``m`` is the number of
trials of a binomial row, divides the dispersion of gaussian, gamma and inverse gaussian rows, and multiplies the log
density of the others. Binomial y counts successes. Extra parameters: dispersion phi; size of NB2 (variance
mu + mu^2 / size); alpha of NB1 (variance mu (1 + alpha)); precision of beta. Truncated counts are rows of the whole
counts less what `truncation` says; mu and the parameters are those of the counts with their zeros.
A row outside the family's support, or whose mean is, has a log density of -inf or NaN.
"""

from libc.math cimport INFINITY, M_PI, exp, fabs, isfinite, lgamma, log, log1p
from libc.string cimport memset

from fastlmm_core._native.families.links cimport LOG, LOGIT, inverse_link, log_probabilities
from fastlmm_core._native.families.special cimport digamma, tetragamma, trigamma
from fastlmm_core._native.families.truncation cimport log_seen, seen_t

cdef enum:  # in the order of `fastlmm_core.families.FAMILIES`
    BINOMIAL = 0
    POISSON = 1
    NB2 = 2
    NB1 = 3
    GAMMA = 4
    INVERSE_GAUSSIAN = 5
    GAUSSIAN = 6
    BETA = 7
    TRUNCATED_POISSON = 8
    TRUNCATED_NB2 = 9
    TRUNCATED_NB1 = 10

cdef enum:
    SHORT_SUM = 64  # counts up to which differences of log-gamma functions are sums


cdef struct row_t:
    double l, s, w, k, we, ke, lr, sr, wr, wer, lrr


cdef struct mean_t:  # derivatives in mu; e2 is the expected l2, e3 its slope
    double l, l1, l2, l3, e2, e3, lr, l1r, l2r, e2r, lrr


cdef inline void gamma_ratio(double x, double y, double *d) noexcept nogil:
    """d (4,) <- log Gamma(x + y) - log Gamma(x), and its three derivatives in x, for a count y."""
    cdef double f
    cdef int j, n
    d[0] = 0.0
    d[1] = 0.0
    d[2] = 0.0
    d[3] = 0.0
    if y <= SHORT_SUM:
        n = <int>(y + 0.5)
        for j in range(n):
            f = 1.0 / (x + j)
            d[0] += log(x + j)
            d[1] += f
            d[2] -= f * f
            d[3] += 2.0 * f * f * f
        return
    d[0] = lgamma(x + y) - lgamma(x)
    d[1] = digamma(x + y) - digamma(x)
    d[2] = trigamma(x + y) - trigamma(x)
    d[3] = tetragamma(x + y) - tetragamma(x)


cdef inline void size_ratio(double size, double y, double *d) noexcept nogil:
    """d (4,) <- log Gamma(size + y) - log Gamma(size) - y log size and its derivatives in size; zero as size grows."""
    cdef double f, g
    cdef int j, n
    cdef double full[4]
    d[0] = 0.0
    d[1] = 0.0
    d[2] = 0.0
    d[3] = 0.0
    if y <= SHORT_SUM:
        n = <int>(y + 0.5)
        for j in range(1, n):
            f = 1.0 / (size + j)
            g = j / size
            d[0] += log1p(g)
            d[1] -= g * f
            d[2] += g * f * (f + 1.0 / size)
            d[3] -= 2.0 * g * f * (f * f + (f + 1.0 / size) / size)
        return
    if size > 1e3:  # Stirling's series, whose terms cancel by hand
        f = size + y
        g = y / size
        d[0] = (f - 0.5) * log1p(g) - y - y / (12.0 * size * f)
        d[0] -= (1.0 / (f * f * f) - 1.0 / (size * size * size)) / 360.0
        d[1] = log1p(g) - g * (f - 0.5) / f + (1.0 / (size * size) - 1.0 / (f * f)) / 12.0
        d[2] = -y / (size * f) - y * (size * f - (f - 0.5) * (size + f)) / (size * size * f * f)
        d[2] += (1.0 / (f * f * f) - 1.0 / (size * size * size)) / 6.0
        d[3] = -g * g * (3.0 * size + 2.0 * y) / (size * f * f)
        d[3] += (size * size + size * f + f * f) * g / (size * size * f * f * f)
        d[3] += 0.5 / (size * size * size * size) - 0.5 / (f * f * f * f)
        return
    gamma_ratio(size, y, full)
    d[0] = full[0] - y * log(size)
    d[1] = full[1] - y / size
    d[2] = full[2] + y / (size * size)
    d[3] = full[3] - 2.0 * y / (size * size * size)


cdef inline double row_constant(int family, double y, double m, double rho, double *dr, double *drr) noexcept nogil:
    """What `family_row` leaves out of the log density, with its two derivatives in rho."""
    cdef double nu, t, v
    cdef double d[4]
    dr[0] = 0.0
    drr[0] = 0.0
    if family == BINOMIAL:
        return lgamma(m + 1.0) - lgamma(y + 1.0) - lgamma(m - y + 1.0) if m != 1.0 else 0.0
    if family == POISSON or family == TRUNCATED_POISSON:
        return -m * lgamma(y + 1.0)
    if family == NB2 or family == TRUNCATED_NB2:
        t = exp(rho)
        size_ratio(t, y, d)
        dr[0] = m * t * d[1]
        drr[0] = m * t * (d[1] + t * d[2])
        return m * (d[0] - lgamma(y + 1.0))
    if family == NB1 or family == TRUNCATED_NB1:
        return -m * lgamma(y + 1.0)
    if family == BETA:
        t = exp(rho)
        dr[0] = m * t * digamma(t)
        drr[0] = dr[0] + m * t * t * trigamma(t)
        return m * (lgamma(t) - log(y) - log1p(-y))
    nu = m * exp(-rho)
    if family == GAMMA:
        v = log(nu) + 1.0 + log(y) - digamma(nu)
        dr[0] = -nu * v
        drr[0] = nu * v + nu - nu * nu * trigamma(nu)
        return nu * log(nu) + (nu - 1.0) * log(y) - lgamma(nu)
    dr[0] = -0.5
    if family == INVERSE_GAUSSIAN:
        return 0.5 * log(nu / (2.0 * M_PI * y * y * y))
    return 0.5 * log(nu / (2.0 * M_PI))


cdef inline void beta_row(double y, double mu, double m, double rho, bint full, mean_t *o) noexcept nogil:
    """`mean_row` of proportions, of precision e^rho."""
    cdef double t, f, g, a, b
    t = exp(rho)
    a, b = mu * t, (1.0 - mu) * t
    if not (a > 0.0 and b > 0.0):
        o.l = -INFINITY
        return
    f, g = log(y), log1p(-y)
    o.l = m * (-lgamma(a) - lgamma(b) + a * f + b * g)
    o.l1 = m * t * (f - g - digamma(a) + digamma(b))
    o.l2 = -m * t * t * (trigamma(a) + trigamma(b))
    o.e2 = o.l2
    if full:
        o.l3 = -m * t * t * t * (tetragamma(a) - tetragamma(b))
        o.e3 = o.l3
        o.lr = m * (a * (f - digamma(a)) + b * (g - digamma(b)))
        o.l1r = o.l1 + m * t * (b * trigamma(b) - a * trigamma(a))
        o.l2r = 2.0 * o.l2 - m * t * t * (a * tetragamma(a) + b * tetragamma(b))
        o.e2r = o.l2r
        o.lrr = o.lr - m * (a * a * trigamma(a) + b * b * trigamma(b))


cdef inline void dispersed_row(int family, double y, double mu, double m, double rho, mean_t *o) noexcept nogil:
    """`mean_row` of the families whose variance is e^rho times a function of the mean."""
    cdef double f, g, nu
    nu = m * exp(-rho)
    if family == GAMMA:
        f = y / mu
        g = nu / mu
        o.l = -nu * (log(mu) + f)
        o.l1 = g * (f - 1.0)
        o.l2 = g * (1.0 - 2.0 * f) / mu
        o.l3 = g * (6.0 * f - 2.0) / (mu * mu)
        o.e2 = -g / mu
        o.e3 = 2.0 * g / (mu * mu)
    elif family == INVERSE_GAUSSIAN:
        g = nu / (mu * mu * mu)
        f = y / mu
        o.l = -0.5 * nu * (y - mu) * (y - mu) / (mu * mu * y)
        o.l1 = g * (y - mu)
        o.l2 = g * (2.0 - 3.0 * f)
        o.l3 = g * (12.0 * f - 6.0) / mu
        o.e2 = -g
        o.e3 = 3.0 * g / mu
    else:
        o.l = -0.5 * nu * (y - mu) * (y - mu)
        o.l1 = nu * (y - mu)
        o.l2 = -nu
        o.l3 = 0.0
        o.e2 = -nu
        o.e3 = 0.0
    o.lr, o.l1r, o.l2r, o.e2r, o.lrr = -o.l, -o.l1, -o.l2, -o.e2, o.l


cdef inline void mean_row(int family, double y, double mu, double m, double rho, bint full, mean_t *o) noexcept nogil:
    """Derivatives in mu of the families whose rows go through the chain rule."""
    cdef double t, f, g, r, q
    cdef double d[4]
    memset(o, 0, sizeof(mean_t))
    if family == BETA:
        beta_row(y, mu, m, rho, full, o)
        return
    if family != GAUSSIAN and not mu > 0.0:
        if not (family == POISSON and mu == 0.0 and y == 0.0):
            o.l = -INFINITY
            return
    if family == POISSON:
        if y == 0.0:
            o.l = -m * mu
            o.l1 = -m
            o.l2 = 0.0
            o.l3 = 0.0
        else:
            f = y / mu
            o.l = m * (y * log(mu) - mu)
            o.l1 = m * (f - 1.0)
            o.l2 = -m * f / mu
            o.l3 = -2.0 * o.l2 / mu
        o.e2 = -m / mu
        o.e3 = m / (mu * mu)
    elif family == NB2:
        t = exp(rho)
        f = 1.0 / (t + mu)
        o.l = m * (y * log(mu) - (y + t) * log1p(mu / t))
        o.l1 = m * t * (y - mu) * f / mu
        g = (y + t) * f
        o.l2 = m * (g * f - y / (mu * mu))
        o.e2 = -m * t * f / mu
        if full:
            o.l3 = 2.0 * m * (y / (mu * mu * mu) - g * f * f)
            o.e3 = m * t * (t + 2.0 * mu) * f * f / (mu * mu)
            o.lr = m * (mu * g - t * log1p(mu / t))
            o.l1r = m * t * (y - mu) * f * f
            o.l2r = m * t * (mu - t - 2.0 * y) * f * f * f
            o.e2r = -m * t * f * f
            o.lrr = o.lr + m * (2.0 * t * mu * f - (y + t) * mu * (2.0 * t + mu) * f * f)
    elif family == NB1:
        t = exp(rho)
        r = mu / t
        size_ratio(r, y, d)  # what is left of the Poisson row: none of it is lost as alpha goes to zero
        f = log1p(t)
        q = t / (1.0 + t)
        g = y / mu
        o.l = m * (d[0] + y * log(mu) - (r + y) * f)
        o.l1 = m * ((d[1] - f) / t + g)
        o.l2 = m * (d[2] / (t * t) - g / mu)
        o.e2 = -m / (mu * (1.0 + t))  # one over the variance: the expectation has no closed form
        if full:
            o.l3 = m * (d[3] / (t * t * t) + 2.0 * g / (mu * mu))
            o.e3 = -o.e2 / mu
            o.lr = m * (r * (f - q - d[1]) - y * q)
            o.l1r = m * (f - q - d[1] - r * d[2]) / t
            o.l2r = -m * (2.0 * d[2] + r * d[3]) / (t * t)
            o.e2r = -o.e2 * q
            o.lrr = m * (r * (d[1] + r * d[2] + q - f + q * q) - y * q * (1.0 - q))
    else:
        dispersed_row(family, y, mu, m, rho, o)


cdef inline void truncate(int family, double y, double eta, double m, double rho, row_t *o) noexcept nogil:
    """The row of a count with zeros becomes that of one without."""
    cdef double t, mu, mean, c, ce
    cdef seen_t z
    log_seen(family == TRUNCATED_NB2, family == TRUNCATED_NB1, eta, rho, &z)
    o.l -= m * z.t
    o.s -= m * z.e
    o.w += m * z.ee
    o.k += m * z.eee
    o.lr -= m * z.r
    o.sr -= m * z.er
    o.wr += m * z.eer
    o.lrr -= m * z.rr
    if family == TRUNCATED_POISSON:
        o.we, o.ke = o.w, o.k
    elif family == TRUNCATED_NB2:  # w is linear in y, whose mean is mu / P(y > 0)
        mu, t = exp(eta), exp(rho)
        mean = exp(eta - z.t)
        c = t * mu / ((t + mu) * (t + mu))
        ce = c * (t - mu) / (t + mu)
        o.we = m * (c * (t + mean) + z.ee)
        o.ke = m * (ce * (t + mean) + c * mean * (1.0 - z.e) + z.eee)
        o.wer = m * (-ce * (t + mean) + c * (t - mean * z.r) + z.eer)
    else:
        o.we *= exp(z.t)
        o.ke = o.ke * exp(z.t) + o.we * z.e
        o.wer = o.wer * exp(z.t) + o.we * z.r


cdef inline void family_row(int family, int link, double y, double eta, double m, double rho, bint full,
                            row_t *o) noexcept nogil:
    """Fill ``o``; k, ke and the derivatives in rho only where ``full``."""
    if family < TRUNCATED_POISSON:
        whole_row(family, link, y, eta, m, rho, full, o)
    else:
        whole_row(family - TRUNCATED_POISSON + POISSON, link, y, eta, m, rho, True, o)
        truncate(family, y, eta, m, rho, o)


cdef inline void whole_row(int family, int link, double y, double eta, double m, double rho, bint full,
                           row_t *o) noexcept nogil:
    """`family_row` of a family that is not truncated."""
    cdef double t, f, p, mu
    cdef double g[4]
    cdef double h[4]
    cdef mean_t d
    o.lr = 0.0
    o.sr = 0.0
    o.wr = 0.0
    o.wer = 0.0
    o.lrr = 0.0
    if family == BINOMIAL:
        if link == LOGIT:
            t = exp(-fabs(eta))
            f = 1.0 / (1.0 + t)
            p = f if eta >= 0.0 else t * f
            o.l = y * eta - m * ((eta if eta > 0.0 else 0.0) + log1p(t))
            o.s = y - m * p
            o.w = m * t * f * f
            o.we = o.w
            o.k = o.w * ((t - 1.0) * f if eta >= 0.0 else (1.0 - t) * f)
            o.ke = o.k
            return
        log_probabilities(link, eta, g, h)
        o.l = (y * g[0] if y > 0.0 else 0.0) + ((m - y) * h[0] if y < m else 0.0)
        o.s = y * g[1] + (m - y) * h[1]
        o.w = -(y * g[2] + (m - y) * h[2])
        o.k = -(y * g[3] + (m - y) * h[3])
        o.we = -m * g[1] * h[1]
        o.ke = -m * (g[2] * h[1] + g[1] * h[2])
        return
    if link == LOG and family == POISSON:
        mu = exp(eta)
        o.l = m * (y * eta - mu)
        o.s = m * (y - mu)
        o.w = m * mu
        o.k = o.w
        o.we = o.w
        o.ke = o.w
        return
    if link == LOG and family == NB2:
        mu, t = exp(eta), exp(rho)
        f = 1.0 / (t + mu)
        o.l = m * (y * eta - (y + t) * log1p(mu / t))
        o.s = m * t * (y - mu) * f
        o.w = m * t * mu * (t + y) * f * f
        o.we = m * t * mu * f
        if full:
            o.k = o.w * (t - mu) * f
            o.ke = o.we * t * f
            o.lr = m * ((y + t) * mu * f - t * log1p(mu / t))
            o.sr = o.s * mu * f
            o.wr = m * t * mu * (2.0 * t * mu - t * y + y * mu) * f * f * f
            o.wer = o.we * mu * f
            o.lrr = o.lr + m * (2.0 * t * mu * f - (y + t) * mu * (2.0 * t + mu) * f * f)
        return
    inverse_link(link, eta, g)
    mean_row(family, y, g[0], m, rho, full, &d)
    o.l = d.l
    if not isfinite(d.l):
        return
    if family == POISSON and g[0] == 0.0:  # the square-root link at zero, no count: l = -m eta^2
        o.s, o.w, o.k, o.we, o.ke = 0.0, 2.0 * m, 0.0, 4.0 * m, 0.0
        return
    o.s = d.l1 * g[1]
    o.w = -(d.l2 * g[1] * g[1] + d.l1 * g[2])
    o.we = -d.e2 * g[1] * g[1]
    if full:
        o.k = -(d.l3 * g[1] * g[1] * g[1] + 3.0 * d.l2 * g[1] * g[2] + d.l1 * g[3])
        o.ke = -(d.e3 * g[1] * g[1] * g[1] + 2.0 * d.e2 * g[1] * g[2])
        o.lr = d.lr
        o.sr = d.l1r * g[1]
        o.wr = -(d.l2r * g[1] * g[1] + d.l1r * g[2])
        o.wer = -d.e2r * g[1] * g[1]
        o.lrr = d.lrr
