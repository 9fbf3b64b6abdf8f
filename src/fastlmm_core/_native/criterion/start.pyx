"""Ridge estimates of each level's effects, summed over the levels of one grouping factor, for `core.start`.

With A_j the level's block of Z'WZ, s_j its cross-products with the response, R_j = (A_j + ridge I)^-1, H_j = R_j A_j
and b_j = R_j s_j. Cost: O(l^3) a level; no array of levels is made.
"""

import numpy as np

from fastlmm_core._native.small cimport chol, solve_lower, solve_lower_t

__all__ = ["ridge_sums"]


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
    cdef Py_ssize_t q = blocks.shape[0], l = blocks.shape[1], j, r, c, x
    if blocks.shape[2] != l or s.shape[0] != q * l:
        raise ValueError(f"blocks of {l} x {blocks.shape[2]} and {s.shape[0]} cross-products do not match")
    if not ridge > 0.0:
        raise ValueError(f"ridge must be positive, not {ridge}")
    bb_, noise_, kept_ = np.zeros((l, l)), np.zeros((l, l)), np.zeros(l)
    cdef double[:, ::1] bb = bb_, noise = noise_
    cdef double[::1] kept = kept_, work = np.empty(3 * l * l + l)
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
                    bb[r, c] += b[r] * b[c]
                    for x in range(l):
                        noise[r, c] += inverse[r * l + x] * shrink[c * l + x]
    return bb_, noise_, kept_, fitted, freedom
