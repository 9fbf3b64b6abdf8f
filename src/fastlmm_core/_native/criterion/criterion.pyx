"""What the optimiser sees of a criterion: value, derivatives where the value was last taken, rounding error."""

__all__ = ["Criterion"]


cdef class Criterion:
    """Base of the criteria that `newton.Newton` minimises."""

    cdef int c_value(self, const double *x, double *value) noexcept nogil:
        """The criterion at ``x`` (n_free,); nonzero where it cannot be evaluated."""
        return 1

    cdef int c_derivatives(self, double *gradient, double *hessian) noexcept nogil:
        """Gradient (n_free,) and model Hessian (n_free, n_free) where `c_value` was last called."""
        return 1

    cdef double rounding(self, double value) noexcept nogil:
        """Differences of values near ``value`` below this mean nothing."""
        return 0.0
