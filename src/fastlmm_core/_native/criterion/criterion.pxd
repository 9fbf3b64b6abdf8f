cdef class Criterion:
    cdef readonly Py_ssize_t n_free  # parameters
    cdef bint ready                  # the constructor came to its end
    cdef int enter(self) except -1
    cdef void leave(self) noexcept
    cdef int check_length(self, const double[::1] x) except -1
    cdef int c_value(self, const double *x, double *value) noexcept nogil
    cdef int c_derivatives(self, double *gradient, double *hessian) noexcept nogil
    cdef double rounding(self, double value) noexcept nogil
