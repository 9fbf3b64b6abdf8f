"""What the optimiser sees of a criterion: value, derivatives where the value was last taken, rounding error."""

__all__ = ["Criterion"]


cdef class Criterion:
    """Base of the criteria that `newton.Newton` minimises."""

    cdef int enter(self) except -1:
        """Begin a call that uses the workspace: one at a time."""
        if not self.ready:
            raise ValueError(f"this {type(self).__name__} cannot be used: its constructor did not come to its end")
        return 0

    cdef void leave(self) noexcept:
        """End it."""
        pass

    cdef int check_length(self, const double[::1] x) except -1:
        if x.shape[0] != self.n_free:
            raise ValueError(f"theta has length {x.shape[0]}, but the model has {self.n_free} parameter(s)")
        return 0

    cdef int c_value(self, const double *x, double *value) noexcept nogil:
        """The criterion at ``x`` (n_free,); nonzero where it cannot be evaluated."""
        return 1

    cdef int c_derivatives(self, double *gradient, double *hessian) noexcept nogil:
        """Gradient (n_free,) and model Hessian (n_free, n_free) where `c_value` was last called."""
        return 1

    cdef double rounding(self, double value) noexcept nogil:
        """Differences of values near ``value`` below this mean nothing."""
        return 0.0
