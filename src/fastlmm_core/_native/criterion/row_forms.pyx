"""Quadratic forms of rows in the random effects' block of the inverse: leverages and prediction variances.

With H = Lambda M^-1 Lambda' (the covariance of the random effects given the data and beta, over sigma^2) and a row z
that meets one level i of the leading factor (z_1) and some levels of the tail (z_t):

    z'Hz = z_1'H_ii z_1 - 2 z_1'(U_i S^-1) a + a'S^-1 a         U_i = K_i B_i Lambda_t,   a = Lambda_t'z_t

H_ii, U_i and S^-1 are what `Evaluator.cond_var` leaves behind. U_i S^-1 is wanted on the level's own tail columns only,
which form a clique of S: a row that was fitted needs no entry of S^-1 outside its pattern, and nothing is ever n x n.

In: conditioned rows (n, .), sorted by leading level. Out: (n,), NaN where an entry outside the pattern would be needed.
Workspace: l * (widest level) doubles a thread. Cost: sum_i l m_i^2 / 2 over the levels, and a few entries a row.
"""

import numpy as np

from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from fastlmm_core._native.criterion.evaluator cimport Evaluator
from fastlmm_core._native.leading.rows cimport leading_t
from fastlmm_core._native.rows.refill cimport RowPlaces, factor_t
from fastlmm_core._native.tail.tail cimport Tail

__all__ = ["explicit_parts", "leverages", "row_forms"]


def row_forms(Evaluator evaluator not None, const double[:, :, ::1] h_lead not None, const int64_t[::1] ptr not None,
              const int64_t[::1] rows not None, const double[:, ::1] z_lead not None,
              const int64_t[:, ::1] starts not None, const double[:, ::1] z_tail not None):
    """z'Hz of each row; call straight after ``evaluator.cond_var``, whose state it reads.

    Parameters
    ----------
    evaluator : Evaluator
    h_lead : (q, l, l)
        First answer of ``cond_var``.
    ptr : (q + 2,) int64
        Rows of leading level i are ``rows[ptr[i]:ptr[i + 1]]``; those of "level" q meet none.
    rows : (n,) int64
    z_lead : (n, l)
    starts : (n, h) int64
        Tail column at which the row's level of each further group begins; -1 for none.
    z_tail : (n, sum of the groups' columns)

    Returns
    -------
    (n,)
    """
    cdef Py_ssize_t n = z_lead.shape[0], q = evaluator.lead.q, l = evaluator.lead.l, n_tail = z_tail.shape[1]
    cdef Py_ssize_t i, widest = 0, size
    cdef int threads = evaluator.threads
    cdef const double *zt = NULL
    cdef const int64_t *st = NULL
    out_ = np.zeros(n)
    if n == 0:
        return out_
    if ptr.shape[0] != q + 2 or z_lead.shape[1] != l or h_lead.shape[0] < q:
        raise ValueError("rows and evaluator disagree")
    for i in range(q):
        widest = max(widest, evaluator.lead.ptr[i + 1] - evaluator.lead.ptr[i])
    size = l * widest + n_tail + 1
    cdef double[::1] out = out_, work = np.empty(threads * size)
    cdef int64_t[::1] places = np.empty(threads * (starts.shape[1] + 1), np.int64)
    if n_tail:
        zt, st = &z_tail[0, 0], &starts[0, 0]
    cdef Py_ssize_t h = starts.shape[1]
    cdef Tail tail = evaluator.tail
    evaluator.enter()
    try:
        evaluator.expect_projection()
        with nogil:
            for i in prange(q + 1, schedule="dynamic", chunksize=64, num_threads=threads):
                level_forms(&evaluator.lead, tail, i, &h_lead[0, 0, 0], &ptr[0], &rows[0], &z_lead[0, 0], st, zt, h,
                            n_tail, &evaluator.group_l[0], &evaluator.group_lam[0], &evaluator.lam[0], &out[0],
                            &work[0] + threadid() * size, &places[0] + threadid() * (h + 1))
    finally:
        evaluator.leave()
    return out_


