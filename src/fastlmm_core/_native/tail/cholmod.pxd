from libc.stdint cimport int32_t, int64_t
from fastlmm_core._native.symbolic.cholmod cimport cholmod_common, cholmod_dense, cholmod_factor, cholmod_sparse
from fastlmm_core._native.tail.sparse cimport PatternTail


cdef class CholmodTail(PatternTail):
    cdef cholmod_common common
    cdef cholmod_sparse matrix       # header over the pattern and over `s`
    cdef cholmod_factor *l
    cdef cholmod_dense *x            # CHOLMOD's solution and workspaces, kept between solves
    cdef cholmod_dense *y
    cdef cholmod_dense *e
    cdef double[::1] s, z, column, sums
    cdef int64_t[::1] place, mark
    cdef const int64_t *l_ptr
    cdef const int64_t *l_idx
    cdef const int64_t *l_count
    cdef const double *l_val
    cdef int triangular(self, int system, double *x, Py_ssize_t k) noexcept nogil
    cdef void read_factor(self) noexcept nogil
    cdef bint make_room(self) noexcept with gil
