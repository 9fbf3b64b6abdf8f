from libc.stdint cimport int64_t
from fastlmm_core._native.leading.rows cimport leading_t
from fastlmm_core._native.tail.tail cimport Tail


cdef class Solver:
    cdef leading_t lead
    cdef readonly Tail tail
    cdef int threads
    cdef readonly Py_ssize_t n_theta, p, n_groups
    cdef Py_ssize_t n_blocks, n_lead_theta
    cdef readonly bint reml
    cdef bint ones                   # each leading entry is one: unweighted intercepts, a row a cell
    cdef readonly double nu
    cdef double constant
    cdef readonly dict arrays        # owns what `lead` points at
    cdef const int64_t[::1] block_ptr
    cdef const int64_t[::1] block_lam
    cdef const int64_t[::1] block_group
    cdef const int64_t[::1] group_l
    cdef const int64_t[::1] group_lam
    cdef const double[::1] group_floor
    cdef const int64_t[::1] column_block
    cdef const int64_t[::1] theta_group
    cdef const int64_t[::1] theta_row
    cdef const int64_t[::1] theta_col
    cdef double[:, ::1] dtd
    cdef double[:, ::1] zd_tail
    # state after `value`
    cdef double[::1] lam, lead_m, logd, work
    cdef double[:, ::1] c_dense, y_dense, ld
    cdef readonly double logdet_m, logdet_x, r2, criterion
    cdef bint ready                  # the constructor came to its end
    cdef bint current                # the factors are those of the last value's theta
    cdef bint projected              # `u` and the tail's inverse are those that `cond_var` left
    # state after `solve_modes`
    cdef double[::1] beta, b_tail, t_tail, b_lead, t_lead
    cdef tuple solution              # beta, b_lead, b_tail and ld as arrays
    cdef int enter(self) except -1
    cdef void leave(self) noexcept
    cdef int expect_projection(self) except -1
    cdef void c_set_response(self, const double *lead, Py_ssize_t lead_step, const double *tail, Py_ssize_t tail_step,
                             const double *xty, Py_ssize_t xty_step, double constant) noexcept nogil
    cdef int c_value(self, const double *theta, double *value) noexcept nogil
    cdef bint at(self, const double *theta) noexcept nogil
    cdef void eliminate(self) noexcept nogil
    cdef int finish(self, double *lam) noexcept nogil
    cdef void lambda_t(self, const double *lam, double *x, Py_ssize_t k) noexcept nogil
    cdef void solve_modes(self) noexcept nogil
    cdef void project(self, const double *lam, bint posterior) noexcept nogil
    cdef void inverse_blocks_into(self, const int64_t[::1] members, double[:, :, ::1] out) noexcept nogil
    cdef object conditional_blocks(self, const double[::1] theta)
    cdef object solve_all(self, const double[::1] theta, const double[:, ::1] lead, const double[:, ::1] tail)
    cdef int check_length(self, const double[::1] theta) except -1
