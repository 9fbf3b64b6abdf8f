from libc.stdint cimport int64_t
from fastlmm_core._cholmod cimport cholmod_common, cholmod_factor, cholmod_sparse
from fastlmm_core._tail cimport Tail


cdef class Symbolic:
    cdef cholmod_common common
    cdef cholmod_factor *factor
    cdef cholmod_sparse matrix
    cdef bint started
    cdef const int64_t[::1] ptr
    cdef const int64_t[::1] idx
    cdef void open(self, object ptr, object idx, int ordering)


cdef class SparseTail(Tail):
    cdef Symbolic symbolic
    cdef const int64_t[::1] c_ptr
    cdef const int64_t[::1] c_idx
    cdef double[::1] c_val
    cdef double[::1] s_val
    cdef double[::1] z_val
    cdef double[::1] rows_work
    cdef const int64_t *lp
    cdef const int64_t *li
    cdef const double *lx
    cdef readonly double lnz, flops
    cdef int refactor(self) noexcept nogil
    cdef void scale_block_row(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr,
                              Py_ssize_t b) noexcept nogil
