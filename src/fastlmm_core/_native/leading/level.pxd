"""What is done to one leading level: elimination, back-substitution, projection. Inlined into the loops over levels.

Each is compiled for blocks of one, two and three columns, whose loops the compiler then unrolls, and once for any.

With A the level's l x l block of Z'WZ, B its row block against the tail (l strips of `width`), Z_D its rows against the
dense columns and L the leading factor's relative Cholesky factor:

    D = L'AL + I = R R',    M = R^-1 L',    K = M'M = L D^-1 L',    U = M B,    U_D = M Z_D

Cost of each: l^2 operations an entry of B. Shapes as in `_leading.leading_t`.
"""

from libc.math cimport log, sqrt
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastlmm_core._native.leading.rows cimport leading_t
from fastlmm_core._native.small cimport chol


cdef inline void times_ka(const double *m, const double *a, double *ka, Py_ssize_t l) noexcept nogil:
    """ka <- K A = M'M A."""
    cdef Py_ssize_t r, c, x, y
    cdef double s, k
    for r in range(l):
        for c in range(l):
            s = 0.0
            for x in range(l):
                k = 0.0
                for y in range(l):
                    k += m[y * l + r] * m[y * l + x]
                s += k * a[x * l + c]
            ka[r * l + c] = s


cdef inline void eliminate_level(const leading_t *s, Py_ssize_t i, const double *lam, double *m_all,
                                 double *logd) noexcept nogil:
    if s.l == 1:
        eliminate_block(s, i, lam, m_all, logd, 1)
    elif s.l == 2:
        eliminate_block(s, i, lam, m_all, logd, 2)
    elif s.l == 3:
        eliminate_block(s, i, lam, m_all, logd, 3)
    else:
        eliminate_block(s, i, lam, m_all, logd, s.l)


cdef inline void eliminate_block(const leading_t *s, Py_ssize_t i, const double *lam, double *m_all, double *logd,
                                 Py_ssize_t l) noexcept nogil:
    cdef Py_ssize_t d = s.d, r, c, x, y
    cdef int64_t first = s.ptr[i], width = s.ptr[i + 1] - first, b
    cdef const double *a = s.a + i * l * l
    cdef double *m = m_all + i * l * l
    cdef const double *zd = s.zd + i * l * d
    cdef double *ud = s.ud + i * l * d
    cdef const double *val = s.val + l * first
    cdef double *u = s.u + l * first
    cdef double total, inner, f
    if l == 1:
        total = lam[0] * lam[0] * a[0] + 1.0
        logd[i] = log(total)
        m[0] = lam[0] / sqrt(total)
    else:
        # the lower triangle of D_i, factored in place of M_i
        for r in range(l):
            for c in range(r + 1):
                total = 1.0 if r == c else 0.0
                for x in range(r, l):
                    inner = 0.0
                    for y in range(c, l):
                        inner += a[x * l + y] * lam[y * l + c]
                    total += lam[x * l + r] * inner
                m[r * l + c] = total
        chol(m, l)
        total = 0.0
        inner = 1.0
        for r in range(l):  # pivots are at least one; a logarithm takes longer than the rest of a small block
            inner *= m[r * l + r]
            if inner > 1e100:
                total += 2.0 * log(inner)
                inner = 1.0
        logd[i] = total + 2.0 * log(inner)
        # M = R^-1 L' column by column from the right: column c of L' is zero below row c, so row r of the result needs
        # R's rows up to r, which must stay intact until the last column is done; R moves to the stack of columns below
        level_m(m, lam, l)
    for r in range(l):
        for x in range(d):
            total = 0.0
            for c in range(l):
                total += m[r * l + c] * zd[c * d + x]
            ud[r * d + x] = total
        f = m[r * l]
        for b in range(width):
            u[r * width + b] = f * val[b]
        for c in range(1, l):
            f = m[r * l + c]
            for b in range(width):
                u[r * width + b] += f * val[c * width + b]


cdef inline void level_m(double *m, const double *lam, Py_ssize_t l) noexcept nogil:
    """m <- R^-1 L' for the lower triangular R held in ``m``.

    R^-1 is formed in place first (row by row, bottom up, each entry from entries not yet overwritten), then times L'.
    """
    cdef Py_ssize_t r, c, x
    cdef double total
    for c in range(l):  # R^-1, column by column: entries below the diagonal of column c need R and column c only
        m[c * l + c] = 1.0 / m[c * l + c]
    for r in range(1, l):
        for c in range(r):
            total = 0.0
            for x in range(c, r):
                total += m[r * l + x] * m[x * l + c]
            m[c * l + r] = -total * m[r * l + r]  # parked above the diagonal: row r of R is still needed
        for c in range(r):
            m[r * l + c] = m[c * l + r]
    for r in range(l):  # row r of R^-1 has r + 1 entries; the product with L' fills the row from the right
        for c in range(l - 1, -1, -1):
            total = 0.0
            for x in range(min(r, c) + 1):
                total += m[r * l + x] * lam[c * l + x]
            m[r * l + c] = total


