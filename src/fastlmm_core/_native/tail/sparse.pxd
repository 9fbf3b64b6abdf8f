from libc.stdint cimport int64_t
from fastlmm_core._native.tail.supernodal cimport SupernodalCholesky
from fastlmm_core._native.tail.tail cimport Tail


cdef class PatternTail(Tail):
    cdef const int64_t[::1] c_ptr
    cdef const int64_t[::1] c_idx
    cdef double[::1] c_val
    cdef double[::1] rows_work
    cdef void set_pattern(self, const int64_t[::1] c_ptr, const int64_t[::1] c_idx)
    cdef void inverse_column(self, Py_ssize_t j, double *out) noexcept nogil
    cdef void scale(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr, Py_ssize_t n_blocks,
                    double *s, const int64_t *place) noexcept nogil
    cdef void scale_block_row(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr,
                              Py_ssize_t b, double *s, const int64_t *place) noexcept nogil


cdef class SparseTail(PatternTail):
    cdef readonly SupernodalCholesky cholesky
