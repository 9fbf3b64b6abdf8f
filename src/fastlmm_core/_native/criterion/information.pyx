"""What the degrees of freedom of fixed effects need of a fit, in conditioned coordinates, and the exact Hessian.

With F = Z'V^-1X L_X^-T, X'V^-1X = L_X L_X', t = Z'Py and E_a = d Sigma / d theta_a = e_r L_c' + L_c e_r', theta_a =
L[r, c] of its factor,

    slopes_a = sum_i F_i' E_a F_i,    d Cov(beta) / d theta_a = sigma^2 H slopes_a H'
    dr^2/dtheta_a = -sum_i t_i'E_a t_i

summed over the levels i of a grouping factor. Where one factor is all there is, Z'V^-1Z has a block a level,
B_i = (I - A_i K_i) A_i, and so has the Hessian of the profiled criterion all that it needs:

    H = AI + (nu / r^2) f_a'P f_b - tr(P V_a P V_b),
    tr(P V_a P V_b) = sum_i (tr(E_a B_i E_b B_i) - 2 tr(E_a B_i E_b F_i F_i')) + <slopes_a, slopes_b>

with AI the evaluator's model Hessian, curvature of Sigma = L L' included (`evaluator`); by maximum likelihood only the
first trace is there. Cost: of the slopes (l rank)^2 a level, of the Hessian l^4 a level beside one of the derivatives.
"""

import numpy as np

from libc.math cimport INFINITY, fabs, isfinite, sqrt
from libc.stdint cimport int64_t
from libc.string cimport memset
from scipy.linalg.cython_blas cimport dsyrk
from scipy.linalg.cython_lapack cimport dsyev

from fastlmm_core._native.criterion.evaluator cimport Evaluator
from fastlmm_core._native.leading.level cimport times_ka
from fastlmm_core._native.small cimport FEW

__all__ = ["assembled", "contrast_df", "group_slopes", "level_information", "pseudo_inverse"]