cdef inline void level_modes(const leading_t *s, Py_ssize_t i, const double *beta, const double *b_tail,
                             const double *m_all, double *b_lead, double *t_lead) noexcept nogil:
    """r_i = Z'y - Z'X beta, then `back_substitute`."""
    if s.l == 1:
        block_modes(s, i, beta, b_tail, m_all, b_lead, t_lead, 1)
    elif s.l == 2:
        block_modes(s, i, beta, b_tail, m_all, b_lead, t_lead, 2)
    elif s.l == 3:
        block_modes(s, i, beta, b_tail, m_all, b_lead, t_lead, 3)
    else:
        block_modes(s, i, beta, b_tail, m_all, b_lead, t_lead, s.l)


cdef inline void block_modes(const leading_t *s, Py_ssize_t i, const double *beta, const double *b_tail,
                             const double *m_all, double *b_lead, double *t_lead, Py_ssize_t l) noexcept nogil:
    cdef Py_ssize_t d = s.d, r, x
    cdef const double *zd = s.zd + i * l * d
    cdef double *t = t_lead + i * l
    for r in range(l):
        t[r] = zd[r * d + d - 1]
        for x in range(d - 1):
            t[r] -= zd[r * d + x] * beta[x]
    back_substitute(s, i, m_all, b_tail, b_lead, t_lead, l)


cdef inline void eliminate_rhs(const leading_t *s, Py_ssize_t i, const double *m_all, const double *rhs,
                               double *tail) noexcept nogil:
    """tail <- tail - B_i' K_i r_i: a right-hand side loses its leading part."""
    cdef Py_ssize_t l = s.l, r, c, x
    cdef int64_t first = s.ptr[i], width = s.ptr[i + 1] - first, b
    cdef const double *m = m_all + i * l * l
    cdef double total, inner
    for r in range(l):
        total = 0.0
        for c in range(l):
            inner = 0.0
            for x in range(l):
                inner += m[c * l + x] * rhs[i * l + x]
            total += m[c * l + r] * inner
        for b in range(width):
            tail[s.idx[first + b]] -= total * s.val[l * first + r * width + b]


cdef inline void back_substitute(const leading_t *s, Py_ssize_t i, const double *m_all, const double *b_tail,
                                 double *b_lead, double *t_lead, Py_ssize_t l) noexcept nogil:
    """t_i holds r_i: t_i <- t_i - B_i b_t;  b_i = K_i t_i;  t_i <- t_i - A_i b_i."""
    cdef Py_ssize_t r, c
    cdef int64_t first = s.ptr[i], width = s.ptr[i + 1] - first, b
    cdef const double *val = s.val + l * first
    cdef const double *m = m_all + i * l * l
    cdef double *t = t_lead + i * l
    cdef double *out = b_lead + i * l
    cdef double total
    for r in range(l):
        total = t[r]
        for b in range(width):
            total -= val[r * width + b] * b_tail[s.idx[first + b]]
        t[r] = total
        out[r] = 0.0
    for c in range(l):
        total = 0.0
        for r in range(l):
            total += m[c * l + r] * t[r]
        for r in range(l):
            out[r] += m[c * l + r] * total
    for r in range(l):
        for c in range(l):
            t[r] -= s.a[i * l * l + r * l + c] * out[c]


cdef inline void information_row(const leading_t *s, Py_ssize_t j, const double *x_lead, Py_ssize_t n1, Py_ssize_t nt,
                                 const int64_t *theta_group, double *ca, Py_ssize_t m) noexcept nogil:
    """Column j of c_a = sum_i B_i' x_a,i for the leading parameters."""
    cdef Py_ssize_t a, k, i, r
    cdef int64_t t, first, width
    cdef double value
    for k in range(nt):
        if theta_group[k] == 0:
            ca[k * m + j] = 0.0
    for t in range(s.t_ptr[j], s.t_ptr[j + 1]):
        i = s.t_lead[t]
        first = s.ptr[i]
        width = s.ptr[i + 1] - first
        for r in range(s.l):
            value = s.val[s.l * first + r * width + s.t_pos[t] - first]
            a = 0
            for k in range(nt):
                if theta_group[k] == 0:
                    ca[k * m + j] += value * x_lead[(i * s.l + r) * n1 + a]
                    a += 1


