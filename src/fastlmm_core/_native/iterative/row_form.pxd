"""The operator on rows sorted by leading level, for other kernels that walk through them."""

from libc.stdint cimport int64_t

from fastlmm_core._native.iterative.row_loops cimport rows_t


cdef class RowForm:
    cdef readonly Py_ssize_t n, q, m, l, products, version
    cdef Py_ssize_t parts, threads
    cdef rows_t rows
    cdef object kept
    cdef int64_t[::1] part, starts
    cdef double[:, :, ::1] buffer
    cdef double[:, ::1] given
    cdef add_parts(self, double[:, ::1] y)
    cdef Py_ssize_t width_of(self, Py_ssize_t kv) except -1
    cdef Py_ssize_t astray(self, const int64_t[::1] widths)
    cdef check(self, shape, tuple expected)