def level_information(Evaluator evaluator not None, const double[::1] theta not None):
    """Hessian, slopes and what is to be whitened with, where one grouping factor is all there is.

    Parameters
    ----------
    evaluator : Evaluator
        Without a tail, its scale not fixed.
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
    cdef Py_ssize_t k = e.n_theta, l = e.lead.l, p = e.p, q = e.lead.q, i, r, c, x, y
    cdef int status
    if e.tail.m or e.fixed_scale or not q:
        raise ValueError("one grouping factor, and a scale that is estimated, are needed")
    hessian_, of_r2_, factor_ = np.empty((k, k)), np.empty(k), np.zeros((p, p))
    rows_, slopes_ = np.empty((q, l * p)), np.zeros((k, p, p))
    cdef double[:, ::1] hessian = hessian_, factor = factor_, rows = rows_
    cdef double[::1] of_r2 = of_r2_, work = np.zeros(2 * l ** 4 + 2 * l * l + (l * p) ** 2 + 1)
    cdef double[:, :, ::1] slopes = slopes_
    cdef double *both = &work[0]            # sum of B x B
    cdef double *mixed = both + l ** 4      # sum of B x F F'
    cdef double *block = mixed + l ** 4
    cdef double *ka = block + l * l
    cdef double *gram = ka + l * l          # sum of F_i F_i', each F_i as a vector
    cdef double *f
    cdef const double *a
    cdef const double *z
    cdef double s, scale
    e.enter()
    try:
        e.check_length(theta)
        with nogil:
            status = e.factor_at(&theta[0])
            if status == 0:
                status = e.c_derivatives(&of_r2[0], &hessian[0, 0])
            if status == 0:
                for i in range(q):
                    a, z = e.lead.a + i * l * l, e.lead.zd + i * l * e.lead.d
                    times_ka(&e.lead_m[0] + i * l * l, a, ka, l)
                    for r in range(l):
                        for c in range(l):
                            s = a[r * l + c]
                            for x in range(l):
                                s -= a[r * l + x] * ka[x * l + c]
                            block[r * l + c] = s
                    if p:
                        f = &rows[i, 0]
                        for r in range(l):
                            for x in range(p):
                                s = z[r * e.lead.d + x]
                                for c in range(l):
                                    s -= ka[c * l + r] * z[c * e.lead.d + x]
                                for y in range(x):
                                    s -= e.ld[x, y] * f[r * p + y]
                                f[r * p + x] = s / e.ld[x, x]
                        add_products(block, f, l, p if e.reml else 0, both, mixed)
                    else:
                        add_products(block, NULL, l, 0, both, mixed)
                if p:
                    gram_of(&rows[0, 0], q, l * p, gram)
                chain(&e.lead_row[0], &e.lead_col[0], k, &e.lam[0], l, p, gram, &e.t_lead[0], q,
                      &slopes[0, 0, 0] if p else NULL, &of_r2[0])
                scale = e.nu / e.r2
                add_traces(&e.lead_row[0], &e.lead_col[0], k, &e.lam[0], l, both, mixed, block, &hessian[0, 0])
                for r in range(k):
                    for c in range(k):
                        hessian[r, c] += scale * e.h1[r, c]
                        if e.reml:
                            for x in range(p):
                                for y in range(p):
                                    hessian[r, c] -= slopes[r, x, y] * slopes[c, x, y]
                for x in range(p):
                    for y in range(x + 1):
                        factor[x, y] = e.ld[x, y]
        e.check(status, theta)
        return hessian_, slopes_, of_r2_, factor_, e.r2
    finally:
        e.leave()


def group_slopes(const double[:, :] products not None, const double[:, ::1] t not None,
                 const double[:, ::1] factor not None, const double[:, ::1] lam not None,
                 const int64_t[::1] row not None, const int64_t[::1] col not None):
    """Slopes (k, rank, rank) and dr^2/dtheta (k,) of one grouping factor's parameters.

    Parameters
    ----------
    products : (q * l, rank)
        Z'V^-1X.
    t : (q, l)
        Z'Py.
    factor : (rank, rank)
        L_X.
    lam : (l, l)
        Relative covariance factor.
    row, col : (k,)
        Element of it that each parameter is.
    """
    cdef Py_ssize_t q = t.shape[0], l = t.shape[1], p = factor.shape[0], k = row.shape[0], i, r, x, y, a
    cdef double s
    if (products.shape[0] != q * l or products.shape[1] != p or factor.shape[1] != p or col.shape[0] != k
            or lam.shape[0] != l or lam.shape[1] != l):
        raise ValueError("the products of a group do not match")
    for a in range(k):
        if not (0 <= row[a] < l and 0 <= col[a] < l):
            raise ValueError(f"parameter {a} is no element of the factor: {row[a], col[a]}")
    rows_, slopes_, of_r2_ = np.empty((q, l * p)), np.zeros((k, p, p)), np.zeros(k)
    cdef double[:, ::1] rows = rows_
    cdef double[:, :, ::1] slopes = slopes_
    cdef double[::1] of_r2 = of_r2_, gram = np.zeros((l * p) ** 2 + 1)
    if not (q and k):
        return slopes_, of_r2_
    with nogil:
        for i in range(q if p else 0):
            for r in range(l):
                for x in range(p):
                    s = products[i * l + r, x]
                    for y in range(x):
                        s -= factor[x, y] * rows[i, r * p + y]
                    rows[i, r * p + x] = s / factor[x, x]
        if p:
            gram_of(&rows[0, 0], q, l * p, &gram[0])
        chain(&row[0], &col[0], k, &lam[0, 0], l, p, &gram[0], &t[0, 0], q, &slopes[0, 0, 0] if p else NULL, &of_r2[0])
    return slopes_, of_r2_


def assembled(const double[:, :] profiled not None, const double[:, :, :] slopes not None,
              const double[::1] of_r2 not None, const double[:, :] factor not None, const double[:, :] r not None,
              double nu, double r2, double unit, double dropped):
    """Hessian in (theta, log sigma), its inverse, and what the covariance of beta does along these parameters.

    Profiling sigma out took nu / r^4 times the outer product of dr^2/dtheta off the Hessian; along log sigma the
    covariance's derivative is the covariance twice.

    Parameters
    ----------
    profiled : (k, k)
        Hessian with sigma profiled out.
    slopes : (k, rank, rank)
    of_r2 : (k,)
        dr^2/dtheta.
    factor, r : (rank, rank)
        L_X, and upper triangular r with X = Q r.
    nu, r2 : float
    unit : float
        sigma, over the root of the mean weight.
    dropped : float
        As in `pseudo_inverse`.

    Returns
    -------
    hessian : (k + 1, k + 1)
    cov : (k + 1, k + 1)
        Twice its `pseudo_inverse`.
    n_dropped : int
    half : (rank, rank)
        H = (L_X'r)^-1 unit, Cov(beta) = H H'.
    slopes : (k + 1, rank, rank)
        With two times the identity, log sigma's, at the end.
    """
    cdef Py_ssize_t k = of_r2.shape[0], p = factor.shape[0], a, b, x, y, z
    cdef double s
    if not (k == profiled.shape[0] == profiled.shape[1] == slopes.shape[0]):
        raise ValueError(f"a Hessian of {profiled.shape[0]} x {profiled.shape[1]} for {k} parameters")
    if not p == factor.shape[1] == r.shape[0] == r.shape[1] == slopes.shape[1] == slopes.shape[2]:
        raise ValueError("the slopes and the factors do not match")
    hessian_, half_, every_ = np.empty((k + 1, k + 1)), np.zeros((p, p)), np.zeros((k + 1, p, p))
    cdef double[:, ::1] hessian = hessian_, half = half_
    cdef double[:, :, ::1] every = every_
    for a in range(k):
        for b in range(k):
            hessian[a, b] = profiled[a, b] + nu / (r2 * r2) * (of_r2[a] * of_r2[b])
        hessian[k, a] = hessian[a, k] = -2.0 * nu / r2 * of_r2[a]
        for x in range(p):
            for y in range(p):
                every[a, x, y] = slopes[a, x, y]
    hessian[k, k] = 4.0 * nu
    for x in range(p):
        every[k, x, x] = 2.0
    # columns of r^-1 L_X^-T, one after another: L_X'v = e_y, then r h = v
    for y in range(p):
        for x in range(y, -1, -1):
            s = 1.0 if x == y else 0.0
            for z in range(x + 1, y + 1):
                s -= factor[z, x] * half[z, y]
            half[x, y] = s / factor[x, x]
        for x in range(y, -1, -1):
            s = half[x, y]
            for z in range(x + 1, y + 1):
                s -= r[x, z] * half[z, y]
            half[x, y] = s / r[x, x]
        for x in range(y + 1):
            half[x, y] *= unit
    cov_, left = pseudo_inverse(hessian_, dropped)
    cov_ *= 2.0
    return hessian_, cov_, left, half_, every_


def contrast_df(const double[:, :] rows not None, const double[:, :] half not None,
                const double[:, :, :] slopes not None, const double[:, :] cov not None):
    """Satterthwaite's degrees of freedom (m,) of rows (m, rank) times the coefficients; infinite without a spread.

    With h = row H the variance is v = h'h, its relative derivative along parameter a is g_a = h' slopes_a h / v, and
    the degrees of freedom are 2 / g'cov g, whatever the units. Cost: rank^2 a parameter and row.

    Parameters
    ----------
    rows : (m, rank)
    half : (rank, rank)
        H, Cov(beta) = H H'.
    slopes : (k, rank, rank)
    cov : (k, k)
        Covariance of the parameters.
    """
    cdef Py_ssize_t m = rows.shape[0], p = half.shape[0], k = slopes.shape[0], i, a, b, x, y
    cdef double v, g, s, spread
    if (not p == rows.shape[1] == half.shape[1] == slopes.shape[1] == slopes.shape[2]
            or not k == cov.shape[0] == cov.shape[1]):
        raise ValueError("the rows and the information do not match")
    out_ = np.empty(m)
    cdef double[::1] out = out_, work = np.empty(p + k + 1)
    cdef double *h = &work[0]
    cdef double *slope = h + p
    with nogil:
        for i in range(m):
            v = 0.0
            for y in range(p):
                h[y] = 0.0
            for x in range(p):
                if rows[i, x] != 0.0:  # most rows are a coefficient, or a few
                    for y in range(p):
                        h[y] += rows[i, x] * half[x, y]
            for y in range(p):
                v += h[y] * h[y]
            for a in range(k):
                g = 0.0
                for x in range(p):
                    s = 0.0
                    for y in range(p):
                        s += slopes[a, x, y] * h[y]
                    g += h[x] * s
                slope[a] = g / v if v > 0.0 else 0.0
            spread = 0.0
            for a in range(k):
                for b in range(k):
                    spread += slope[a] * cov[a, b] * slope[b]
            out[i] = INFINITY if spread <= 0.0 else 2.0 / spread
    return out_


def pseudo_inverse(const double[:, :] matrix not None, double dropped):
    """Inverse of a symmetric matrix over its eigenvalues above ``dropped``, its diagonal scaled to one, and their lack.

    Returns
    -------
    inverse : (n, n)
    n_dropped : int
        Eigenvalues left out.
    """
    cdef Py_ssize_t n = matrix.shape[0], i, j, x
    cdef int width = <int>n, lwork = <int>(34 * n + 64), info = 0, left = 0
    cdef char jobz = b"V", uplo = b"U"
    if matrix.shape[1] != n:
        raise ValueError(f"a matrix of {n} x {matrix.shape[1]}")
    out_ = np.zeros((n, n))
    if n == 0:
        return out_, 0
    cdef double[:, ::1] out = out_
    cdef double[::1] work = np.empty(n * n + 36 * n + 64)
    cdef double *vectors = &work[0]  # an eigenvector a row
    cdef double *scale = vectors + n * n
    cdef double *values = scale + n
    cdef double s
    cdef bint finite = True
    with nogil:
        for i in range(n):
            scale[i] = 1.0 / sqrt(max(fabs(matrix[i, i]), dropped))
        for i in range(n):
            for j in range(i + 1):
                vectors[i * n + j] = matrix[i, j] * (scale[i] * scale[j])
                finite = finite and isfinite(vectors[i * n + j])
        if finite:
            dsyev(&jobz, &uplo, &width, vectors, &width, values, values + n, &lwork, &info)
        if finite and info == 0:
            for x in range(n):
                if not values[x] > dropped:
                    left += 1
                    continue
                for i in range(n):
                    s = vectors[x * n + i] * scale[i] / values[x]
                    for j in range(n):
                        out[i, j] += s * vectors[x * n + j] * scale[j]
    if info != 0 or not finite:
        raise np.linalg.LinAlgError("the matrix has no eigenvalues: it is not finite")
    return out_, left


cdef void add_products(const double *block, const double *f, Py_ssize_t l, Py_ssize_t p, double *both,
                       double *mixed) noexcept nogil:
    """both[s, t, u, r] += B[s, t] B[u, r] and mixed[s, t, u, r] += B[s, t] (F F')[u, r]."""
    cdef Py_ssize_t size = l * l, a, u, r, x
    cdef double square
    for u in range(l):
        for r in range(l):
            square = 0.0
            for x in range(p):
                square += f[u * p + x] * f[r * p + x]
            for a in range(size):
                both[a * size + u * l + r] += block[a] * block[u * l + r]
                mixed[a * size + u * l + r] += block[a] * square


cdef void gram_of(double *rows, Py_ssize_t n, Py_ssize_t width, double *gram) noexcept nogil:
    """Sum of the outer products of rows (n, width), both triangles; ``gram`` is zero before."""
    cdef Py_ssize_t i, a, b
    cdef int w = <int>width, count = <int>n
    cdef char uplo = b"U", no = b"N"
    cdef double one = 1.0, zero = 0.0
    if width <= FEW:
        for i in range(n):
            for a in range(width):
                for b in range(a + 1):
                    gram[a * width + b] += rows[i * width + a] * rows[i * width + b]
    else:  # row-major lower triangles are BLAS's upper ones
        dsyrk(&uplo, &no, &w, &count, &one, rows, &w, &zero, gram, &w)
    for a in range(width):
        for b in range(a):
            gram[b * width + a] = gram[a * width + b]


cdef void chain(const int64_t *row, const int64_t *col, Py_ssize_t k, const double *lam, Py_ssize_t l, Py_ssize_t p,
                const double *gram, const double *t, Py_ssize_t q, double *slopes, double *of_r2) noexcept nogil:
    """Slopes and dr^2/dtheta of each parameter from the Gram matrix (l p, l p) and t (q, l)."""
    cdef Py_ssize_t a, i, s, x, y, w = l * p
    cdef double part, along
    for a in range(k):
        of_r2[a] = 0.0
        for i in range(q):
            along = 0.0
            for s in range(l):
                along += t[i * l + s] * lam[s * l + col[a]]
            of_r2[a] -= 2.0 * t[i * l + row[a]] * along
        for x in range(p):
            for y in range(p):
                part = 0.0
                for s in range(l):
                    part += lam[s * l + col[a]] * gram[(row[a] * p + x) * w + s * p + y]
                slopes[(a * p + x) * p + y] += part
                slopes[(a * p + y) * p + x] += part


cdef void add_traces(const int64_t *row, const int64_t *col, Py_ssize_t k, const double *lam, Py_ssize_t l,
                     const double *both, const double *mixed, double *of_a, double *hessian) noexcept nogil:
    """hessian[a, b] -= tr(E_a B E_b B) - 2 tr(E_a B E_b F F'), summed over levels; ``of_a`` holds l * l."""
    cdef Py_ssize_t a, b, s, t, u, r, at, size = l * l
    cdef double total, weight
    for a in range(k):
        memset(of_a, 0, size * sizeof(double))
        for s in range(l):
            for r in range(l):
                weight = element(row, col, a, lam, l, r, s)
                if weight != 0.0:
                    for t in range(l):
                        for u in range(l):
                            at = (s * l + t) * size + u * l + r
                            of_a[t * l + u] += weight * (both[at] - 2.0 * mixed[at])
        for b in range(k):
            total = 0.0
            for t in range(l):
                total += lam[t * l + col[b]] * (of_a[row[b] * l + t] + of_a[t * l + row[b]])
            hessian[a * k + b] -= total


cdef inline double element(const int64_t *row, const int64_t *col, Py_ssize_t a, const double *lam, Py_ssize_t l,
                           Py_ssize_t i, Py_ssize_t j) noexcept nogil:
    """E_a[i, j]."""
    cdef double out = 0.0
    if i == row[a]:
        out += lam[j * l + col[a]]
    if j == row[a]:
        out += lam[i * l + col[a]]
    return out
