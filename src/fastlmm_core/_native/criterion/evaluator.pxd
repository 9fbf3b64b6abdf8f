from libc.stdint cimport int64_t
from fastlmm_core._native.criterion.solver cimport Solver


cdef class Evaluator(Solver):
    cdef readonly Py_ssize_t n_chunks
    cdef const int64_t[::1] lead_row, lead_col  # of each leading parameter
    cdef double[:, ::1] ca, va, cx, h1
    cdef double[::1] lam_lifted, x_lead, omega, sums, parts, chunk_sums, small
    cdef Py_ssize_t chunk_size(self) noexcept nogil
    cdef void information(self, double *fpy) noexcept nogil
    cdef void information_chunk(self, Py_ssize_t chunk) noexcept nogil
    cdef void tail_products(self) noexcept nogil
    cdef void project_information(self) noexcept nogil
    cdef Py_ssize_t place_of(self, Py_ssize_t a) noexcept nogil
    cdef void c_chain(self, const double *lam, const double *sums, double *gradient, double *hessian) noexcept nogil
    cdef void leading_shrinkage(self) noexcept nogil
    cdef int group_gradients(self) noexcept nogil
    cdef int all_traces(self) noexcept nogil
    cdef int add_traces(self, const double *lam, double weight) noexcept nogil
    cdef void subtract_precision(self, Py_ssize_t b, double *block) noexcept nogil
    cdef void gather_into(self, double *big_g) noexcept nogil
    cdef int lift_tail(self, double multiple) noexcept nogil
    cdef void make_omega(self) noexcept nogil
    cdef void fixed_correction(self, double *out) noexcept nogil
