"""A criterion written in Python, for the compiled optimiser: two callables and a place for what they raise."""

import numpy as np

from libc.math cimport INFINITY, fabs
from libc.string cimport memcpy

from fastlmm_core._native.criterion.criterion cimport Criterion

from fastlmm_core.errors import NumericalError

__all__ = ["Callback"]


cdef class Callback(Criterion):
    """Value and derivatives by calls into Python.

    Parameters
    ----------
    n_free : int
    value : callable
        x (n_free,) to float.
    derivatives : callable
        To gradient (n_free,) and model Hessian (n_free, n_free) where the value was last taken.
    size : float
        Rounding is `relative` times this and the value's own size.
    relative : float

    Attributes
    ----------
    error : BaseException or None
        What a call raised other than `NumericalError`, which the optimiser steps back from; `raise_error` raises it.
    """

    cdef object value, derivatives
    cdef double size, relative
    cdef readonly object error

    def __init__(self, Py_ssize_t n_free, value, derivatives, double size, double relative=1e-12):
        self.relative = relative
        self.n_free, self.value, self.derivatives, self.size = n_free, value, derivatives, size
        self.error = None
        self.ready = True

    def raise_error(self):
        """Raise what a call has left, once."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    cdef int c_value(self, const double *x, double *value) noexcept nogil:
        with gil:
            return self.call_value(x, value)

    cdef int call_value(self, const double *x, double *value) noexcept with gil:
        cdef double[::1] at
        if self.error is not None:
            return 1
        try:
            x_ = np.empty(self.n_free)
            at = x_
            memcpy(&at[0], x, self.n_free * sizeof(double))
            value[0] = self.value(x_)
        except NumericalError:
            value[0] = INFINITY
            return 1
        except BaseException as error:
            self.error = error
            return 1
        return 0

    cdef int c_derivatives(self, double *gradient, double *hessian) noexcept nogil:
        with gil:
            return self.call_derivatives(gradient, hessian)

    cdef int call_derivatives(self, double *gradient, double *hessian) noexcept with gil:
        cdef const double[::1] g
        cdef const double[:, ::1] h
        if self.error is not None:
            return 1
        try:
            g, h = self.derivatives()
            memcpy(gradient, &g[0], self.n_free * sizeof(double))
            memcpy(hessian, &h[0, 0], self.n_free * self.n_free * sizeof(double))
        except NumericalError:
            return 1
        except BaseException as error:
            self.error = error
            return 1
        return 0

    cdef double rounding(self, double value) noexcept nogil:
        return self.relative * (fabs(value) + self.size)
