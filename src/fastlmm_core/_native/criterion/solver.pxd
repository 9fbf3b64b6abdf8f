from libc.stdint cimport int64_t
from fastlmm_core._native.criterion.workspace cimport Workspace


cdef class Solver(Workspace):
    cdef int expect_projection(self) except -1
    cdef bint same(self, const double *theta) noexcept nogil
    cdef bint at(self, const double *theta) noexcept nogil
    cdef int factor_at(self, const double *theta) noexcept nogil
    cdef int invert_at(self, const double *theta, bint keep) noexcept nogil
    cdef int c_modes(self, const double *theta) noexcept nogil
    cdef void eliminate(self) noexcept nogil
    cdef int finish(self, double *lam) noexcept nogil
    cdef void lambda_t(self, const double *lam, double *x, Py_ssize_t k) noexcept nogil
    cdef void solve_modes(self) noexcept nogil
    cdef void project(self, const double *lam, bint posterior, double *shrink) noexcept nogil
    cdef void inverse_blocks_into(self, const int64_t[::1] members, double[:, :, ::1] out) noexcept nogil
    cdef object conditional_blocks(self, const double[::1] theta)
    cdef object solve_all(self, const double[::1] theta, const double[:, ::1] lead, const double[:, ::1] tail)
