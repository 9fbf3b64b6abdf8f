from libc.stdint cimport int64_t

from fastlmm_core._native.criterion.criterion cimport Criterion


cdef class LevelValues(Criterion):
    cdef readonly Py_ssize_t n, q, l, p, n_theta, n_nodes, n_chunks, n_steps
    cdef int family, link, threads
    cdef readonly bint estimated, expected
    cdef double rho, rho_low, rho_high, constant, constant_r, constant_rr, constant_at
    cdef bint constant_known
    cdef const int64_t[::1] ptr, row, col
    cdef const double[:, ::1] x_rows, z_rows, nodes
    cdef const double[::1] offset, m, freq, log_weights
    cdef double[::1] y
    cdef double[::1] factor, base, s, w, k, we, sr, wr, lrr, sbar, score_now, x_now, x_at
    cdef double[:, ::1] a_rows, u, t, u_at
    cdef double[:, :, ::1] mat, tu, moved, jac
    cdef double[:, ::1] qbar
    cdef double[::1] lr
    cdef double[::1] chunk_values, chunk_sums, work, total
    cdef int64_t[::1] status
    cdef Py_ssize_t work_size, sum_size
    cdef bint predicting, busy

    cdef void c_reset(self) noexcept nogil
    cdef void find_constant(self, double rho) noexcept nogil
    cdef void value_chunk(self, Py_ssize_t chunk, const double *x, double rho) noexcept nogil
    cdef double pass_rows(self, Py_ssize_t i, const double *u, double rho, double *g, double *mat,
                          bint observed) noexcept nogil
    cdef int find_mode(self, Py_ssize_t i, const double *x, double rho, double *work) noexcept nogil
    cdef int level_value(self, Py_ssize_t i, double rho, double *work, double *value) noexcept nogil
    cdef int add_nodes(self, Py_ssize_t i, double rho, double h, double *work, double *value) noexcept nogil
