"""Gradient and dense factor at many points of many responses, for derivatives of what follows a fit by differences.

In: the conditioned cross-products of k responses as in `Evaluator.set_response`, and m points theta each. Out: the
gradient of the criterion and the lower factor of the dense columns, whose first p rows are L of X'V^-1X = L L' and
whose last diagonal element is the root of r^2. Workspace: the evaluator's. Cost: an evaluation with its derivatives a
point.
"""

import numpy as np

from libc.stdint cimport int32_t
from fastlmm_core._native.criterion.evaluator cimport Evaluator

__all__ = ["probe_many"]


def probe_many(Evaluator evaluator not None, const double[:, ::1] lead not None, const double[:, ::1] tail not None,
               const double[:, ::1] xty not None, const double[::1] constants not None,
               const double[:, :, ::1] points not None, double[:, :, ::1] gradient not None,
               double[:, :, :, ::1] ld not None, int32_t[::1] outcome not None):
    """Evaluate k responses at m points each, without the GIL.

    Parameters
    ----------
    evaluator : Evaluator
    lead, tail, xty : (q * l, k), (m_tail, k), (p, k)
    constants : (k,)
    points : (k, m, n_theta)
    gradient, ld : (k, m, n_theta), (k, m, p + 1, p + 1)
        Filled in; the upper triangles of `ld` are left alone.
    outcome : (k,)
        Filled in: 0, or 1 where an evaluation failed and the response's figures mean nothing.
    """
    cdef Py_ssize_t k = constants.shape[0], m = points.shape[1], p, nt, i, s, j, c
    cdef double value = 0.0
    cdef double[::1] hessian
    evaluator.enter()
    try:
        p, nt = evaluator.p, evaluator.n_theta
        if (lead.shape[0] != evaluator.lead.q * evaluator.lead.l or tail.shape[0] != evaluator.lead.m
                or xty.shape[0] != p or not k == lead.shape[1] == tail.shape[1] == xty.shape[1]):
            raise ValueError("the responses' cross-products do not belong to this model")
        if (not k == points.shape[0] == gradient.shape[0] == ld.shape[0] == outcome.shape[0]
                or not m == gradient.shape[1] == ld.shape[1] or not nt == points.shape[2] == gradient.shape[2]
                or not p + 1 == ld.shape[2] == ld.shape[3]):
            raise ValueError("the points or the arrays to fill in do not belong to this model")
        hessian = np.empty(max(1, nt * nt))
        with nogil:
            for i in range(k):
                evaluator.c_set_response(&lead[0, i] if lead.shape[0] else NULL, k,
                                         &tail[0, i] if tail.shape[0] else NULL, k,
                                         &xty[0, i] if p else NULL, k, constants[i])
                outcome[i] = 0
                for s in range(m):
                    if evaluator.c_value(&points[i, s, 0], &value) != 0:
                        outcome[i] = 1
                        break
                    for j in range(p + 1):
                        for c in range(j + 1):
                            ld[i, s, j, c] = evaluator.ld[j, c]
                    if evaluator.c_derivatives(&gradient[i, s, 0], &hessian[0]) != 0:
                        outcome[i] = 1
                        break
    finally:
        evaluator.leave()
