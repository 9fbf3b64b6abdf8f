"""The leading factor as the tail engines see it: raw views of arrays that the evaluator owns, and the two row kernels.

With U_i an l x m_i matrix a level (strips as in `_assemble`) and UD_i its l x d partner on the dense columns:

    schur_row    subtracts from row j of the tail   sum_i U_i[:, a]' U_i[:, :a]   and   sum_i U_i[:, a]' UD_i
    gather_row   forms   sum_i U_i[:, a] (sum_{b > a} T[j, b] U_i[:, b])' + its transpose + U_i[:, a] T[j, j] U_i[:, a]'

over the levels i that hold tail column j, at place a of their sorted list. A row belongs to one thread and its sums run
in a fixed order, so results do not depend on the number of threads. Cost of either: sum_i l m_i^2 / 2 over all rows.

Many levels are more than the caches hold, and each strip is read once for every column in it: bytes read are what
counts. Columns are read as 16-bit numbers where the tail has no more than that allows, and a strip is not read at all
where its entries are equal (intercepts whose cells have one row each, no weights).
"""

from libc.stdint cimport int32_t, int64_t, uint16_t


cdef struct leading_t:
    Py_ssize_t q, l, m, d      # levels, columns, tail columns, dense columns (fixed effects and response)
    const double *a            # (q, l, l) diagonal blocks of Z'WZ
    double *zd                 # (q * l, d) Z'W[X y]
    const int64_t *ptr         # (q + 1)
    const int32_t *idx         # (nnz)
    const uint16_t *short_idx  # (nnz) the same numbers, or NULL
    bint even                  # l is 1 and the entries of each strip of u are equal
    const double *val          # (l * nnz) strips
    const int64_t *t_ptr       # (m + 1)
    const int32_t *t_lead      # (nnz)
    const int64_t *t_pos       # (nnz)
    double *u                  # (l * nnz) strips
    double *ud                 # (q * l, d)


cdef fused place_t:
    uint16_t
    int32_t


cdef inline void scatter(double *row, const place_t *idx, const double *strip, double u, int64_t n) noexcept nogil:
    """row[idx] -= u strip, n entries."""
    cdef int64_t b
    for b in range(n):
        row[idx[b]] -= u * strip[b]


cdef inline void scatter_even(double *row, const place_t *idx, double u, int64_t n) noexcept nogil:
    """row[idx] -= u, n distinct places, four in flight."""
    cdef int64_t b = 0
    cdef double x0, x1, x2, x3
    while b + 3 < n:
        x0, x1, x2, x3 = row[idx[b]] - u, row[idx[b + 1]] - u, row[idx[b + 2]] - u, row[idx[b + 3]] - u
        row[idx[b]] = x0
        row[idx[b + 1]] = x1
        row[idx[b + 2]] = x2
        row[idx[b + 3]] = x3
        b += 4
    while b < n:
        row[idx[b]] -= u
        b += 1


cdef inline double collect(const double *row, const place_t *idx, const double *strip, int64_t n) noexcept nogil:
    """row[idx]' strip, n entries."""
    cdef int64_t b = 0
    cdef double sum0 = 0.0, sum1 = 0.0
    while b + 1 < n:
        sum0 += row[idx[b]] * strip[b]
        sum1 += row[idx[b + 1]] * strip[b + 1]
        b += 2
    if b < n:
        sum0 += row[idx[b]] * strip[b]
    return sum0 + sum1


cdef inline double collect_even(const double *row, const place_t *idx, int64_t n) noexcept nogil:
    """Sum of row[idx], n entries."""
    cdef int64_t b = 0
    cdef double sum0 = 0.0, sum1 = 0.0, sum2 = 0.0, sum3 = 0.0
    while b + 3 < n:
        sum0 += row[idx[b]]
        sum1 += row[idx[b + 1]]
        sum2 += row[idx[b + 2]]
        sum3 += row[idx[b + 3]]
        b += 4
    while b < n:
        sum0 += row[idx[b]]
        b += 1
    return (sum0 + sum1) + (sum2 + sum3)


cdef inline void schur_row(const leading_t *s, Py_ssize_t j, double *row, double *row_d) noexcept nogil:
    """Subtract the leading factor's part from row j: ``row`` (columns up to j) and ``row_d`` (d dense columns)."""
    cdef int64_t t, first, width, n
    cdef Py_ssize_t i, r, x
    cdef double u
    cdef const double *strip
    cdef const double *dense
    for t in range(s.t_ptr[j], s.t_ptr[j + 1]):
        i = s.t_lead[t]
        first = s.ptr[i]
        width = s.ptr[i + 1] - first
        n = s.t_pos[t] - first + 1
        for r in range(s.l):
            strip = s.u + s.l * first + r * width
            u = strip[0 if s.even else n - 1]
            if u == 0.0:
                continue
            if s.short_idx is NULL:
                if s.even:
                    scatter_even(row, s.idx + first, u * u, n)
                else:
                    scatter(row, s.idx + first, strip, u, n)
            elif s.even:
                scatter_even(row, s.short_idx + first, u * u, n)
            else:
                scatter(row, s.short_idx + first, strip, u, n)
            dense = s.ud + (i * s.l + r) * s.d
            for x in range(s.d):
                row_d[x] -= u * dense[x]


cdef inline void gather_row(const leading_t *s, Py_ssize_t j, const double *row, double *out,
                            bint per_level, double *acc) noexcept nogil:
    """Add row j's part of sum_i U_i T U_i' (symmetric) to ``out``.

    ``row`` holds T[j, k] for k >= j at ``row[k]``. ``out`` is one l x l block, or one a level when ``per_level``.
    ``acc`` is workspace of l.
    """
    cdef int64_t t, first, a, b, width, n
    cdef Py_ssize_t i, r, c, l = s.l
    cdef double total, diag = row[j]
    cdef const double *u
    cdef const double *strip
    cdef double *block = out
    for t in range(s.t_ptr[j], s.t_ptr[j + 1]):
        i = s.t_lead[t]
        first = s.ptr[i]
        width = s.ptr[i + 1] - first
        a = s.t_pos[t] - first
        b = a + 1
        n = width - b
        u = s.u + l * first
        if per_level:
            block = out + i * l * l
        if s.even:
            if s.short_idx is NULL:
                total = collect_even(row, s.idx + first + b, n)
            else:
                total = collect_even(row, s.short_idx + first + b, n)
            block[0] += u[0] * u[0] * (2.0 * total + diag)
            continue
        for r in range(l):
            strip = u + r * width
            if s.short_idx is NULL:
                total = collect(row, s.idx + first + b, strip + b, n)
            else:
                total = collect(row, s.short_idx + first + b, strip + b, n)
            acc[r] = total + 0.5 * diag * strip[a]
        for r in range(l):
            for c in range(l):
                block[r * l + c] += u[r * width + a] * acc[c] + acc[r] * u[c * width + a]
