from libc.stdint cimport int64_t
from fastlmm_core._native.criterion.criterion cimport Criterion
from fastlmm_core._native.criterion.values cimport Values
from fastlmm_core._native.leading.rows cimport leading_t
from fastlmm_core._native.tail.tail cimport Tail


cdef class Workspace(Criterion):
    cdef leading_t lead
    cdef readonly Tail tail
    cdef int threads
    cdef readonly Py_ssize_t n_theta, p, n_groups
    cdef Py_ssize_t n_blocks, n_lead_theta
    cdef readonly bint reml, fixed_scale
    cdef readonly double nu
    cdef double constant
    cdef readonly dict arrays        # owns what `lead` points at
    cdef readonly Values values
    cdef const int64_t[::1] block_ptr
    cdef const int64_t[::1] block_lam
    cdef const int64_t[::1] block_group
    cdef const int64_t[::1] group_l
    cdef const int64_t[::1] group_lam
    cdef const int64_t[::1] group_levels
    cdef const int64_t[::1] column_block
    cdef const int64_t[::1] theta_group
    cdef const int64_t[::1] theta_row
    cdef const int64_t[::1] theta_col
    cdef double[:, ::1] zd, dtd, zd_tail
    # state after `value`
    cdef double[::1] lam, lead_m, shrink, logd, work
    cdef double[:, ::1] c_dense, y_dense, ld
    cdef readonly double logdet_m, logdet_x, r2, criterion
    cdef long long version, stamp    # of the values and of the tail's factor that they were made from
    cdef bint current                # the factors are of `lam`, and were not made of a lifted one
    cdef bint inverted               # the inverse has taken the place of the tail's factor
    cdef bint projected              # `u` and the tail's inverse are those that `cond_var` left
    cdef bint solved                 # the solution below is that of `lam`
    # state after `solve_modes`
    cdef double[::1] beta, b_tail, t_tail, b_lead, t_lead
    cdef tuple solution              # beta, b_lead, b_tail and ld as arrays
    cdef int take(self, Values values, double constant) except -1
    cdef void c_set_response(self, const double *lead, Py_ssize_t lead_step, const double *tail, Py_ssize_t tail_step,
                             const double *xty, Py_ssize_t xty_step, double constant) noexcept nogil
    cdef int check(self, int status, const double[::1] theta) except -1
