"""Moment estimates of the covariance matrices, one grouping factor at a time, and roots of them to start from.

With A_j a level's block of Z'WZ, s_j its cross-products with the response, R_j = (A_j + ridge I)^-1, H_j = R_j A_j
and b_j = R_j s_j, E[sum_j b_j b_j'] = sum_j H_j Sigma H_j' + sigma^2 sum_j R_j H_j' if no other factor contributes, so

    Sigma = (sum_j b_j b_j' - sigma^2 sum_j R_j H_j') / (q root root'),    root^2 = mean of the squared diagonals of H_j

Cost: O(l^3) a level; no array of levels is made.
"""

import numpy as np

from libc.math cimport NAN, isfinite, isnan, sqrt
from libc.stdint cimport int64_t
from libc.string cimport memset
from scipy.linalg.cython_lapack cimport dsyev

from fastlmm_core._native.small cimport chol, solve_lower, solve_lower_t

__all__ = ["clipped_roots", "group_moment", "moment_roots", "ridge_sums"]

cdef double FAINT = 1e-8  # least mean square of H's diagonal, of levels that say nothing of a column


def ridge_sums(const double[:, :, ::1] blocks, const double[:] s, double ridge):
    """Sums over levels.

    Parameters
    ----------
    blocks : (q, l, l) float64
    s : (q * l,) float64
    ridge : float
        Above zero.

    Returns
    -------
    bb : (l, l)
        Sum of b_j b_j'.
    noise : (l, l)
        Sum of R_j H_j'.
    kept : (l,)
        Sum of the squared diagonals of H_j.
    fitted : float
        Sum of 2 b_j's_j - b_j'A_j b_j.
    freedom : float
        Sum of 2 tr H_j - tr H_j H_j.
    """
    check(blocks, s, ridge)
    cdef Py_ssize_t l = blocks.shape[1]
    bb, noise, kept = np.zeros((l, l)), np.zeros((l, l)), np.zeros(l)
    cdef double[:, ::1] of_b = bb, of_noise = noise
    cdef double[::1] diagonals = kept
    cdef double fitted = 0.0, freedom = 0.0
    c_ridge_sums(blocks, s, ridge, &of_b[0, 0], &of_noise[0, 0], &diagonals[0], &fitted, &freedom)
    return bb, noise, kept, fitted, freedom


def group_moment(const double[:, :, ::1] blocks not None, const double[:] s not None, double ridge, Py_ssize_t n,
                 double total, double noise=float("nan")):
    """Sigma (l, l) of one grouping factor, in the response's units; not necessarily positive definite.

    Parameters
    ----------
    blocks, s, ridge
        As in `ridge_sums`.
    n : int
        Observations.
    total : float
        Sum of squares of the response.
    noise : float, optional
        sigma^2, where it is known; what the ridge estimates leave of ``total``, over what they leave of n, elsewhere.
    """
    out_ = np.zeros((blocks.shape[1], blocks.shape[1]))
    c_group_moment(blocks, s, ridge, n, total, noise, out_)
    return out_


def moment_roots(tuple blocks not None, tuple sums not None, Py_ssize_t n, double total,
                 const int64_t[:, ::1] index not None, double ridge, double low, double high):
    """Elements (n_theta,) of factors to start from: `group_moment` of every grouping factor, `clipped_roots` of these.

    They are relative to what the factors leave of the response's mean square, a tenth of it at least.

    Parameters
    ----------
    blocks : tuple of (q, l, l)
    sums : tuple of (q * l, k)
        Cross-products, the response's in the last column.
    n, total, index, ridge, low, high
        As there.
    """
    cdef Py_ssize_t g, r
    cdef double explained = 0.0, own
    cdef const double[:, :] s
    cdef double[:, ::1] out
    cdef list estimates = []
    if len(blocks) != len(sums):
        raise ValueError(f"{len(blocks)} blocks and {len(sums)} sums")
    for g in range(len(blocks)):
        s = sums[g]
        if s.shape[1] == 0:
            raise ValueError("sums without a response")
        estimate = np.zeros((blocks[g].shape[1], blocks[g].shape[1]))
        out = estimate
        c_group_moment(blocks[g], s[:, s.shape[1] - 1], ridge, n, total, NAN, out)
        own = 0.0
        for r in range(out.shape[0]):
            own += out[r, r]
        explained += own
        estimates.append(estimate)
    return clipped_roots(estimates, max(total / n - explained, 0.1 * total / n), index, low, high)


