from libc.stdint cimport int64_t
from fastlmm_core._native.leading.rows cimport leading_t


cdef struct levels_t:                # how the tail divides into levels (blocks), and these into groups
    Py_ssize_t n                     # levels
    const int64_t *ptr               # (n + 1) column at which each begins
    const int64_t *group             # (n) its group
    const int64_t *group_l           # columns of each group
    const int64_t *group_lam         # place of each group's (l, l)


cdef class Tail:
    cdef readonly Py_ssize_t m
    cdef bint ready                  # the constructor came to its end
    cdef readonly bint busy          # an evaluator is at work
    cdef int threads
    cdef const int64_t[::1] a_ptr
    cdef const int[::1] a_idx
    cdef readonly object _keep
    cdef readonly long long stamp    # of the last factor
    cdef bint inverted, solvable     # an inverse has taken the factor's place; `solve` can be called
    cdef bint known                  # a precision between levels has been given; it is the identity otherwise
    cdef const int64_t[::1] p_ptr, p_idx
    cdef const double[::1] p_val
    cdef void set_rows(self, tuple rows, int threads)
    cdef void assemble(self, const leading_t *lead, const double *values, double *dense, double *work) noexcept nogil
    cdef int factor(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr, Py_ssize_t n_blocks,
                    double *logdet) noexcept nogil
    cdef void forward(self, double *x, Py_ssize_t k) noexcept nogil
    cdef void backward(self, double *x, Py_ssize_t k) noexcept nogil
    cdef void reduce(self, double *x, Py_ssize_t k, double *gram) noexcept nogil
    cdef int inverse(self, bint keep) noexcept nogil
    cdef void traces(self, const levels_t *levels, const double *omega, Py_ssize_t p, double *out) noexcept nogil
    cdef void subtract_precision(self, const levels_t *levels, Py_ssize_t b, double *block) noexcept nogil
    cdef void solve(self, double *x, Py_ssize_t k) noexcept nogil
    cdef double inverse_entry(self, Py_ssize_t j, Py_ssize_t k) noexcept nogil
    cdef void gather(self, const leading_t *lead, double *out, bint per_level, double *work) noexcept nogil
    cdef void times(self, const double *x, double *y, Py_ssize_t k) noexcept nogil


cdef class DenseTail(Tail):
    cdef double[::1] buffer
    cdef double[::1] panel
    cdef Py_ssize_t tile
    cdef void assemble_row(self, const leading_t *lead, const double *values, double *dense, Py_ssize_t j,
                           double *row_d) noexcept nogil
    cdef void scale(self, const double *lam, const int64_t *block_ptr, const int64_t *lam_ptr, Py_ssize_t n_blocks,
                    Py_ssize_t tile) noexcept nogil
    cdef void add_precision(self, const int64_t *block_ptr, Py_ssize_t n_blocks) noexcept nogil


cdef class EmptyTail(Tail):
    pass