def leverages(Evaluator evaluator not None, const double[::1] theta not None, RowPlaces rows not None):
    """z'Hz of every fitted row at ``theta``, (n,): what the row's own weight times this is its leverage.

    ``rows`` are those of the evaluator's layout. The inverse at hand is used, or made.
    """
    cdef Py_ssize_t i, widest = 0, size, wide = 0, q = evaluator.lead.q, l = evaluator.lead.l
    cdef int threads = evaluator.threads
    cdef const double[:, :, ::1] h_lead
    cdef Tail tail = evaluator.tail
    if rows.factors[0].q != q or rows.factors[0].l != l or rows.n_factors != evaluator.n_groups:
        raise ValueError("rows and evaluator disagree")
    out_ = np.empty(rows.n)
    cdef double[::1] out = out_
    for i in range(q):
        widest = max(widest, evaluator.lead.ptr[i + 1] - evaluator.lead.ptr[i])
    for i in range(1, rows.n_factors):
        wide += rows.factors[i].l
    size = l * widest + wide + 1
    cdef double[::1] work = np.empty(threads * size)
    evaluator.enter()
    try:
        evaluator.check_length(theta)
        h_lead = evaluator.conditional_blocks(theta)[0]
        with nogil:
            if q == 0:
                for i in prange(rows.n, schedule="static", num_threads=threads):
                    row_leverage(tail, rows, i, &evaluator.group_lam[0], &evaluator.lam[0], &out[i],
                                 &work[0] + threadid() * size)
            for i in prange(q, schedule="dynamic", chunksize=64, num_threads=threads):
                level_leverages(&evaluator.lead, tail, rows, i, &h_lead[i, 0, 0], &evaluator.group_lam[0],
                                &evaluator.lam[0], &out[0], &work[0] + threadid() * size)
    finally:
        evaluator.leave()
    return out_


cdef void level_leverages(const leading_t *s, Tail tail, RowPlaces rows, Py_ssize_t i, const double *h,
                          const int64_t *group_lam, const double *lam, double *out, double *work) noexcept nogil:
    """`leverages` of one leading level's rows; every entry that they need is on the pattern."""
    cdef const factor_t *f = &rows.factors[0]
    cdef const factor_t *e
    cdef Py_ssize_t l = s.l, r, c, g, o, row, place
    cdef int64_t first = s.ptr[i], width = s.ptr[i + 1] - first, t
    cdef double *p = work
    cdef double *a = work + l * width
    cdef double zr, inner
    if f.part.ptr[i] == f.part.ptr[i + 1]:
        return
    if width:
        level_product(tail, s.u + l * first, s.idx + first, width, l, p)
    for t in range(f.part.ptr[i], f.part.ptr[i + 1]):
        row = t if f.part.rows is NULL else f.part.rows[t]
        row_leverage(tail, rows, row, group_lam, lam, &out[row], a)
        for r in range(l):
            zr = 1.0 if f.z is NULL else f.z[row * l + r]
            for c in range(l):
                out[row] += zr * h[r * l + c] * (1.0 if f.z is NULL else f.z[row * l + c])
        o = 0
        for g in range(1, rows.n_factors):
            e = &rows.factors[g]
            place = e.place[t]
            for c in range(e.l):
                inner = 0.0
                for r in range(l):
                    inner += (1.0 if f.z is NULL else f.z[row * l + r]) * p[r * width + place + c]
                out[row] -= 2.0 * inner * a[o + c]
            o += e.l


cdef void row_leverage(Tail tail, RowPlaces rows, Py_ssize_t row, const int64_t *group_lam, const double *lam,
                       double *out, double *a) noexcept nogil:
    """out <- a'S^-1 a with a = Lambda_t'z_t of one row, which is left in ``a``."""
    cdef const factor_t *e
    cdef const factor_t *other
    cdef const double *factor
    cdef Py_ssize_t c, x, g, g2, o = 0, o2
    cdef int64_t j
    out[0] = 0.0
    for g in range(1, rows.n_factors):
        e = &rows.factors[g]
        factor = lam + group_lam[g]
        for c in range(e.l):
            a[o + c] = 0.0
            for x in range(c, e.l):
                a[o + c] += factor[x * e.l + c] * (1.0 if e.z is NULL else e.z[row * e.l + x])
        o += e.l
    o = 0
    for g in range(1, rows.n_factors):
        e = &rows.factors[g]
        j = e.offset[e.codes[row]]
        for c in range(e.l):
            o2 = 0
            for g2 in range(1, rows.n_factors):
                other = &rows.factors[g2]
                for x in range(other.l):
                    out[0] += a[o + c] * a[o2 + x] * entry_of(tail, j + c, other.offset[other.codes[row]] + x)
                o2 += other.l
        o += e.l


def explicit_parts(Evaluator evaluator not None):
    """The inverse's parts as arrays of their own; call straight after ``evaluator.cond_var``, every entry being there.

    Returns
    -------
    inverse : (m, m)
        S^-1, both triangles.
    k_lead : (q, l, l)
        K_i.
    lam : (sum of l^2,)
        Conditioned relative factors, group by group.
    """
    cdef Py_ssize_t l = evaluator.lead.l, q = evaluator.lead.q
    cdef Tail tail = evaluator.tail
    evaluator.enter()
    try:
        evaluator.expect_projection()
        inverse_ = np.empty((tail.m, tail.m))
        read_inverse(tail, inverse_)
    finally:
        evaluator.leave()
    root = np.asarray(evaluator.lead_m)[:q * l * l].reshape(q, l, l)
    return inverse_, np.matmul(root.transpose(0, 2, 1), root), np.array(evaluator.lam)


