"""A criterion whose value and derivatives come from Python, for `newton.Newton`: where accuracy matters, not time."""

import numpy as np

from libc.string cimport memcpy

from fastlmm_core._native.criterion.criterion cimport Criterion

__all__ = ["CallbackCriterion"]


cdef class CallbackCriterion(Criterion):
    """A criterion in n parameters.

    Parameters
    ----------
    n : int
    evaluate : callable
        From theta (n,) to value, gradient (n,) and model Hessian (n, n); an ArithmeticError means that there is none.
    accuracy : float
        Differences of values below it mean nothing.

    Attributes
    ----------
    error : Exception or None
        Any other that ``evaluate`` raised last: it counts as no value, and is the caller's to raise.
    """

    cdef object evaluate
    cdef readonly object error
    cdef double[::1] gradient
    cdef double[:, ::1] hessian
    cdef double accuracy

    def __init__(self, Py_ssize_t n, evaluate, double accuracy):
        self.n_free, self.evaluate, self.accuracy = n, evaluate, accuracy
        self.gradient, self.hessian = np.zeros(n), np.zeros((n, n))
        self.ready = n > 0

    def __reduce__(self):
        raise TypeError("a CallbackCriterion is a workspace: pickle or copy the result it serves")

    cdef int c_value(self, const double *x, double *value) noexcept nogil:
        with gil:
            return self.call(x, value)

    cdef int call(self, const double *x, double *value) noexcept:
        cdef double[::1] theta = np.empty(self.n_free)
        cdef const double[::1] gradient
        cdef const double[:, ::1] hessian
        memcpy(&theta[0], x, self.n_free * sizeof(double))
        try:
            value[0], gradient, hessian = self.evaluate(np.asarray(theta))
            self.gradient[:] = gradient
            self.hessian[:, :] = hessian
        except Exception as error:
            if not isinstance(error, ArithmeticError):
                self.error = error
            return 1
        return 0

    cdef int c_derivatives(self, double *gradient, double *hessian) noexcept nogil:
        memcpy(gradient, &self.gradient[0], self.n_free * sizeof(double))
        memcpy(hessian, &self.hessian[0, 0], self.n_free * self.n_free * sizeof(double))
        return 0

    cdef double rounding(self, double value) noexcept nogil:
        return self.accuracy
