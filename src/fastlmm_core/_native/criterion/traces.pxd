from fastlmm_core._native.criterion.solver cimport Solver


cdef class Traces(Solver):
    cdef readonly Py_ssize_t n_chunks
    cdef double[::1] lam_lifted, omega, sums, parts, corrections, small
    cdef void leading_shrinkage(self) noexcept nogil
    cdef int all_traces(self) noexcept nogil
    cdef int add_traces(self, const double *lam, double weight) noexcept nogil
    cdef void gather_into(self, double *big_g) noexcept nogil
    cdef int lift_tail(self, double multiple) noexcept nogil
    cdef void make_omega(self) noexcept nogil
    cdef void fixed_correction(self, double *out) noexcept nogil
