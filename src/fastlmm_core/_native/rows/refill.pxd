from libc.stdint cimport int32_t, int64_t
from fastlmm_core._native.criterion.values cimport Values


cdef struct part_t:            # rows grouped by their level of one factor, or by the tail row that their cells lie in
    Py_ssize_t n               # groups
    const int64_t *ptr         # (n + 1)
    const int32_t *rows        # (ptr[n]) in their original order within a group; NULL where the rows lie in order


cdef struct factor_t:
    Py_ssize_t q, l
    const int32_t *codes       # (rows,)
    const double *z            # (rows, l), NULL for a column of ones
    const int64_t *offset      # (q) tail column at which each level begins; NULL for the leading factor
    const int32_t *place       # place among its leading level's columns, in the order of the leading part's rows
    part_t part


cdef struct pair_t:            # two factors g < h of the tail
    Py_ssize_t g, h
    const int32_t *place       # place in the first of the tail rows, in the order of the part's rows
    part_t part


cdef class RowPlaces:
    cdef readonly Py_ssize_t n, n_factors, n_pairs
    cdef readonly Values values
    cdef int threads
    cdef list owned
    cdef factor_t factors[16]
    cdef pair_t pairs[120]
    cdef const int64_t[::1] ptr, a_ptr
    cdef double[:, :, ::1] blocks
    cdef double[::1] cells, tail
    cdef Py_ssize_t m
    cdef keep_part(self, part_t *part, ptr, rows)
    cdef add_pair(self, Py_ssize_t g, Py_ssize_t h, start_g, start_h, dict arrays)
    cdef void fill_leading(self, Py_ssize_t i, const double *w) noexcept nogil
    cdef void fill_tail(self, factor_t *f, Py_ssize_t j, const double *w) noexcept nogil
    cdef void fill_pair(self, pair_t *p, Py_ssize_t j, const double *w) noexcept nogil
