from libc.stdint cimport int32_t, int64_t
from fastlmm_core._native.tail.supernode cimport node_t
from fastlmm_core._native.symbolic.supernodes cimport Supernodes


cdef class SupernodalCholesky:
    cdef readonly Supernodes tree
    cdef int threads
    cdef object store                # owns the nodes
    cdef node_t *nodes               # (n) parents before children
    cdef int32_t[::1] rows, relative, owner
    cdef int64_t[::1] place
    cdef double[::1] panels, fronts, work, vectors, kept
    cdef double *solving             # panels of L that solves read: `panels`, or `kept` after an inverse
    cdef str state
    cdef int enter(self) except -1
    cdef int expect(self, str state) except -1
    cdef void lay_out(self)
    cdef void clear(self) noexcept nogil
    cdef int keep_factor(self) noexcept nogil
    cdef bint make_room(self) noexcept with gil
    cdef int factor(self, double *logdet) noexcept nogil
    cdef void forward(self, double *x, Py_ssize_t k) noexcept nogil
    cdef void backward(self, double *x, Py_ssize_t k) noexcept nogil
    cdef void forward_some(self, double *x, Py_ssize_t k, double *work) noexcept nogil
    cdef void backward_some(self, double *x, Py_ssize_t k, double *work) noexcept nogil
    cdef void inverse(self) noexcept nogil
    cdef double inverse_entry(self, Py_ssize_t j, Py_ssize_t k) noexcept nogil
    cdef void inverse_column(self, Py_ssize_t j, double *out) noexcept nogil
