from libc.stdint cimport int64_t
from fastlmm_core._native.criterion.traces cimport Traces


cdef class Evaluator(Traces):
    cdef const int64_t[::1] lead_row, lead_col  # of each leading parameter
    cdef double[:, ::1] ca, va, cx, h1
    cdef double[::1] x_lead, chunk_sums
    cdef Py_ssize_t chunk_size(self) noexcept nogil
    cdef void information(self, double *fpy) noexcept nogil
    cdef void information_chunk(self, Py_ssize_t chunk) noexcept nogil
    cdef void leading_information(self, double *fpy) noexcept nogil
    cdef void tail_information(self, double *fpy) noexcept nogil
    cdef void tail_directions(self, double *fpy) noexcept nogil
    cdef void project_information(self) noexcept nogil
    cdef Py_ssize_t place_of(self, Py_ssize_t a) noexcept nogil
    cdef void c_chain(self, const double *lam, const double *sums, double *gradient, double *hessian) noexcept nogil
    cdef int group_gradients(self, double scale) noexcept nogil