def clipped_roots(list estimates not None, double scale, const int64_t[:, ::1] index not None, double low, double high):
    """Elements (n_theta,) of Cholesky factors of covariance matrices, made positive definite.

    Parameters
    ----------
    estimates : list of (l, l) float64
        Symmetric, one a grouping factor; elements that are no parameters count as zero.
    scale : float
        By which they are divided.
    index : (n_theta, 3) int64
        Group, row and column of each parameter.
    low, high : float
        Between which the square roots of the eigenvalues are brought.
    """
    cdef Py_ssize_t n_theta = index.shape[0], n_groups = len(estimates), widest = 1, a, g, r, c, x, l
    cdef int width, lwork, info = 0
    cdef char jobz = b"V", uplo = b"U"
    cdef double[:, ::1] estimate
    cdef double size
    for g in range(n_groups):
        estimate = estimates[g]
        l = estimate.shape[0]
        if estimate.shape[1] != l:
            raise ValueError(f"an estimate of {l} x {estimate.shape[1]}")
        widest = max(widest, l)
    for a in range(n_theta):
        g, r, c = index[a, 0], index[a, 1], index[a, 2]
        if not (0 <= g < n_groups and 0 <= c <= r and r < len(estimates[g])):
            raise ValueError(f"parameter {a} is no element of a factor: {g, r, c}")
    out_ = np.empty(n_theta)
    cdef double[::1] out = out_, work = np.empty(2 * widest * widest + 35 * widest + 64)
    cdef double *matrix = &work[0]           # then its eigenvectors, a row each
    cdef double *root = matrix + widest * widest
    cdef double *eigen = root + widest * widest
    cdef double *space = eigen + widest
    lwork = <int>(34 * widest + 64)
    for g in range(n_groups):
        estimate = estimates[g]
        l = estimate.shape[0]
        memset(matrix, 0, l * l * sizeof(double))
        for a in range(n_theta):
            if index[a, 0] == g:
                r, c = index[a, 1], index[a, 2]
                matrix[r * l + c] = estimate[r, c] / scale
                if not isfinite(matrix[r * l + c]):
                    raise ValueError("an estimate is not finite")
        if l == 1:
            eigen[0], matrix[0] = matrix[0], 1.0
        else:  # row-major lower triangles are LAPACK's upper ones
            width = <int>l
            dsyev(&jobz, &uplo, &width, matrix, &width, eigen, space, &lwork, &info)
            if info != 0:
                raise ValueError("an estimate has no eigenvalues")
        for x in range(l):
            eigen[x] = min(max(eigen[x], low * low), high * high)
        for r in range(l):
            for c in range(r + 1):
                size = 0.0
                for x in range(l):
                    size += matrix[x * l + r] * eigen[x] * matrix[x * l + c]
                root[r * l + c] = size
        chol(root, l)
        for a in range(n_theta):
            if index[a, 0] == g:
                out[a] = root[index[a, 1] * l + index[a, 2]]
    return out_


cdef int check(const double[:, :, ::1] blocks, const double[:] s, double ridge) except -1:
    cdef Py_ssize_t l = blocks.shape[1]
    if blocks.shape[2] != l or s.shape[0] != blocks.shape[0] * l:
        raise ValueError(f"blocks of {l} x {blocks.shape[2]} and {s.shape[0]} cross-products do not match")
    if not ridge > 0.0:
        raise ValueError(f"ridge must be positive, not {ridge}")
    return 0


cdef int c_group_moment(const double[:, :, ::1] blocks, const double[:] s, double ridge, Py_ssize_t n, double total,
                        double noise, double[:, ::1] out) except -1:
    """`group_moment` into ``out``, zero before."""
    check(blocks, s, ridge)
    cdef Py_ssize_t q = blocks.shape[0], l = blocks.shape[1], r, c
    cdef double fitted = 0.0, freedom = 0.0
    cdef double[::1] work = np.zeros(l * l + l)
    cdef double *spread = &work[0]
    cdef double *root = spread + l * l
    c_ridge_sums(blocks, s, ridge, &out[0, 0], spread, root, &fitted, &freedom)
    if isnan(noise):
        noise = max(total - fitted, 0.0) / max(n - freedom, 1.0)
    for r in range(l):
        root[r] = sqrt(max(root[r] / q, FAINT))
    for r in range(l):
        for c in range(l):
            out[r, c] = (out[r, c] - noise * spread[r * l + c]) / (q * (root[r] * root[c]))
    return 0


cdef int c_ridge_sums(const double[:, :, ::1] blocks, const double[:] s, double ridge, double *bb, double *noise,
                      double *kept, double *fit, double *free) except -1:
    """`ridge_sums`, added to what it is given."""
    cdef Py_ssize_t q = blocks.shape[0], l = blocks.shape[1], j, r, c, x
    cdef double[::1] work = np.empty(3 * l * l + l)
    cdef double *root = &work[0]      # Cholesky factor of A + ridge I
    cdef double *inverse = root + l * l
    cdef double *shrink = inverse + l * l
    cdef double *b = shrink + l * l
    cdef const double *a
    cdef double fitted = 0.0, freedom = 0.0, total
    with nogil:
        for j in range(q):
            a = &blocks[j, 0, 0]
            for r in range(l):
                for c in range(l):
                    root[r * l + c] = a[r * l + c]
                    inverse[r * l + c] = 0.0
                root[r * l + r] += ridge
                inverse[r * l + r] = 1.0
            chol(root, l)
            for c in range(l):
                solve_lower(root, inverse + c, l, l)
                solve_lower_t(root, inverse + c, l, l)
            for r in range(l):
                b[r] = 0.0
                for x in range(l):
                    b[r] += inverse[r * l + x] * s[j * l + x]
                for c in range(l):
                    total = 0.0
                    for x in range(l):
                        total += inverse[r * l + x] * a[x * l + c]
                    shrink[r * l + c] = total
            for r in range(l):
                fitted += 2.0 * b[r] * s[j * l + r]
                freedom += 2.0 * shrink[r * l + r]
                kept[r] += shrink[r * l + r] * shrink[r * l + r]
                for c in range(l):
                    fitted -= b[r] * a[r * l + c] * b[c]
                    freedom -= shrink[r * l + c] * shrink[c * l + r]
                    bb[r * l + c] += b[r] * b[c]
                    for x in range(l):
                        noise[r * l + c] += inverse[r * l + x] * shrink[c * l + x]
    fit[0], free[0] = fitted, freedom
    return 0
