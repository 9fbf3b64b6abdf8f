cdef class Criterion:
    cdef readonly Py_ssize_t n_free  # parameters
    cdef int c_value(self, const double *x, double *value) noexcept nogil
    cdef int c_derivatives(self, double *gradient, double *hessian) noexcept nogil
    cdef double rounding(self, double value) noexcept nogil
