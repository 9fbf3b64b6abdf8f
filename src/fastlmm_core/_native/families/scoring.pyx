"""Fisher scoring of a generalised linear model without random effects: coefficients to start a search from.

    gamma <- (X'WX)^-1 X'(W (eta - offset) + s),   W the expected weights

Steps that leave the support or lower the likelihood are halved. In: rows of conditioned columns. Workspace: p^2 + 3 p.
Cost of a step: a pass over the rows and n p^2 / 2. McCullagh and Nelder (1989), Generalized Linear Models, 2.5.
"""

import numpy as np

from libc.math cimport INFINITY, fabs, isfinite
from libc.string cimport memcpy, memset

from fastlmm_core._native.families.row cimport family_row, row_t
from fastlmm_core._native.small cimport chol, solve_lower, solve_lower_t

__all__ = ["score_glm"]


def score_glm(int family, int link, const double[::1] y, const double[::1] m, const double[::1] freq,
              const double[::1] offset, const double[:, ::1] X, double rho, const double[::1] eta, int max_steps,
              double enough):
    """Coefficients (p,) of a model without random effects, and the log density there.

    Parameters
    ----------
    freq : (n,) or (0,)
    eta : (n,)
        Linear predictors to begin at, not necessarily of any coefficients.
    max_steps : int
    enough : float
        Relative change of the coefficients at which to stop.

    Returns
    -------
    gamma : (p,)
    loglik : float
        Less what does not depend on eta; -inf where no coefficients were found.
    """
    cdef Py_ssize_t n = X.shape[0], p = X.shape[1], i, j, k, _step
    cdef double before = -INFINITY, value = 0.0, scale, change, size, total, f = 1.0
    cdef bint counted = freq.shape[0] > 0, first = True
    cdef row_t o
    gamma_ = np.zeros(p)
    cdef double[::1] gamma = gamma_, trial = np.zeros(p), target = np.zeros(p)
    cdef double[::1] at = np.array(eta)
    cdef double[:, ::1] gram = np.zeros((p, p))
    if p == 0:
        return gamma_, 0.0
    with nogil:
        memset(&o, 0, sizeof(row_t))
        for _step in range(max_steps):
            memset(&gram[0, 0], 0, p * p * sizeof(double))
            memset(&target[0], 0, p * sizeof(double))
            for i in range(n):
                family_row(family, link, y[i], at[i], m[i], rho, False, &o)
                if counted:
                    f = freq[i]
                total = f * (o.we * (at[i] - offset[i]) + o.s)
                for j in range(p):
                    target[j] += total * X[i, j]
                    for k in range(j + 1):
                        gram[j, k] += f * o.we * X[i, j] * X[i, k]
            if solve_ridged(&gram[0, 0], &target[0], p) != 0:
                break
            scale = 1.0
            while True:
                for j in range(p):
                    trial[j] = gamma[j] + scale * (target[j] - gamma[j])
                value = 0.0
                for i in range(n):
                    total = offset[i]
                    for j in range(p):
                        total += X[i, j] * trial[j]
                    at[i] = total
                    family_row(family, link, y[i], total, m[i], rho, False, &o)
                    if counted:
                        f = freq[i]
                    value += f * o.l
                if isfinite(value) and (first or value >= before - 1e-9 * fabs(before)):
                    break
                scale *= 0.5
                if scale < 1e-6:
                    break
            if scale < 1e-6:
                break
            change = 0.0
            size = 1.0
            for j in range(p):
                change = max(change, fabs(trial[j] - gamma[j]))
                size = max(size, fabs(trial[j]))
            memcpy(&gamma[0], &trial[0], p * sizeof(double))
            before, first = value, False
            if change <= enough * size:
                break
    return gamma_, before


cdef inline int solve_ridged(double *gram, double *x, Py_ssize_t p) noexcept nogil:
    """x <- gram^-1 x, a ridge of 1e-10 of its largest diagonal element added; nonzero where it is not positive."""
    cdef Py_ssize_t j
    cdef double top = 0.0
    for j in range(p):
        top = max(top, gram[j * p + j])
    for j in range(p):
        gram[j * p + j] += 1e-10 * top
    if chol(gram, p) != 0:
        return 1
    solve_lower(gram, x, p, 1)
    solve_lower_t(gram, x, p, 1)
    return 0
