"""The leading factor as the tail engines see it: raw views of arrays that the evaluator owns, and the two row kernels.

With U_i an l x m_i matrix a level (strips as in `_assemble`) and UD_i its l x d partner on the dense columns:

    schur_row    subtracts from row j of the tail   sum_i U_i[:, a]' U_i[:, :a]   and   sum_i U_i[:, a]' UD_i
    gather_row   forms   sum_i U_i[:, a] (sum_{b > a} T[j, b] U_i[:, b])' + its transpose + U_i[:, a] T[j, j] U_i[:, a]'

over the levels i that hold tail column j, at place a of their sorted list. A row belongs to one thread and its sums run
in a fixed order, so results do not depend on the number of threads. Cost of either: sum_i l m_i^2 / 2 over all rows.
"""

from libc.stdint cimport int32_t, int64_t


cdef struct leading_t:
    Py_ssize_t q, l, m, d      # levels, columns, tail columns, dense columns (fixed effects and response)
    const double *a            # (q, l, l) diagonal blocks of Z'WZ
    double *zd                 # (q * l, d) Z'W[X y]
    const int64_t *ptr         # (q + 1)
    const int32_t *idx         # (nnz)
    const double *val          # (l * nnz) strips
    const int64_t *t_ptr       # (m + 1)
    const int32_t *t_lead      # (nnz)
    const int64_t *t_pos       # (nnz)
    double *u                  # (l * nnz) strips
    double *ud                 # (q * l, d)


cdef inline void schur_row(const leading_t *s, Py_ssize_t j, double *row, double *row_d) noexcept nogil:
    """Subtract the leading factor's part from row j: ``row`` (columns up to j) and ``row_d`` (d dense columns)."""
    cdef int64_t t, first, a, b, width
    cdef Py_ssize_t i, r, x
    cdef double u
    cdef const double *strip
    cdef const double *dense
    cdef const int32_t *idx
    for t in range(s.t_ptr[j], s.t_ptr[j + 1]):
        i = s.t_lead[t]
        first = s.ptr[i]
        width = s.ptr[i + 1] - first
        a = s.t_pos[t] - first
        idx = s.idx + first
        for r in range(s.l):
            strip = s.u + s.l * first + r * width
            u = strip[a]
            if u == 0.0:
                continue
            for b in range(a + 1):
                row[idx[b]] -= u * strip[b]
            dense = s.ud + (i * s.l + r) * s.d
            for x in range(s.d):
                row_d[x] -= u * dense[x]


cdef inline void gather_row(const leading_t *s, Py_ssize_t j, const double *row, double *out,
                            bint per_level, double *acc) noexcept nogil:
    """Add row j's part of sum_i U_i T U_i' (symmetric) to ``out``.

    ``row`` holds T[j, k] for k >= j at ``row[k]``. ``out`` is one l x l block, or one a level when ``per_level``.
    ``acc`` is workspace of l.
    """
    cdef int64_t t, first, a, b, width
    cdef Py_ssize_t i, r, c, l = s.l
    cdef double sum0, sum1, diag = row[j]
    cdef const double *u
    cdef const double *strip
    cdef const int32_t *idx
    cdef double *block = out
    for t in range(s.t_ptr[j], s.t_ptr[j + 1]):
        i = s.t_lead[t]
        first = s.ptr[i]
        width = s.ptr[i + 1] - first
        a = s.t_pos[t] - first
        idx = s.idx + first
        u = s.u + l * first
        if per_level:
            block = out + i * l * l
        for r in range(l):
            strip = u + r * width
            sum0 = 0.0
            sum1 = 0.0
            b = a + 1
            while b + 1 < width:
                sum0 += row[idx[b]] * strip[b]
                sum1 += row[idx[b + 1]] * strip[b + 1]
                b += 2
            if b < width:
                sum0 += row[idx[b]] * strip[b]
            acc[r] = sum0 + sum1 + 0.5 * diag * strip[a]
        for r in range(l):
            for c in range(l):
                block[r * l + c] += u[r * width + a] * acc[c] + acc[r] * u[c * width + a]