cdef void read_inverse(Tail tail, double[:, ::1] out) noexcept nogil:
    """S^-1, both triangles, into out (m, m)."""
    cdef Py_ssize_t j, k
    for j in range(out.shape[0]):
        for k in range(j, out.shape[0]):
            out[j, k] = tail.inverse_entry(j, k)
    for j in range(out.shape[0]):
        for k in range(j):
            out[j, k] = out[k, j]


cdef void level_forms(const leading_t *s, Tail tail, Py_ssize_t i, const double *h_lead, const int64_t *ptr,
                      const int64_t *rows, const double *z_lead, const int64_t *starts, const double *z_tail,
                      Py_ssize_t h, Py_ssize_t n_tail, const int64_t *group_l, const int64_t *group_lam,
                      const double *lam, double *out, double *work, int64_t *places) noexcept nogil:
    """Rows of one leading level (none for i = q)."""
    cdef Py_ssize_t l = s.l, r, c, x, g, k, o, o2
    cdef int64_t first = 0, width = 0, t, row, b, j, j2
    cdef double *p = work
    cdef double *a
    cdef const double *u = NULL
    cdef const double *z
    cdef const double *factor
    cdef const int32_t *idx = NULL
    cdef double total, entry
    if ptr[i] == ptr[i + 1]:
        return
    if i < s.q:
        first = s.ptr[i]
        width = s.ptr[i + 1] - first
        u, idx = s.u + l * first, s.idx + first
        level_product(tail, u, idx, width, l, p)
    a = p + l * width
    for t in range(ptr[i], ptr[i + 1]):
        row = rows[t]
        z = z_lead + row * l
        total = 0.0
        if i < s.q:
            for r in range(l):
                for c in range(l):
                    total += z[r] * h_lead[(i * l + r) * l + c] * z[c]
        o = 0
        for g in range(h):
            k = group_l[g + 1]
            places[g] = -1
            if starts[row * h + g] >= 0:
                factor = lam + group_lam[g + 1]
                for c in range(k):  # L'z
                    a[o + c] = 0.0
                    for x in range(c, k):
                        a[o + c] += factor[x * k + c] * z_tail[row * n_tail + o + x]
                if i < s.q:
                    places[g] = find(idx, width, starts[row * h + g])
            o += k
        o = 0
        for g in range(h):
            k = group_l[g + 1]
            j = starts[row * h + g]
            if j >= 0:
                for c in range(k):
                    if i < s.q:
                        for r in range(l):
                            if places[g] >= 0:
                                entry = p[r * width + places[g] + c]
                            else:
                                entry = 0.0
                                for b in range(width):
                                    entry += u[r * width + b] * entry_of(tail, idx[b], j + c)
                            total -= 2.0 * z[r] * entry * a[o + c]
                    o2 = 0
                    for x in range(h):
                        j2 = starts[row * h + x]
                        if j2 >= 0:
                            for b in range(group_l[x + 1]):
                                total += a[o + c] * a[o2 + b] * entry_of(tail, j + c, j2 + b)
                        o2 += group_l[x + 1]
            o += k
        out[row] = total


cdef inline void level_product(Tail tail, const double *u, const int32_t *idx, int64_t width, Py_ssize_t l,
                               double *p) noexcept nogil:
    """p <- U_i S^-1 on the level's own columns, (l, width)."""
    cdef int64_t b, c
    cdef Py_ssize_t r
    cdef double entry
    memset(p, 0, l * width * sizeof(double))
    for b in range(width):
        entry = tail.inverse_entry(idx[b], idx[b])
        for r in range(l):
            p[r * width + b] += entry * u[r * width + b]
        for c in range(b + 1, width):
            entry = tail.inverse_entry(idx[b], idx[c])
            for r in range(l):
                p[r * width + b] += entry * u[r * width + c]
                p[r * width + c] += entry * u[r * width + b]


cdef inline double entry_of(Tail tail, int64_t j, int64_t k) noexcept nogil:
    return tail.inverse_entry(j, k) if j <= k else tail.inverse_entry(k, j)


cdef inline int64_t find(const int32_t *idx, int64_t width, int64_t column) noexcept nogil:
    """Place of ``column`` in a sorted list, or -1."""
    cdef int64_t low = 0, high = width, mid
    while low < high:
        mid = (low + high) // 2
        if idx[mid] < column:
            low = mid + 1
        else:
            high = mid
    return low if low < width and idx[low] == column else -1
