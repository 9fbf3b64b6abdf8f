cdef class TrustRegion:
    cdef Py_ssize_t n                # parameters
    cdef readonly double tol
    cdef double slope
    cdef bint ready                  # the constructor came to its end
    cdef double[::1] theta, gradient, step, before, taken
    cdef double[:, ::1] hessian, correction
    cdef double[::1] eigen, rotated, work, lack
    cdef double[:, ::1] vectors
    cdef double solve(self, double *radius, double *length, bint *interior) noexcept nogil
    cdef void correct(self, double length) noexcept nogil
    cdef double natural_radius(self) noexcept nogil
    cdef void decompose(self) noexcept nogil
    cdef double length(self, double mu) noexcept nogil
    cdef double newton_step(self, double radius, double *length) noexcept nogil
    cdef double ball_step(self, double radius, double *length, bint *interior) noexcept nogil