cdef inline void project_level(const leading_t *s, Py_ssize_t i, const double *lam, const double *m_all,
                               const int64_t *column_block, const int64_t *block_ptr, const int64_t *block_lam,
                               bint posterior, double *shrink, double *work) noexcept nogil:
    """``work`` holds 2 l^2 doubles. Leaves I - A_i K_i in ``shrink`` (q, l, l), unless it is NULL or ``posterior``."""
    if s.l == 1:
        project_block(s, i, lam, m_all, column_block, block_ptr, block_lam, posterior, shrink, work, 1)
    elif s.l == 2:
        project_block(s, i, lam, m_all, column_block, block_ptr, block_lam, posterior, shrink, work, 2)
    elif s.l == 3:
        project_block(s, i, lam, m_all, column_block, block_ptr, block_lam, posterior, shrink, work, 3)
    else:
        project_block(s, i, lam, m_all, column_block, block_ptr, block_lam, posterior, shrink, work, s.l)


cdef inline void project_block(const leading_t *s, Py_ssize_t i, const double *lam, const double *m_all,
                               const int64_t *column_block, const int64_t *block_ptr, const int64_t *block_lam,
                               bint posterior, double *shrink, double *work, Py_ssize_t l) noexcept nogil:
    cdef Py_ssize_t r, c, x, y, lb
    cdef int64_t first = s.ptr[i], width = s.ptr[i + 1] - first, b
    cdef const double *a = s.a + i * l * l
    cdef const double *m = m_all + i * l * l
    cdef const double *val = s.val + l * first
    cdef double *u = s.u + l * first
    cdef const double *factor
    cdef double total, f
    for r in range(l):  # work <- K
        for c in range(l):
            total = 0.0
            for x in range(l):
                total += m[x * l + r] * m[x * l + c]
            work[r * l + c] = total
    if not posterior:
        for r in range(l):
            for c in range(l):
                total = 1.0 if r == c else 0.0
                for x in range(l):
                    total -= a[r * l + x] * work[x * l + c]
                work[l * l + r * l + c] = total
        for x in range(l * l):
            work[x] = work[l * l + x]
        if shrink is not NULL:
            for x in range(l * l):
                shrink[i * l * l + x] = work[x]
    for r in range(l):
        f = work[r * l]
        for b in range(width):
            u[r * width + b] = f * val[b]
        for c in range(1, l):
            f = work[r * l + c]
            for b in range(width):
                u[r * width + b] += f * val[c * width + b]
        b = 0
        while b < width:  # times Lambda_t, block by block: entry c needs entries >= c, so upwards in place
            x = column_block[s.idx[first + b]]
            lb = block_ptr[x + 1] - block_ptr[x]
            factor = lam + block_lam[x]
            for c in range(lb):
                total = 0.0
                for y in range(c, lb):
                    total += u[r * width + b + y] * factor[y * lb + c]
                u[r * width + b + c] = total
            b += lb


cdef inline void correction_chunk(const leading_t *s, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t p,
                                  const double *shrink, const double *omega, double *out) noexcept nogil:
    """Sum of e_i e_i' over levels [start, stop) into ``out`` (l, l), a column of scratch behind it.

    ``ud`` holds Z_X L_XX^-T, overwritten; ``shrink`` is I - A_i K_i.
    """
    cdef Py_ssize_t l = s.l, d = s.d, i, r, c, x
    cdef int64_t first, width, b
    cdef double *e
    cdef double u, total
    memset(out, 0, l * l * sizeof(double))
    cdef double *column = out + l * l
    for i in range(start, stop):
        e = s.ud + i * l * d
        for x in range(p):
            for r in range(l):
                column[r] = e[r * d + x]
            for r in range(l):
                total = 0.0
                for c in range(l):
                    total += shrink[i * l * l + r * l + c] * column[c]
                e[r * d + x] = total
        first = s.ptr[i]
        width = s.ptr[i + 1] - first
        for r in range(l):
            for b in range(width):
                u = s.u[l * first + r * width + b]
                for x in range(p):
                    e[r * d + x] -= u * omega[s.idx[first + b] * p + x]
        for r in range(l):
            for c in range(l):
                for x in range(p):
                    out[r * l + c] += e[r * d + x] * e[c * d + x]
